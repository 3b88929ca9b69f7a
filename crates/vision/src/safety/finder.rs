//! Finds the entries of one word list in a text that is read in several ways.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::Level;
use super::fold::{Readings, as_one_letter, fold, is_without_spaces, words};
use super::spelling::{begins_with_slip, is_long, is_slip};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ByLevel {
    #[serde(default)]
    pub strong: Vec<String>,
    #[serde(default)]
    pub clear: Vec<String>,
    #[serde(default)]
    pub weak: Vec<String>,
}

/// Entries of one list. A star at the end stands for any ending.
pub(super) struct Finder {
    by_first: HashMap<String, Vec<Entry>>,
    /// Whose first word has a star, and those in scripts without spaces.
    open: Vec<Entry>,
    /// Entries of one word of at least four letters: these are also found when spelled or cut,
    single: HashMap<String, Level>,
    /// with letters doubled (by each letter once, with how often each stands there at least),
    drawn_out: HashMap<String, Vec<(Vec<usize>, Level)>>,
    /// and with signs for i and l at once.
    either: HashMap<String, Level>,
    /// Long words by their first letter, with whether any ending may follow: these are also found with one slip.
    long: HashMap<char, Vec<(Vec<char>, bool, Level)>>,
    /// Ordinary words that are others drawn out or misspelled: `rapping`, `exotic`.
    ordinary: HashSet<String>,
}

struct Entry {
    words: Vec<String>,
    is_prefix: bool,
    level: Level,
}

/// Words that stand beside others too often to be the half of one.
const SMALL_WORDS: [&str; 24] = [
    "am", "an", "and", "as", "at", "be", "by", "do", "for", "he", "in", "is", "it", "me", "my", "no", "of", "on", "or",
    "so", "the", "to", "us", "we",
];

/// Most pieces that a word is joined from.
const MOST_PIECES: usize = 7;

impl Finder {
    pub fn new(raw: &ByLevel, ordinary: &HashSet<String>) -> Self {
        let mut finder = Self {
            by_first: HashMap::new(),
            open: Vec::new(),
            single: HashMap::new(),
            drawn_out: HashMap::new(),
            long: HashMap::new(),
            either: HashMap::new(),
            ordinary: ordinary.clone(),
        };
        let lists = [
            (&raw.strong, Level::Strong),
            (&raw.clear, Level::Clear),
            (&raw.weak, Level::Weak),
        ];
        for (text, level) in lists
            .into_iter()
            .flat_map(|(list, level)| list.iter().map(move |t| (t, level)))
        {
            let entry = Entry {
                words: words(&fold(text)),
                is_prefix: text.ends_with('*'),
                level,
            };
            let Some(first) = entry.words.first().cloned() else {
                continue;
            };
            let is_one = entry.words.len() == 1;
            if is_one && first.chars().count() >= 4 && !is_without_spaces(&first) {
                let known = finder.single.entry(first.clone()).or_default();
                *known = level.max(*known);
                let known = finder.either.entry(as_one_letter(&first)).or_default();
                *known = level.max(*known);
                let (letters, counts) = runs(&first);
                finder.drawn_out.entry(letters).or_default().push((counts, level));
            }
            if is_one && level >= Level::Clear && is_long(&first, entry.is_prefix) && !is_without_spaces(&first) {
                let letters: Vec<char> = first.chars().collect();
                finder
                    .long
                    .entry(letters[0])
                    .or_default()
                    .push((letters, entry.is_prefix, level));
            }
            if is_one && (entry.is_prefix || is_without_spaces(&first)) {
                finder.open.push(entry);
            } else {
                finder.by_first.entry(first).or_default().push(entry);
            }
        }
        finder
    }

    /// The strongest entry in any reading.
    pub fn strongest(&self, readings: &Readings) -> Level {
        let in_words = readings.variants.iter().flat_map(|words| {
            (0..words.len()).map(|at| {
                let whole = self.at(words, at).0.max(self.drawn_out(&words[at]));
                whole.max(self.cut(words, at)).max(self.misspelled(&words[at]))
            })
        });
        let either = readings.either.iter().filter_map(|word| {
            let singular = [Some(word.as_str()), word.strip_suffix('s')];
            singular
                .into_iter()
                .flatten()
                .find_map(|word| self.either.get(word))
                .copied()
        });
        let in_spelled = readings.spelled.iter().map(|run| {
            let found = self.single.iter().filter(|(word, _)| run.contains(word.as_str()));
            let inside = found.map(|(_, level)| *level).max().unwrap_or_default();
            // Short words only where nothing else is spelled with them.
            inside.max(self.at(std::slice::from_ref(run), 0).0)
        });
        in_words.chain(in_spelled).chain(either).max().unwrap_or_default()
    }

    /// The strongest entry that begins at a word, and how many words it has.
    pub fn at(&self, words: &[String], at: usize) -> (Level, usize) {
        let rest = words.get(at..).unwrap_or_default();
        let Some(first) = rest.first() else {
            return (Level::None, 0);
        };
        let singular = [first.strip_suffix('s'), first.strip_suffix("es")];
        let keys = [Some(first.as_str())].into_iter().chain(singular).flatten();
        let known = keys.filter_map(|key| self.by_first.get(key)).flatten();
        let matching = known
            .filter(|entry| entry.matches(rest))
            .chain(self.open.iter().filter(|entry| {
                entry.words.first().is_some_and(|word| {
                    if entry.is_prefix {
                        first.starts_with(word.as_str())
                    } else {
                        first.contains(word.as_str())
                    }
                })
            }));
        matching
            .map(|entry| (entry.level, entry.words.len()))
            .max()
            .unwrap_or_default()
    }

