//! The words that a prompt is searched for, folded once and found by their first word.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde::Deserialize;

use super::Level;
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
    /// `eight`.
    pub numbers: HashMap<String, u32>,
    /// A maturity word before one of these is about the picture's kind: `mature content`.
    pub about_content: Vec<String>,
}

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
    numbers: HashMap<String, u32>,
    about_content: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ByLevel {
    #[serde(default)]
    strong: Vec<String>,
    #[serde(default)]
    clear: Vec<String>,
    #[serde(default)]
    weak: Vec<String>,
}

/// Entries of one list. A star at the end stands for any ending.
pub(super) struct Finder {
    by_first: HashMap<String, Vec<Entry>>,
    /// Whose first word has a star, and those in scripts without spaces.
    open: Vec<Entry>,
    /// Entries of one word of at least four letters: these are also found when spelled or cut.
    single: HashMap<String, Level>,
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

impl WordLists {
    /// The lists of this build.
    pub fn builtin() -> &'static Self {
        static LISTS: OnceLock<WordLists> = OnceLock::new();
        LISTS.get_or_init(|| {
            let raw: Raw =
                serde_json::from_str(include_str!("words.json")).expect("the lists of this build are read by a test");
            Self {
                under_age: Finder::new(&raw.under_age),
                adult: Finder::new(&raw.adult),
                maturity: Finder::new(&raw.maturity),
                clothes: Finder::new(&raw.clothes),
                years: Finder::new(&raw.years),
                months: Finder::new(&raw.months),
                before_age: Finder::new(&raw.before_age),
                numbers: raw.numbers.iter().map(|(word, n)| (fold(word), *n)).collect(),
                about_content: raw.about_content.iter().map(|word| fold(word)).collect(),
            }
        })
    }
}

impl Finder {
    fn new(raw: &ByLevel) -> Self {
        let mut finder = Self {
            by_first: HashMap::new(),
            open: Vec::new(),
            single: HashMap::new(),
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
            if is_one && first.chars().count() >= 4 && first.is_ascii() {
                let known = finder.single.entry(first.clone()).or_default();
                *known = level.max(*known);
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
        let in_words = readings
            .variants
            .iter()
            .flat_map(|words| (0..words.len()).map(|at| self.at(words, at).0.max(self.cut(words, at))));
        let in_spelled = readings.spelled.iter().map(|run| {
            let found = self.single.iter().filter(|(word, _)| run.contains(word.as_str()));
            let inside = found.map(|(_, level)| *level).max().unwrap_or_default();
            // Short words only where nothing else is spelled with them.
            inside.max(self.at(std::slice::from_ref(run), 0).0)
        });
        in_words.chain(in_spelled).max().unwrap_or_default()
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

    /// `chi ld`.
    /// Also `c hild` and `ch i ld`.
    fn cut(&self, words: &[String], at: usize) -> Level {
        let joined = |n: usize| {
            let parts = words.get(at..at + n)?;
            if parts.iter().any(|part| SMALL_WORDS.contains(&part.as_str())) {
                return None;
            }
            // Three whole words side by side are three words.
            let is_odd = n == 2 || parts.iter().any(|part| part.chars().count() == 1);
            is_odd.then(|| self.single.get(&parts.concat()).copied()).flatten()
        };
        joined(2).max(joined(3)).unwrap_or_default()
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

/// Chinese, Japanese, Korean, Thai: words are not told apart by spaces.
pub(super) fn is_without_spaces(word: &str) -> bool {
    word.chars()
        .any(|c| matches!(c, '\u{0e00}'..='\u{0e7f}' | '\u{1100}'..='\u{11ff}' | '\u{2e80}'..='\u{d7ff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safety::fold::readings;

    fn finder() -> Finder {
        Finder::new(&ByLevel {
            strong: vec!["mango".into(), "ripe fruit".into()],
            clear: vec!["berr*".into(), "dried berr*".into(), "林檎".into()],
            weak: vec!["fig".into(), "fruit".into()],
        })
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
        assert!(all.iter().all(|finder| !finder.by_first.is_empty()));
        assert_eq!(lists.numbers.get("seventeen"), Some(&17));
    }
}
