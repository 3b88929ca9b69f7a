//! Finds the line on which a key stands, so that an error can name it.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The 1-based line of the key at `path` in `text`: of the deepest part of the path that is there.
pub(super) fn line_of(text: &str, path: &[&str]) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let start = find(document.get_ref(), path)?;
    Some(line_at(text, start))
}

/// The 1-based line of byte `offset`.
pub(super) fn line_at(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

/// Byte offset of the key.
fn find(table: &DeTable<'_>, path: &[&str]) -> Option<usize> {
    let (first, rest) = path.split_first()?;
    let (key, value): (&Spanned<_>, &Spanned<DeValue<'_>>) =
        table.iter().find(|(key, _)| key.get_ref().as_ref() as &str == *first)?;
    let here = key.span().start;
    match value.get_ref() {
        DeValue::Table(inner) => Some(find(inner, rest).unwrap_or(here)),
        _ => Some(here),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_its_section() {
        let text = "a = 1\n\n[scribe]\n# b\nb = 2\n";
        assert_eq!(line_of(text, &["a"]), Some(1));
        assert_eq!(line_of(text, &["scribe", "b"]), Some(5));
        assert_eq!(line_of(text, &["scribe", "c"]), Some(3));
        assert_eq!(line_of(text, &["c"]), None);
    }
}