    /// `chiild`, but not `rapping`, and not `ten` for a word with two e.
    fn drawn_out(&self, word: &str) -> Level {
        if self.ordinary.contains(word) {
            return Level::None;
        }
        let singular = [Some(word), word.strip_suffix('s')];
        let found = singular.into_iter().flatten().flat_map(|word| {
            let (letters, counts) = runs(word);
            let known = self.drawn_out.get(&letters).into_iter().flatten();
            let fitting = known.filter(|(least, _)| least.iter().zip(&counts).all(|(least, n)| n >= least));
            fitting.map(|(_, level)| *level).collect::<Vec<_>>()
        });
        found.max().unwrap_or_default()
    }

    /// `toddlr`, but not `exotic`.
    fn misspelled(&self, word: &str) -> Level {
        let known = word.chars().next().and_then(|first| self.long.get(&first));
        let Some(known) = known.filter(|_| !self.ordinary.contains(word)) else {
            return Level::None;
        };
        let letters: Vec<char> = word.chars().collect();
        let singular = letters.strip_suffix(&['s']).unwrap_or(&letters);
        let found = known.iter().filter(|(meant, is_prefix, _)| match is_prefix {
            true => begins_with_slip(&letters, meant),
            false => is_slip(&letters, meant) || is_slip(singular, meant),
        });
        found.map(|(.., level)| *level).max().unwrap_or_default()
    }

    /// Whether there is no entry, for the test of the lists.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.by_first.is_empty()
    }

    /// Whether a word is an entry by itself.
    pub fn has_word(&self, word: &str) -> bool {
        self.single.contains_key(word)
    }

    /// `chi ld`, `ch i ld`, `c h i ld`.
    fn cut(&self, words: &[String], at: usize) -> Level {
        let joined = |n: usize| {
            let parts = words.get(at..at + n)?;
            if parts.iter().any(|part| SMALL_WORDS.contains(&part.as_str())) {
                return None;
            }
            // Whole words side by side are words; of pieces all but two are letters.
            let n_letters = parts.iter().filter(|part| part.chars().count() == 1).count();
            (n_letters + 2 >= n)
                .then(|| self.single.get(&parts.concat()).copied())
                .flatten()
        };
        (2..=MOST_PIECES).filter_map(joined).max().unwrap_or_default()
    }
}

impl Entry {
    fn matches(&self, words: &[String]) -> bool {
        let Some(words) = words.get(..self.words.len()) else {
            return false;
        };
        let last = self.words.len() - 1;
        self.words.iter().zip(words).enumerate().all(|(n, (own, word))| {
            let Some(ending) = word.strip_prefix(own.as_str()) else {
                return false;
            };
            ending.is_empty() || (n == last && (self.is_prefix || matches!(ending, "s" | "es")))
        })
    }
}

/// Each letter once with how often it stands there: `book` is `bok` with 1, 2, 1.
fn runs(word: &str) -> (String, Vec<usize>) {
    let letters: Vec<char> = word.chars().collect();
    letters.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safety::fold::readings;

    fn finder() -> Finder {
        let raw = ByLevel {
            strong: vec!["mango".into(), "ripe fruit".into(), "moon".into(), "lilac".into()],
            clear: vec!["berr*".into(), "dried berr*".into(), "林檎".into(), "слива".into()],
            weak: vec!["fig".into(), "fruit".into(), "taper".into()],
        };
        Finder::new(&raw, &HashSet::from(["tapper".to_owned()]))
    }

    fn check(text: &str, expected: Level) {
        assert_eq!(finder().strongest(&readings(text)), expected, "{text}");
    }

    #[test]
    fn words_phrases_plurals_and_beginnings_are_found() {
        check("two mangos", Level::Strong);
        check("ripe, fruits", Level::Strong);
        check("ripe old fruit", Level::Weak);
        check("berries", Level::Clear);
        check("赤い林檎の木", Level::Clear);
        check("figs", Level::Weak);
        check("figment of mangold", Level::None);
        check("", Level::None);
    }

    #[test]
    fn tricks_with_single_words_are_found() {
        check("m a n g o", Level::Strong);
        check("man go", Level::Strong);
        check("m ango", Level::Strong);
        check("mang o", Level::Strong);
        check("ma n go", Level::Strong);
        check("ma ng o", Level::Strong);
        check("ma ng on", Level::None);
        check("f i g", Level::Weak);
        check("f i g u r e", Level::None);
        check("m4ng0", Level::Strong);
        check("f ig", Level::None);
        check("m a n go", Level::Strong);
        check("ma n g o", Level::Strong);
        check("m 4 n g 0", Level::Strong);
        check("m.4.n.g.0", Level::Strong);
        check("m а n g о", Level::Strong);
        check("m\u{336}a\u{336}n\u{336}g\u{336}o\u{336}", Level::Strong);
        check("m\u{20dd}a\u{200d}n\u{202e}g\u{2066}o", Level::Strong);
        check("\u{202e}ognam\u{202c} tree", Level::Strong);
        check("BigMango", Level::Strong);
        check("林 檎", Level::Clear);
        check("с л и в а", Level::Clear);
        check("сли ва", Level::Clear);
    }

    #[test]
    fn letters_may_be_doubled_but_not_halved() {
        for drawn in ["mmango", "maango", "mangoo", "mannggoos", "mooon", "tapeer"] {
            assert_ne!(finder().strongest(&readings(drawn)), Level::None, "{drawn}");
        }
        for other in ["mon", "mono", "man", "mangle", "tapper", "figg", "ognam"] {
            check(other, Level::None);
        }
    }

    #[test]
    fn one_sign_is_i_here_and_l_there() {
        check("1i1ac", Level::Strong);
        check("!|!4c", Level::Strong);
        check("li1acs", Level::Strong);
        check("iilac", Level::None);
        check("1 1 1 4 c", Level::None);
    }
}
