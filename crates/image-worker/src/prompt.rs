//! From the prompt as typed, with its textual inversions and triggers, to the prompt the encoder reads.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Longest prompt that is read, in characters; the rest is dropped, as no encoder would be done with it in time.
pub const MAX_CHARS: usize = 64_000;
/// Most wildcards resolved in one prompt.
const MAX_WILDCARDS: usize = 1_000;

/// A textual inversion that was found, as the prompt names it.
#[derive(Clone, Debug, PartialEq)]
pub struct Inversion {
    /// Letters, digits, `-` and `_`: what stands after `embedding:`.
    pub name: String,
    /// How much it counts.
    pub strength: f64,
    /// Where it is written.
    pub place: Place,
}

/// Where a textual inversion is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In front of the prompt.
    Prompt,
    /// At the end of the negative prompt.
    Negative,
    /// Nowhere: the requester wrote it himself.
    Nowhere,
}

/// The positive and the negative part. What follows the first `###` is negative; further marks are blanks.
pub fn split(prompt: &str) -> (String, String) {
    let end = prompt.char_indices().nth(MAX_CHARS).map_or(prompt.len(), |(at, _)| at);
    let prompt = &prompt[..end];
    let (positive, negative) = prompt.split_once("###").unwrap_or((prompt, ""));
    // Some write more than three: `####` leaves one, which means nothing.
    let negative = negative.replace("###", " ");
    (
        positive.trim().to_owned(),
        negative.trim_start_matches('#').trim().to_owned(),
    )
}

/// The whole prompt for the encoder: wildcards resolved by the seed, inversions and triggers put in their places.
pub fn compose(prompt: &str, seed: u64, inversions: &[Inversion], triggers: &[String]) -> String {
    let (positive, negative) = split(prompt);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut positive = wildcards(&positive, &mut random);
    let mut negative = wildcards(&negative, &mut random);
    for inversion in inversions {
        let written = format!("(embedding:{}:{})", inversion.name, inversion.strength);
        match inversion.place {
            Place::Prompt => positive = format!("{written}, {positive}"),
            Place::Negative if negative.is_empty() => negative = written,
            Place::Negative => negative = format!("{negative}, {written}"),
            Place::Nowhere => {}
        }
    }
    for trigger in triggers {
        positive = format!("{trigger}, {positive}");
    }
    // The mark itself cannot come in by a trigger.
    let positive = positive.replace("###", " ");
    if negative.is_empty() {
        positive
    } else {
        format!("{positive}###{negative}")
    }
}

/// Replaces each `{a|b|c}` by one of its parts, inner ones first.
fn wildcards(text: &str, random: &mut ChaCha8Rng) -> String {
    let mut out = String::with_capacity(text.len());
    // Where in `out` each open brace stands, and whether a bar was seen since.
    let mut open: Vec<usize> = Vec::new();
    let mut resolved = 0;
    for c in text.chars() {
        match c {
            '{' => {
                open.push(out.len());
                out.push(c);
            }
            '}' if resolved < MAX_WILDCARDS => match open.pop() {
                Some(at) if out[at..].contains('|') => {
                    let parts: Vec<&str> = out[at + 1..].split('|').collect();
                    let chosen = parts[random.random_range(0..parts.len())].to_owned();
                    out.truncate(at);
                    out.push_str(&chosen);
                    resolved += 1;
                }
                _ => out.push(c),
            },
            _ => out.push(c),
        }
    }
    out
}

/// A trained word without the comma behind it, if it is one.
fn clean(word: &str) -> Option<String> {
    let word = word.trim().trim_end_matches(',').trim();
    (!word.is_empty() && word.chars().count() <= 200).then(|| word.to_owned())
}

/// A LoRA's title and the words it was trained on, at most fifty of them.
pub fn words(title: &str, trained: &[String]) -> Vec<String> {
    let title = clean(&title.chars().take(200).collect::<String>());
    let trained = trained.iter().filter_map(|word| clean(word));
    title.into_iter().chain(trained.take(50)).collect()
}

