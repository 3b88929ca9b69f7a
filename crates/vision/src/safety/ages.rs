//! Ages in a prompt: numbers, in figures or in words of several languages, beside a unit or a word for age.

use super::Level;
use super::finder::Finder;
use super::fold::Readings;
use super::words::WordLists;

/// Ages below this are under age, in years.
const OF_AGE: u32 = 18;
/// Nobody says this many months of a grown-up.
const MAX_MONTHS: u32 = 36;
/// A number that stands by itself behind a girl or a boy is an age from here on.
const LEAST_ALONE: u32 = 3;
/// Words behind an age that are looked at for what is so old.
const MOST_BEHIND: usize = 4;
/// Of these, those among which a thing must stand to be meant.
const MOST_TO_THING: usize = 2;
/// What may stand between a number and its unit.
const BETWEEN: [&[&str]; 6] = [
    &["and", "a", "half"],
    &["a", "half"],
    &["ish"],
    &["something"],
    &["odd"],
    &["plus"],
];
/// Units that are told from what is run on behind them.
const RUN_ON: [&str; 4] = ["yearsold", "yearold", "yrsold", "yrold"];
/// Most pieces of `y e a r s o l d`.
const MOST_PIECES: usize = 8;

/// `8 years old`, `8yo`, `aged eight`, `8歳`, `6 months old`, `she is 8`, but not `aged, 1girl` and `12 year old whisky`.
pub(super) fn tells_young_age(readings: &Readings, lists: &WordLists) -> bool {
    let beside = readings
        .variants
        .iter()
        .any(|words| has_age(&Tokens::new(words, lists), lists));
    let clauses: Vec<Tokens> = readings.clauses.iter().map(|words| Tokens::new(words, lists)).collect();
    let at_end = clauses.iter().any(|clause| ends_with_age(clause, lists));
    let alone = clauses
        .windows(2)
        .any(|pair| pair[1].is_age_alone(lists) && pair[0].is_of_somebody(lists));
    beside || at_end || alone
}

fn has_age(words: &Tokens, lists: &WordLists) -> bool {
    (0..words.texts.len()).any(|at| {
        let own = words.number(at, lists);
        let Some(number) = own.or_else(|| words.foreign_number(at, lists)) else {
            return false;
        };
        let years = unit(&lists.years, words, at + 1).filter(|_| number < OF_AGE);
        let unit = years.or_else(|| unit(&lists.months, words, at + 1).filter(|_| number <= MAX_MONTHS));
        if let Some(n_words) = unit {
            return !is_of_thing(words, at, at + 1 + n_words, lists);
        }
        let is_said = (1..=2).any(|n| {
            let begin = at.checked_sub(n);
            begin.is_some_and(|begin| lists.before_age.at(&words.texts, begin) == (Level::Clear, n))
        });
        // `aged, 1girl` counts girls, `space age 3d` dimensions; `age8girl` is all in one.
        own.is_some()
            && number < OF_AGE
            && is_said
            && (!words.is_glued_behind(at) || words.is_glued_before(at))
            && !is_of_thing(words, at, at + 1, lists)
    })
}

/// How many words the unit behind a number has, with what stands between; also in pieces: `y e a r s o l d`.
fn unit(units: &Finder, words: &Tokens, behind: usize) -> Option<usize> {
    let rest = words.texts.get(behind..).unwrap_or_default();
    let between = BETWEEN
        .iter()
        .find(|between| between.len() <= rest.len() && between.iter().zip(rest).all(|(a, b)| a == b));
    let n_between = between.map_or(0, |between| between.len());
    let at = behind + n_between;
    let (level, n_words) = units.at(&words.texts, at);
    if level > Level::None {
        return Some(n_between + n_words);
    }
    let joined = (2..=MOST_PIECES).find(|n| {
        let pieces = words.texts.get(at..at + n);
        pieces.is_some_and(|pieces| units.has_word(&pieces.concat()))
    });
    joined.map(|n| n_between + n)
}

/// A bottle or a horse is so old, and nobody stands beside it.
fn is_of_thing(words: &Tokens, number: usize, behind: usize, lists: &WordLists) -> bool {
    let texts = &words.texts;
    let behind = texts.get(behind..).unwrap_or_default();
    let behind = &behind[..behind.len().min(MOST_BEHIND)];
    let before = &texts[number.saturating_sub(2)..number];
    let is_thing = |word: &String| lists.things.at(std::slice::from_ref(word), 0).0 > Level::None;
    let is_somebody = |word: &String| lists.is_somebody(word);
    behind.iter().take(MOST_TO_THING).any(is_thing) && !behind.iter().chain(before).any(is_somebody)
}

