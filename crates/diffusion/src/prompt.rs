//! A prompt as typed, and its stretches of text with their weights.
//!
//! `(x)` multiplies the weight around it by 1.1, `(x:w)` replaces it by `w`, `\(` and `\)` are parentheses of the text,
//! `###` begins the negative prompt.

/// Groups nested deeper than this are taken as text; nobody means 64 levels.
const MAX_NESTING: usize = 64;

/// A stretch of text and how much it counts; 1 is neutral.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// The text, escapes undone.
    pub text: String,
    /// Finite; may be negative.
    pub weight: f32,
}

/// The part before the first `###` and the part after it, up to a second one. Nothing is trimmed.
pub fn split_negative(prompt: &str) -> (&str, &str) {
    let mut parts = prompt.split("###");
    (parts.next().unwrap_or(""), parts.next().unwrap_or(""))
}

/// Splits a prompt into weighted stretches of text, in order.
pub fn segments(prompt: &str) -> Vec<Segment> {
    let escaped = prompt.replace("\\)", "\0\u{1}").replace("\\(", "\0\u{2}");
    let mut out = Vec::new();
    // What is still to be looked at, the next at the end: (text, its weight, nesting, whether it is one item of a split).
    let mut todo = vec![(escaped.as_str(), 1.0, 0, false)];
    while let Some((text, weight, depth, is_item)) = todo.pop() {
        if !is_item {
            todo.extend(items(text).into_iter().rev().map(|item| (item, weight, depth, true)));
            continue;
        }
        match text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
            Some(inside) if depth < MAX_NESTING => {
                let (inside, weight) = group_weight(inside, weight);
                todo.push((inside, weight, depth + 1, false));
            }
            _ => out.push(Segment {
                text: text.replace("\0\u{1}", ")").replace("\0\u{2}", "("),
                weight: weight as f32,
            }),
        }
    }
    out
}

/// Cuts a text into its outermost groups, parentheses included, and what lies between them.
fn items(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut level) = (0usize, 0i64);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => {
                if level == 0 {
                    if at > start {
                        out.push(&text[start..at]);
                    }
                    start = at;
                }
                level += 1;
            }
            b')' => {
                level -= 1;
                if level == 0 {
                    out.push(&text[start..=at]);
                    start = at + 1;
                }
            }
            _ => {}
        }
    }
    if start < text.len() {
        out.push(&text[start..]);
    }
    out
}

/// The text of a group without its weight, and that weight: what follows the last colon if it is a number, else 1.1
/// times the weight around it.
fn group_weight(inside: &str, around: f64) -> (&str, f64) {
    if let Some(colon) = inside.rfind(':').filter(|at| *at > 0)
        && let Some(weight) = python_float(&inside[colon + 1..])
    {
        return (&inside[..colon], weight);
    }
    (inside, around * 1.1)
}

/// What Python's `float()` takes, without its infinities and not-a-number, which no weight can be.
fn python_float(text: &str) -> Option<f64> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'_' && !(at > 0 && digit(at - 1) && digit(at + 1)) {
            return None;
        }
    }
    let value: f64 = text.replace('_', "").parse().ok()?;
    (value as f32).is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prompt: &str, expected: &[(&str, f32)]) {
        let got: Vec<_> = segments(prompt);
        let expected: Vec<_> = expected
            .iter()
            .map(|(text, weight)| Segment {
                text: (*text).into(),
                weight: *weight,
            })
            .collect();
        assert_eq!(got, expected, "{prompt}");
    }

    #[test]
    fn weights_multiply_without_a_number_and_replace_with_one() {
        check("((a):1.5)", &[("a", 1.65)]);
        check("((a:1.2):1.5)", &[("a", 1.2)]);
        check("a (b) c", &[("a ", 1.0), ("b", 1.1), (" c", 1.0)]);
        check("(b:x)", &[("b:x", 1.1)]);
        check("(b: 1.3 )", &[("b", 1.3)]);
        check("(b:.5)(c:1e1)", &[("b", 0.5), ("c", 10.0)]);
        check("(b:nan)", &[("b:nan", 1.1)]);
        check("[a]", &[("[a]", 1.0)]);
    }

    #[test]
    fn stray_and_escaped_parentheses_are_text() {
        check("(open", &[("(open", 1.0)]);
        check("a) (b)", &[("a) (b)", 1.0)]);
        check("\\(a\\)", &[("(a)", 1.0)]);
        check("()", &[]);
    }

    #[test]
    fn a_hundred_thousand_parentheses_end_as_text() {
        let deep = "(".repeat(100_000) + "a" + &")".repeat(100_000);
        let got = segments(&deep);
        assert_eq!(got.len(), 1);
        assert!(got[0].text.contains('a') && got[0].weight.is_finite());
    }

    #[test]
    fn the_negative_part_ends_at_a_second_mark() {
        assert_eq!(split_negative("a### b ### c"), ("a", " b "));
        assert_eq!(split_negative("a"), ("a", ""));
    }
}
