//! Words with one slip of the finger: a letter left out, put in, changed, or two in the wrong order.

/// Shorter words are too near to too many others.
const LEAST_LETTERS: usize = 7;
/// Of words with any ending only the beginning is compared, so that must be longer.
const LEAST_BEGINNING: usize = 8;

/// Whether a word of a list is long enough for slips to be told from other words.
pub(super) fn is_long(word: &str, is_beginning: bool) -> bool {
    word.chars().count() >= if is_beginning { LEAST_BEGINNING } else { LEAST_LETTERS }
}

/// Whether `read` is `meant` with one slip. The first letter must be right, as readers and encoders go by it.
pub(super) fn is_slip(read: &[char], meant: &[char]) -> bool {
    if read.first() != meant.first() || read.len().abs_diff(meant.len()) > 1 {
        return false;
    }
    let same = read.iter().zip(meant).take_while(|(a, b)| a == b).count();
    let (read, meant) = (&read[same..], &meant[same..]);
    match (read, meant) {
        ([], []) => false,
        ([], [_]) | ([_], []) => true,
        ([a, rest @ ..], [b, more @ ..]) => {
            let is_turned =
                matches!((rest, more), ([c, rest @ ..], [d, more @ ..]) if a == d && b == c && rest == more);
            rest == more || rest == meant || read == more || is_turned
        }
        _ => false,
    }
}

/// The same where any ending may follow `meant`.
pub(super) fn begins_with_slip(read: &[char], meant: &[char]) -> bool {
    let lengths = meant.len() - 1..=meant.len() + 1;
    lengths
        .into_iter()
        .any(|n| read.get(..n).is_some_and(|begin| is_slip(begin, meant)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(word: &str) -> Vec<char> {
        word.chars().collect()
    }

    #[test]
    fn one_slip_is_found_and_two_are_not() {
        let meant = letters("orange");
        for read in [
            "orage", "orrange", "oraxge", "oragne", "orang", "orangex", "ornage", "orangc", "oange",
        ] {
            assert!(is_slip(&letters(read), &meant), "{read}");
        }
        for read in [
            "orange", "range", "xrange", "orxxge", "oragen", "roange", "orag", "", "o", "orangexx",
        ] {
            assert!(!is_slip(&letters(read), &meant), "{read}");
        }
        assert!(begins_with_slip(&letters("oragneade"), &meant));
        assert!(!begins_with_slip(&letters("oxaxgeade"), &meant));
    }
}
