//! The words that a prompt is searched for, folded once and found by their first word.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use serde::Deserialize;

use super::Level;
use super::finder::{ByLevel, Finder};
use super::fold::{Readings, fold, words};

/// The lists of `words.json`.
pub(super) struct WordLists {
    pub under_age: Finder,
    pub adult: Finder,
    pub maturity: Finder,
    pub clothes: Finder,
    /// After a number: `years old`.
    pub years: Finder,
    /// After a number, at most 36: `months old`.
    pub months: Finder,
    /// Before a number: `aged`.
    pub before_age: Finder,
    /// Before a number that ends what stands between commas: `she is`.
    pub before_age_at_end: Finder,
    /// Before a comma and a number that stands by itself: `girl, 8`.
    pub before_age_alone: Finder,
    /// What may be so old without anybody being young: `whisky`.
    pub things: Finder,
    /// Who may be.
    people: Finder,
    /// `eight`.
    pub numbers: HashMap<String, u32>,
    /// `acht`: only before a unit, as many are words of other languages too.
    pub foreign_numbers: HashMap<String, u32>,
    /// A maturity word before one of these is about the picture's kind: `mature content`.
    pub about_content: Vec<String>,
    /// Names of grown-up people and of things that have words of the lists in them; these count for nothing there.
    /// Each with what is read in its place.
    names: Vec<(Vec<String>, &'static str)>,
    /// Words that others are run together from, and those that only look so.
    parts: HashSet<String>,
    whole: HashSet<String>,
}

/// Stands for a name. It joins with nothing.
const NAME: &str = "name";
/// Stands for what is hardly ever about anybody's age: a weak word of the list.
const WEAK_NAME: &str = "pinafore";
/// Longer words that end so are for people too: `catgirl`.
const SOMEBODY: [&str; 4] = ["girl", "boy", "woman", "child"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    under_age: ByLevel,
    adult: ByLevel,
    maturity: ByLevel,
    clothes: ByLevel,
    years: ByLevel,
    months: ByLevel,
    before_age: ByLevel,
    before_age_at_end: ByLevel,
    before_age_alone: ByLevel,
    things: ByLevel,
    people: ByLevel,
    foreign_numbers: HashMap<String, u32>,
    numbers: HashMap<String, u32>,
    about_content: Vec<String>,
    not_drawn_out: Vec<String>,
    not_misspelled: Vec<String>,
    not_run_together: Vec<String>,
    run_together_with: Vec<String>,
    names: Vec<String>,
    weak_names: Vec<String>,
}

/// Letters of what may be run together, and of its parts.
const SHORTEST_RUN: usize = 7;
const LONGEST_RUN: usize = 40;
const SHORTEST_PART: usize = 3;

impl WordLists {
    /// The lists of this build.
    pub fn builtin() -> &'static Self {
        static LISTS: OnceLock<WordLists> = OnceLock::new();
        LISTS.get_or_init(|| {
            let raw: Raw =
                serde_json::from_str(include_str!("words.json")).expect("the lists of this build are read by a test");
            let ordinary = raw.not_drawn_out.iter().chain(&raw.not_misspelled);
            let ordinary: HashSet<String> = ordinary.map(|word| fold(word)).collect();
            let finder = |list: &ByLevel| Finder::new(list, &ordinary);
            let name = |name: &String, stands: &'static str| (words(&fold(name)), stands);
            let names = raw.names.iter().map(|text| name(text, NAME));
            let parts: HashSet<String> = [&raw.under_age, &raw.adult]
                .into_iter()
                .flat_map(|list| [&list.strong, &list.clear].into_iter().flatten())
                // Phrases come with all their small words: those that help to make some are named.
                .filter(|text| !text.contains(' '))
                .chain(&raw.run_together_with)
                .flat_map(|text| words(&fold(text)))
                .filter(|part| part.len() >= SHORTEST_PART && part.is_ascii())
                .collect();
            Self {
                under_age: finder(&raw.under_age),
                adult: finder(&raw.adult),
                maturity: finder(&raw.maturity),
                clothes: finder(&raw.clothes),
                years: finder(&raw.years),
                months: finder(&raw.months),
                before_age: finder(&raw.before_age),
                before_age_at_end: finder(&raw.before_age_at_end),
                before_age_alone: finder(&raw.before_age_alone),
                things: finder(&raw.things),
                people: finder(&raw.people),
                names: names
                    .chain(raw.weak_names.iter().map(|text| name(text, WEAK_NAME)))
                    .collect(),
                parts,
                whole: raw.not_run_together.iter().map(|word| fold(word)).collect(),
                foreign_numbers: raw.foreign_numbers.iter().map(|(word, n)| (fold(word), *n)).collect(),
                numbers: raw.numbers.iter().map(|(word, n)| (fold(word), *n)).collect(),
                about_content: raw.about_content.iter().map(|word| fold(word)).collect(),
            }
        })
    }
}

