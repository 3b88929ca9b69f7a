//! Samplers that look at the tokens before.

use std::collections::HashMap;

use super::candidates::Candidates;

/// Makes tokens of the last `range` of `history` less likely: a positive logit is divided by the penalty, another
/// multiplied. Tokens that stand only in the older half of the range (the middle one of an odd number is old) get `1 + (penalty - 1) * slope` instead.
/// `presence` is subtracted in both cases. The prompt counts as the answer does.
///
/// (Keskar et al. 2019, <https://arxiv.org/abs/1909.05858>, with llama.cpp's treatment of negative logits; the slope is
/// KoboldCpp's two halves, which replaced KoboldAI's curve)
pub fn repetition(candidates: &mut Candidates, history: &[u32], penalty: Repetition) {
    let range = (penalty.range as usize).min(history.len());
    if range == 0 || (penalty.factor == 1.0 && penalty.presence == 0.0) {
        return;
    }
    let window = &history[history.len() - range..];
    let far = 1.0 + (penalty.factor - 1.0) * penalty.slope;
    // Nearer tokens overwrite older ones.
    let factors: HashMap<u32, f32> = window
        .iter()
        .enumerate()
        .map(|(place, token)| (*token, if place * 2 < range { far } else { penalty.factor }))
        .collect();
    for item in &mut candidates.items {
        if let Some(factor) = factors.get(&item.token) {
            let logit = if item.logit <= 0.0 {
                item.logit * factor
            } else {
                item.logit / factor
            };
            item.logit = (logit - penalty.presence).clamp(-1e30, 1e30);
        }
    }
    candidates.sorted = false;
}

/// Parameters of [`repetition`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repetition {
    /// At least 1; 1 is off.
    pub factor: f32,
    /// Tokens looked back.
    pub range: u32,
    /// Share of the penalty in the older half.
    pub slope: f32,
    /// Subtracted from the logit.
    pub presence: f32,
}

/// What DRY subtracts, by token: `multiplier * base^(n - allowed)` for the longest repetition of n >= allowed tokens
/// that the token would prolong. Repetitions do not reach back across a token for which `breaks` is true.
///
/// (p-e-w 2024, <https://github.com/oobabooga/text-generation-webui/pull/5677>. The lengths of all repeated suffixes
/// come from the Z function of the reversed history, linear in its length.)
pub fn dry(history: &[u32], rule: DryRule, breaks: impl Fn(u32) -> bool) -> HashMap<u32, f32> {
    let mut penalties = HashMap::new();
    if rule.multiplier <= 0.0 {
        return penalties;
    }
    let range = (rule.range as usize).min(history.len());
    let window = &history[history.len() - range..];
    let limit = window.iter().rev().take_while(|token| !breaks(**token)).count();
    let allowed = rule.allowed_length as usize;
    if limit < allowed {
        return penalties;
    }
    let reversed: Vec<u32> = window.iter().rev().copied().collect();
    let lengths = z_function(&reversed);
    for (place, length) in lengths.iter().enumerate().skip(1) {
        let length = (*length).min(limit);
        if length < allowed {
            continue;
        }
        // The suffix of `length` tokens stood before `window[range - place]`, in reversed order `reversed[place - 1]`.
        let exponent = (length - allowed) as f32;
        let penalty = (rule.multiplier * rule.base.powf(exponent)).min(1e30);
        let entry = penalties.entry(reversed[place - 1]).or_insert(0.0f32);
        *entry = entry.max(penalty);
    }
    penalties
}

/// Parameters of [`dry`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DryRule {
    /// 0 is off.
    pub multiplier: f32,
    /// At least 1.
    pub base: f32,
    /// Free length in tokens.
    pub allowed_length: u32,
    /// Tokens looked back.
    pub range: u32,
}

/// For each place, how many items from there on equal the beginning. (Gusfield 1997, §1.4)
fn z_function(items: &[u32]) -> Vec<usize> {
    let mut z = vec![0; items.len()];
    let (mut left, mut right) = (0, 0);
    for place in 1..items.len() {
        let mut length = if place < right {
            z[place - left].min(right - place)
        } else {
            0
        };
        while place + length < items.len() && items[length] == items[place + length] {
            length += 1;
        }
        if place + length > right {
            (left, right) = (place, place + length);
        }
        z[place] = length;
    }
    z
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_z_function_counts_repeated_beginnings() {
        assert_eq!(z_function(&[1, 1, 2, 1, 1, 2, 3]), [0, 1, 0, 3, 1, 0, 0]);
    }

    #[test]
    fn dry_penalises_what_would_prolong_the_longest_repetition() {
        // … 1 2 3 9 … 1 2 3: 9 would make it four.
        let rule = DryRule {
            multiplier: 0.8,
            base: 2.0,
            allowed_length: 2,
            range: 100,
        };
        let penalties = dry(&[1, 2, 3, 9, 5, 1, 2, 3], rule, |_| false);
        assert_eq!(penalties, HashMap::from([(9, 1.6)]));
        let broken = dry(&[1, 2, 3, 9, 5, 1, 2, 3], rule, |token| token == 2);
        assert!(broken.is_empty());
    }
}
