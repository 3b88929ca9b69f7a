//! Stop texts, found while the answer grows, also where one spreads over several tokens.

use aho_corasick::{AhoCorasick, MatchKind};

/// Looks for stop texts in a growing answer; each byte is looked at a bounded number of times.
#[derive(Debug)]
pub struct StopScanner {
    automaton: Option<AhoCorasick>,
    longest: usize,
    /// Bytes of the answer that were scanned.
    scanned: usize,
}

/// Where the first stop text to be completed stands in the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// First byte of the stop text.
    pub start: usize,
    /// First byte after it.
    pub end: usize,
}

impl StopScanner {
    /// For `stops`, none of them empty (empty ones are ignored). The lists are bounded by [`crate::Limits`].
    pub fn new(stops: &[String]) -> Self {
        let stops: Vec<&str> = stops
            .iter()
            .map(String::as_str)
            .filter(|stop| !stop.is_empty())
            .collect();
        let longest = stops.iter().map(|stop| stop.len()).max().unwrap_or(0);
        let automaton = (!stops.is_empty())
            // "Standard" reports the match that ends first, which is what a reader of the stream sees first.
            .then(|| AhoCorasick::builder().match_kind(MatchKind::Standard).build(&stops))
            .and_then(Result::ok);
        Self {
            automaton,
            longest,
            scanned: 0,
        }
    }

    /// Scans what is new in `answer`, which has only grown since the last call.
    pub fn scan(&mut self, answer: &[u8]) -> Option<Stop> {
        let automaton = self.automaton.as_ref()?;
        let from = self
            .scanned
            .saturating_sub(self.longest.saturating_sub(1))
            .min(answer.len());
        self.scanned = answer.len();
        let found = automaton.find(&answer[from..])?;
        Some(Stop {
            start: from + found.start(),
            end: from + found.end(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(stops: &[&str], parts: &[&str], expected: Option<&str>) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let (mut scanner, mut answer) = (StopScanner::new(&stops), Vec::new());
        let mut found = None;
        for part in parts {
            answer.extend_from_slice(part.as_bytes());
            found = scanner.scan(&answer);
            if found.is_some() {
                break;
            }
        }
        let text = found.map(|stop| String::from_utf8(answer[..stop.end].to_vec()).unwrap());
        assert_eq!(text.as_deref(), expected);
    }

    #[test]
    fn a_stop_text_over_three_tokens_is_found() {
        check(&["\nUser:"], &["Hello.\n", "Us", "er: more"], Some("Hello.\nUser:"));
    }

    #[test]
    fn the_stop_text_completed_first_wins() {
        check(&["abcd", "bc"], &["xabcdx"], Some("xabc"));
    }

    #[test]
    fn no_stop_text_stops_nothing() {
        check(&[], &["anything"], None);
        check(&[""], &["anything"], None);
        check(&["z"], &["anything"], None);
    }

    proptest! {
        #[test]
        fn splitting_the_answer_changes_nothing(
            answer in "[ab]{0,40}", stops in proptest::collection::vec("[ab]{1,4}", 0..4), cut in 0usize..40
        ) {
            let whole = StopScanner::new(&stops).scan(answer.as_bytes());
            let mut scanner = StopScanner::new(&stops);
            let cut = cut.min(answer.len());
            let split = scanner.scan(&answer.as_bytes()[..cut]).or_else(|| scanner.scan(answer.as_bytes()));
            prop_assert_eq!(whole.map(|stop| stop.end), split.map(|stop| stop.end));
        }
    }
}
