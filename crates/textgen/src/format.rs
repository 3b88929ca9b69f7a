//! The KoboldAI output options, as pure functions over the finished text.

use std::borrow::Cow;

use crate::request::Formatting;

/// Applies what `formatting` asks for, in the order KoboldAI has: sentence, blank lines, special characters, line.
pub fn output(text: String, formatting: Formatting) -> String {
    let mut text = text;
    if formatting.trim_incomplete {
        text.truncate(complete_sentences(&text).len());
    }
    if formatting.remove_blank_lines {
        text = without_blank_lines(&text);
    }
    if formatting.remove_special {
        text.retain(|c| !SPECIAL.contains(c));
    }
    if formatting.single_line {
        text.truncate(first_line(&text).len());
    }
    text
}

/// The prompt as the engine shall see it: NUL is dropped, and a leading space put before it where asked for.
pub fn input(prompt: &str, formatting: Formatting) -> Cow<'_, str> {
    let space = formatting.add_leading_space && !prompt.starts_with(char::is_whitespace) && !prompt.is_empty();
    if !space && !prompt.contains('\0') {
        return Cow::Borrowed(prompt);
    }
    let mut text = String::with_capacity(prompt.len() + 1);
    if space {
        text.push(' ');
    }
    text.extend(prompt.chars().filter(|c| *c != '\0'));
    Cow::Owned(text)
}

/// Characters that `remove_special` removes.
const SPECIAL: &str = "#/@%{}+=~|\\^<>";
/// A sentence ends with one of these ...
const ENDS: &[char] = &['.', '!', '?', '…', '。', '！', '？'];
/// ... and whatever of these follows it.
const CLOSERS: &[char] = &['"', '\'', ')', ']', '*', '”', '’', '»', '」', '』', '）'];

/// `text` up to the end of its last whole sentence; all of it when there is no sentence end.
pub fn complete_sentences(text: &str) -> &str {
    let Some(last) = text.rfind(ENDS) else {
        return text;
    };
    let end = text[last..]
        .char_indices()
        .skip(1)
        .find(|(_, c)| !CLOSERS.contains(c))
        .map_or(text.len(), |(offset, _)| last + offset);
    &text[..end]
}

/// Runs of line ends become one line end.
pub fn without_blank_lines(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' || !result.ends_with('\n') {
            result.push(c);
        }
    }
    result
}

/// `text` before its first line end.
pub fn first_line(text: &str) -> &str {
    text.split(['\n', '\r']).next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(formatting: Formatting, text: &str, expected: &str) {
        assert_eq!(output(text.to_owned(), formatting), expected);
    }

    #[test]
    fn nothing_asked_changes_nothing() {
        check(Formatting::default(), " a\n\nb <c>", " a\n\nb <c>");
    }

    #[test]
    fn an_unfinished_sentence_is_cut_but_its_closing_quote_kept() {
        let trim = Formatting {
            trim_incomplete: true,
            ..Formatting::default()
        };
        check(trim, "\"Stay here.\" She left and", "\"Stay here.\"");
        check(trim, "猫が鳴いた。それから", "猫が鳴いた。");
        check(trim, "no end at all", "no end at all");
        check(trim, "Done.", "Done.");
        check(trim, "", "");
    }

    #[test]
    fn blank_lines_special_characters_and_further_lines_go() {
        let blank = Formatting {
            remove_blank_lines: true,
            ..Formatting::default()
        };
        check(blank, "a\n\n\nb\nc", "a\nb\nc");
        let special = Formatting {
            remove_special: true,
            ..Formatting::default()
        };
        check(special, "a#b <c> 🦀 {d}", "ab c 🦀 d");
        let single = Formatting {
            single_line: true,
            ..Formatting::default()
        };
        check(single, "one\ntwo", "one");
        check(single, "\ntwo", "");
    }

    #[test]
    fn the_prompt_gets_one_space_and_loses_nul() {
        let spaced = Formatting {
            add_leading_space: true,
            ..Formatting::default()
        };
        assert_eq!(input("a\0b", spaced), " ab");
        assert_eq!(input(" a", spaced), " a");
        assert_eq!(input("", spaced), "");
        assert_eq!(input("a", Formatting::default()), "a");
    }
}
