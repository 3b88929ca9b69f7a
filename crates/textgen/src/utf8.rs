//! Bytes of tokens become whole characters.

/// Collects bytes and gives out text as soon as its characters are whole.
///
/// One character may come in several tokens; bytes that can never become one are replaced by U+FFFD, as
/// [`String::from_utf8_lossy`] does.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Appends what `bytes` completes to `text`.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                }
                Err(error) => {
                    let (whole, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(whole));
                    let Some(broken) = error.error_len() else {
                        rest = after;
                        break;
                    };
                    text.push('\u{fffd}');
                    rest = &after[broken..];
                }
            }
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
    }

    /// Bytes of a character that is not whole yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

/// The last `bytes` bytes of `text`, or as many fewer as whole characters need.
pub fn last(text: &str, bytes: usize) -> &str {
    let start = text.len().saturating_sub(bytes);
    let start = (start..text.len()).find(|at| text.is_char_boundary(*at));
    start.map_or("", |at| &text[at..])
}

/// The whole characters of `bytes`: an unfinished last one is dropped, broken ones become U+FFFD.
pub fn whole(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    Utf8Stream::default().push(bytes, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn streamed(parts: &[&[u8]]) -> String {
        let (mut stream, mut text) = (Utf8Stream::default(), String::new());
        for part in parts {
            stream.push(part, &mut text);
        }
        text
    }

    #[test]
    fn the_end_of_a_text_is_whole_characters() {
        for (bytes, end) in [
            (0, ""),
            (1, "c"),
            (2, "c"),
            (3, "c"),
            (4, "漢c"),
            (5, "a漢c"),
            (9, "a漢c"),
        ] {
            assert_eq!(last("a漢c", bytes), end, "{bytes}");
        }
        assert_eq!(last("", 3), "");
    }

    #[test]
    fn a_character_cut_in_pieces_comes_out_whole() {
        let bytes = "a🦀漢".as_bytes();
        assert_eq!(
            streamed(&[&bytes[..2], &bytes[2..4], &bytes[4..6], &bytes[6..]]),
            "a🦀漢"
        );
    }

    #[test]
    fn an_unfinished_character_at_the_end_is_dropped() {
        assert_eq!(whole(&"ok🦀".as_bytes()[..5]), "ok");
    }

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        assert_eq!(whole(b"a\xffb\xc0c"), "a\u{fffd}b\u{fffd}c");
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_text(text in any::<String>(), cut in 0usize..64) {
            let bytes = text.as_bytes();
            let cut = cut.min(bytes.len());
            prop_assert_eq!(streamed(&[&bytes[..cut], &bytes[cut..]]), text);
        }
    }
}