impl WordLists {
    /// Takes the words of known names out of a text that is read in several ways.
    pub fn without_names(&self, mut readings: Readings) -> Readings {
        for words in &mut readings.variants {
            for at in 0..words.len() {
                let name = self.names.iter().find(|(name, _)| words[at..].starts_with(name));
                if let Some((name, stands)) = name {
                    words[at..at + name.len()].fill((*stands).into());
                }
            }
        }
        readings
    }

    /// Adds the reading in which words that are run together from several stand apart.
    pub fn with_run_together(&self, mut readings: Readings) -> Readings {
        let Some(plain) = readings.variants.first() else {
            return readings;
        };
        let apart: Vec<String> = plain
            .iter()
            .flat_map(|word| self.parts_of(word).unwrap_or_else(|| vec![word.clone()]))
            .collect();
        if apart.len() > plain.len() {
            readings.variants.push(apart);
        }
        readings
    }

    /// `nakedcat` in its parts, from the front the longest that leaves parts for the rest.
    fn parts_of(&self, word: &str) -> Option<Vec<String>> {
        if !word.is_ascii() || !(SHORTEST_RUN..=LONGEST_RUN).contains(&word.len()) || self.whole.contains(word) {
            return None;
        }
        // For each place the longest part that begins there, if parts cover all from there on.
        let mut longest = vec![None; word.len()];
        for begin in (0..word.len()).rev() {
            let ends = (begin + SHORTEST_PART..=word.len()).rev();
            longest[begin] = ends
                .filter(|end| *end == word.len() || longest[*end].is_some())
                .find(|end| self.parts.contains(&word[begin..*end]));
        }
        let mut parts = Vec::new();
        let mut begin = 0;
        while begin < word.len() {
            let end = longest[begin]?;
            parts.push(word[begin..end].to_owned());
            begin = end;
        }
        (parts.len() > 1).then_some(parts)
    }

    /// Whether a word is for somebody, who might be as young as a number beside it says.
    pub fn is_somebody(&self, word: &str) -> bool {
        let singular = word.strip_suffix('s').unwrap_or(word);
        let ends = SOMEBODY.iter().any(|end| singular.ends_with(end));
        ends || self.people.at(std::slice::from_ref(&word.to_owned()), 0).0 > Level::None
    }

    /// `eightyearold` as a number and its unit.
    pub fn number_and_unit<'a>(&self, word: &'a str) -> Option<(&'a str, &'a str)> {
        let mut numbers = self
            .numbers
            .keys()
            .filter_map(|number| word.strip_prefix(number.as_str()));
        let unit = numbers.find(|unit| self.years.has_word(unit))?;
        Some((&word[..word.len() - unit.len()], unit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safety::fold::readings;

    fn apart(text: &str) -> Vec<String> {
        let readings = WordLists::builtin().with_run_together(readings(text));
        readings.variants.last().cloned().unwrap_or_default()
    }

    #[test]
    fn words_run_together_are_read_apart() {
        assert_eq!(apart("a nakedwoman"), ["a", "naked", "woman"]);
        assert_eq!(apart("toplessgirls"), ["topless", "girls"]);
        for whole in ["nakedness", "manchild", "girlish", "analysis", "kidman"] {
            assert_eq!(apart(whole), [whole], "{whole}");
        }
    }

    #[test]
    fn numbers_are_told_from_their_unit() {
        let apart = |word| WordLists::builtin().number_and_unit(word);
        assert_eq!(apart("eightyearold"), Some(("eight", "yearold")));
        assert_eq!(apart("seventeenyearsold"), Some(("seventeen", "yearsold")));
        assert_eq!((apart("eight"), apart("tent")), (None, None));
    }

    #[test]
    fn the_lists_of_this_build_are_whole() {
        let lists = WordLists::builtin();
        let all = [
            &lists.under_age,
            &lists.adult,
            &lists.maturity,
            &lists.clothes,
            &lists.years,
            &lists.months,
            &lists.before_age,
        ];
        assert!(all.iter().all(|finder| !finder.is_empty()));
        assert_eq!(lists.numbers.get("seventeen"), Some(&17));
    }
}
