//! Word lists as packages carry them, made into one entry a line.

use std::collections::{BTreeMap, HashSet};

use super::Refusal;

/// Entries kept of a list that is ordered by how common they are.
pub const TOP: usize = 2_000;
/// Longest entry in characters; CLIP reads some 70 words at most.
const MAX_CHARS: usize = 120;

/// Every entry once, in its order, at most `most` of them.
pub fn list(text: &str, most: usize) -> Result<String, Refusal> {
    joined(text.lines(), most)
}

/// The first name of every class: `lemmas` has `ID<TAB>name, other name` a line, `classes` one ID a line.
pub fn class_names(lemmas: &str, classes: &str) -> Result<String, Refusal> {
    let names: BTreeMap<&str, &str> = lemmas
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter_map(|(id, names)| Some((id, names.split(',').next()?)))
        .collect();
    let classes = classes.lines().map(str::trim).filter(|id| !id.is_empty());
    let found: Option<Vec<&str>> = classes.map(|id| names.get(id).copied()).collect();
    let found = found.ok_or_else(|| Refusal::Malformed("a class has no name".into()))?;
    joined(found.into_iter(), usize::MAX)
}

fn joined<'a>(entries: impl Iterator<Item = &'a str>, most: usize) -> Result<String, Refusal> {
    let mut seen = HashSet::new();
    let mut text = String::new();
    let usable = entries
        .map(str::trim)
        .filter(|entry| !entry.is_empty() && entry.chars().count() <= MAX_CHARS);
    for entry in usable.filter(|entry| seen.insert(*entry)).take(most) {
        text.push_str(entry);
        text.push('\n');
    }
    if text.is_empty() {
        return Err(Refusal::Malformed("it holds no word".into()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_once_and_in_their_order() {
        let text = "oil\n\n  pastel \r\noil\nink\nchalk\n";
        assert_eq!(list(text, 3).unwrap(), "oil\npastel\nink\n");
        assert!(list(" \n", 3).is_err());
    }

    #[test]
    fn classes_are_told_by_their_first_names() {
        let lemmas = "n1\ttench, Tinca tinca\nn2\thop\nn3\thop, hops\n";
        assert_eq!(class_names(lemmas, "n2\nn1\nn3\n").unwrap(), "hop\ntench\n");
        assert!(class_names(lemmas, "n4\n").is_err());
    }
}