/// `she is 12`, `looks like 12`, up to the comma.
fn ends_with_age(clause: &Tokens, lists: &WordLists) -> bool {
    let Some(last) = clause.texts.len().checked_sub(1) else {
        return false;
    };
    let is_young = clause.number(last, lists).is_some_and(|number| number < OF_AGE);
    is_young
        && !clause.is_glued_before(last)
        && (1..=3).any(|n| {
            let begin = last.checked_sub(n);
            begin.is_some_and(|begin| lists.before_age_at_end.at(&clause.texts, begin) == (Level::Clear, n))
        })
}

/// Words with figures apart from letters, as `8yo`, `八岁` and `eightyearold` are two words each.
struct Tokens {
    texts: Vec<String>,
    /// Whether each was one word with the next.
    glued: Vec<bool>,
}

impl Tokens {
    fn new(words: &[String], lists: &WordLists) -> Self {
        let mut tokens = Self {
            texts: Vec::new(),
            glued: Vec::new(),
        };
        for word in words {
            let letters: Vec<char> = word.chars().collect();
            let mut parts: Vec<String> = letters
                .chunk_by(|a, b| kind(*a) == kind(*b))
                .map(|run| run.iter().collect())
                .collect();
            if let Some((number, unit)) = lists.number_and_unit(word) {
                parts = vec![number.to_owned(), unit.to_owned()];
            }
            // `8yearoldcat`
            if let Some(at) = parts.iter().position(|part| {
                RUN_ON
                    .iter()
                    .any(|unit| part.len() > unit.len() && part.starts_with(unit))
            }) {
                let unit = RUN_ON
                    .iter()
                    .find(|unit| parts[at].starts_with(**unit))
                    .map_or(0, |unit| unit.len());
                let rest = parts[at].split_off(unit);
                parts.insert(at + 1, rest);
            }
            let n_parts = parts.len();
            tokens.glued.extend((1..=n_parts).map(|n| n < n_parts));
            tokens.texts.extend(parts);
        }
        tokens
    }

    fn is_glued_behind(&self, at: usize) -> bool {
        self.glued.get(at).copied().unwrap_or(false)
    }

    fn is_glued_before(&self, at: usize) -> bool {
        at.checked_sub(1).is_some_and(|before| self.is_glued_behind(before))
    }

    fn number(&self, at: usize, lists: &WordLists) -> Option<u32> {
        let word = self.texts.get(at)?;
        if word.len() <= 3
            && let Ok(number) = word.parse()
        {
            return Some(number);
        }
        from_han(word).or_else(|| lists.numbers.get(word.as_str()).copied())
    }

    fn foreign_number(&self, at: usize, lists: &WordLists) -> Option<u32> {
        lists.foreign_numbers.get(self.texts.get(at)?.as_str()).copied()
    }

    /// Whether it is nothing but a number that may be an age.
    fn is_age_alone(&self, lists: &WordLists) -> bool {
        let is_figure = self
            .texts
            .first()
            .is_some_and(|text| text.starts_with(|c: char| c.is_ascii_digit()));
        let number = self.number(0, lists).filter(|_| is_figure);
        self.texts.len() == 1 && number.is_some_and(|number| (LEAST_ALONE..OF_AGE).contains(&number))
    }

    /// Whether it ends with somebody whose age may follow.
    fn is_of_somebody(&self, lists: &WordLists) -> bool {
        let last = self.texts.last();
        last.is_some_and(|word| lists.before_age_alone.at(std::slice::from_ref(word), 0).0 > Level::None)
    }
}

/// Figures, Han numerals, all else.
fn kind(c: char) -> u8 {
    match c {
        _ if c.is_ascii_digit() => 0,
        _ if han_digit(c).is_some() || c == '十' => 1,
        _ => 2,
    }
}

fn han_digit(c: char) -> Option<u32> {
    let at = "零一二三四五六七八九".chars().position(|digit| digit == c)?;
    u32::try_from(at).ok()
}

/// `八`, `十`, `十二`, `二十`; beyond a hundred nobody is young.
fn from_han(word: &str) -> Option<u32> {
    let digits = |text: &str| match text.chars().collect::<Vec<_>>()[..] {
        [] => Some(None),
        [one] => han_digit(one).map(Some),
        _ => None,
    };
    match word.split_once('十') {
        Some((tens, ones)) => Some(digits(tens)?.unwrap_or(1) * 10 + digits(ones)?.unwrap_or(0)),
        None => digits(word)?,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn han_numerals_are_read() {
        let all = ["八", "十", "十二", "二十", "二十一", "", "八八", "十十", "八岁"];
        let read = [Some(8), Some(10), Some(12), Some(20), Some(21), None, None, None, None];
        assert_eq!(all.map(from_han), read);
    }
}
