//! Weights in a prompt: `(word:1.2)`.

/// Takes out `:1.2` as in `(word:1.2)` and `<lora:name:0.8>`. Whole numbers from 3 stay: they may be an age.
pub(super) fn without_weights(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(':') {
        let (before, after) = rest.split_at(at);
        kept.push_str(before);
        kept.push(' ');
        let after = &after[1..];
        let number = after.trim_start();
        let len = number
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(number.len());
        let (number, behind) = number.split_at(len);
        let is_weight = number.contains('.') || matches!(number, "0" | "1" | "2");
        let ends = behind.chars().next().is_none_or(|c| !c.is_alphanumeric());
        rest = if is_weight && ends { behind } else { after };
    }
    kept.push_str(rest);
    kept
}

/// The groups `(…:-1)` of a text without their weights, inner ones first; no more of them than the text is long.
pub(super) fn below_zero(text: &str) -> Vec<&str> {
    let (mut open, mut colon, mut found, mut n_bytes) = (Vec::new(), None, Vec::new(), 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => open.push(at),
            b':' => colon = Some(at),
            b')' => {
                let Some(begin) = open.pop() else { continue };
                let Some(colon) = colon.filter(|colon| *colon > begin) else {
                    continue;
                };
                let weight = text.get(colon + 1..at).unwrap_or_default().trim();
                let is_below = weight.len() <= 32 && weight.parse::<f64>().is_ok_and(|weight| weight < 0.0);
                let group = text.get(begin + 1..colon).filter(|_| is_below).unwrap_or_default();
                n_bytes += group.len();
                if n_bytes > text.len() {
                    return found;
                }
                found.extend((!group.is_empty()).then_some(group));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::fold::words;
    use super::*;

    #[test]
    fn weights_go_but_ages_stay() {
        assert_eq!(
            words(&without_weights("(a cat:1.25) and age:8, b: 2")),
            ["a", "cat", "and", "age", "8", "b"]
        );
        assert_eq!(without_weights("x:1"), "x ");
        assert_eq!(words(&without_weights("x:1st")), ["x", "1st"]);
        assert_eq!(words(&without_weights(":::")), Vec::<String>::new());
    }

    #[test]
    fn groups_below_zero_are_told_from_others() {
        assert_eq!(
            below_zero("(a:-1), (b:1), ((c):-.5), (d : -2e0 ), (e"),
            ["a", "(c)", "d "]
        );
        assert_eq!(below_zero("(a (b:-1) c:-2)"), ["b", "a (b:-1) c"]);
        for none in ["a:-1)", "(:-1)", "(a:-x)", "(a:)", ")(:-1", "(ä:-", ""] {
            assert!(below_zero(none).is_empty(), "{none}");
        }
    }
}
