//! Text from elsewhere, made safe for a terminal or a log line.

/// `text` on one line: control characters, line breaks and bidirectional overrides escaped.
pub fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) || c == '\n' || c == '\t' {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

/// As [`printable`], but line breaks stay.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// A line of JSON without raw control characters: those inside strings become JSON's own escapes.
pub fn printable_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unsafe(c) || c == '\n' || c == '\t' {
            safe.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// At most `n_chars` characters of `text`, the last one an ellipsis where something was cut.
pub fn truncated(text: &str, n_chars: usize) -> String {
    if text.chars().count() <= n_chars {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(n_chars.saturating_sub(1)).collect();
    if n_chars > 0 {
        cut.push('…');
    }
    cut
}

/// Control characters (ESC, CR, C1, …) and what reorders or hides text around it.
fn is_unsafe(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// The entry of `candidates` a typing error most likely meant, if any is near enough.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = typed.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_overrides_do_not_reach_the_terminal() {
        assert_eq!(
            printable("a\x1b[2Jb\r\n\u{202e}c\u{9b}"),
            "a\\u{1b}[2Jb\\r\\n\\u{202e}c\\u{9b}"
        );
        assert_eq!(printable("日本 é 🙂"), "日本 é 🙂");
    }

    #[test]
    fn truncation_counts_characters_and_marks_the_cut() {
        assert_eq!(truncated("日本語です", 3), "日本…");
        assert_eq!(truncated("abc", 3), "abc");
        assert_eq!(truncated("abc", 0), "");
    }

    #[test]
    fn nearest_finds_swapped_letters_and_refuses_strangers() {
        let keys = ["worker_name", "horde_url", "devices"];
        assert_eq!(nearest("wroker_name", keys), Some("worker_name"));
        assert_eq!(nearest("Worker-Name", keys), Some("worker_name"));
        assert_eq!(nearest("temperature", keys), None);
        assert_eq!(nearest("codeformer", ["GFPGAN", "CodeFormers"]), Some("CodeFormers"));
    }
}