/// The trained words that `inject_trigger` asks for: `any`, `all`, or the one that is most like it.
pub fn triggers(wanted: &str, trained: &[String], seed: u64) -> Vec<String> {
    let trained: Vec<String> = trained.iter().filter_map(|word| clean(word)).take(50).collect();
    let Some(last) = trained.len().checked_sub(1) else {
        return Vec::new();
    };
    let wanted = wanted.trim().to_lowercase();
    match wanted.as_str() {
        "all" => trained,
        "any" => {
            let one = ChaCha8Rng::seed_from_u64(seed).random_range(0..=last);
            vec![trained[one].clone()]
        }
        _ => {
            let exact = trained.iter().find(|word| word.to_lowercase() == wanted);
            let within = || trained.iter().find(|word| word.to_lowercase().contains(&wanted));
            let like = || {
                let score = |word: &&String| strsim::normalized_levenshtein(&word.to_lowercase(), &wanted);
                let best = trained.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
                best.filter(|word| score(word) > LIKENESS)
            };
            exact.or_else(within).or_else(like).cloned().into_iter().collect()
        }
    }
}

/// How alike a trained word must be to a wanted one.
const LIKENESS: f64 = 0.65;

#[cfg(test)]
mod tests {
    use super::*;

    fn inversion(name: &str, strength: f64, place: Place) -> Inversion {
        Inversion {
            name: name.into(),
            strength,
            place,
        }
    }

    #[test]
    fn what_follows_the_first_mark_is_negative() {
        let check = |prompt: &str, expected: (&str, &str)| {
            let (positive, negative) = split(prompt);
            assert_eq!((positive.as_str(), negative.as_str()), expected, "{prompt}");
        };
        check("a cat", ("a cat", ""));
        check("a cat ### dog", ("a cat", "dog"));
        check("a ### b ### c", ("a", "b   c"));
        check("a ####b", ("a", "b"));
        check("###only", ("", "only"));
    }

    #[test]
    fn inversions_and_triggers_stand_where_they_belong() {
        let made = compose(
            "a cat ### dog",
            1,
            &[
                inversion("12", 1.0, Place::Prompt),
                inversion("7", 0.5, Place::Negative),
                inversion("9", 1.0, Place::Nowhere),
            ],
            &["masterpiece".into()],
        );
        assert_eq!(made, "masterpiece, (embedding:12:1), a cat###dog, (embedding:7:0.5)");
        assert_eq!(
            compose("a", 1, &[inversion("7", 1.0, Place::Negative)], &[]),
            "a###(embedding:7:1)"
        );
    }

    #[test]
    fn a_wildcard_is_one_of_its_parts_and_the_seed_decides() {
        let of = |seed| compose("a {red|green|blue} {cat} {x|{y|z}} {open|", seed, &[], &[]);
        assert_eq!(of(5), of(5));
        let all: std::collections::BTreeSet<String> = (0..64).map(of).collect();
        assert_eq!(all.len(), 9);
        assert!(
            all.iter()
                .all(|text| text.contains("{cat}") && text.ends_with("{open|") && !text.contains("{red"))
        );
    }

    #[test]
    fn triggers_are_any_all_or_the_nearest() {
        let trained = ["Blue Robe,", "sword", " ", "long hair"].map(String::from);
        assert_eq!(triggers("all", &trained, 1), ["Blue Robe", "sword", "long hair"]);
        assert_eq!(triggers("any", &trained, 1).len(), 1);
        assert_eq!(triggers("SWORD", &trained, 1), ["sword"]);
        assert_eq!(triggers("hair", &trained, 1), ["long hair"]);
        assert_eq!(triggers("sward", &trained, 1), ["sword"]);
        assert!(triggers("castle", &trained, 1).is_empty());
        assert!(triggers("any", &[], 1).is_empty());
    }

    #[test]
    fn a_hundred_thousand_characters_and_braces_are_cut_and_quick() {
        let begun = std::time::Instant::now();
        let made = compose(&"{".repeat(100_000), 1, &[], &[]);
        assert_eq!(made.chars().count(), MAX_CHARS);
        let many = compose(&"{a|b}".repeat(20_000), 1, &[], &[]);
        assert!(many.len() < 100_000);
        assert!(begun.elapsed().as_secs() < 5);
    }
}
