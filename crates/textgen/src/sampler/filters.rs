//! Samplers that narrow the candidates. Each keeps at least one and does nothing at its "off" value.

use super::candidates::Candidates;

/// Keeps the `k` likeliest; 0 is off. (Fan et al. 2018, <https://arxiv.org/abs/1805.04833>)
pub fn top_k(candidates: &mut Candidates, k: u32) {
    if k > 0 {
        candidates.keep_largest(usize::try_from(k).unwrap_or(usize::MAX));
    }
}

/// Drops tokens less likely than `a * p_max²`; 0 is off.
/// (BlinkDL's top-a, <https://github.com/BlinkDL/RWKV-LM#the-top-a-sampling-method>, with exponent 2)
pub fn top_a(candidates: &mut Candidates, a: f32) {
    if a <= 0.0 || candidates.len() <= 1 {
        return;
    }
    let probabilities = candidates.softmax();
    let threshold = a * probabilities[0] * probabilities[0];
    let keep = probabilities.partition_point(|p| *p >= threshold);
    candidates.truncate(keep);
}

/// Keeps the fewest likeliest tokens whose probabilities reach `p`; 1 is off.
/// (nucleus sampling, Holtzman et al. 2019, <https://arxiv.org/abs/1904.09751>)
pub fn top_p(candidates: &mut Candidates, p: f32) {
    if p >= 1.0 || candidates.is_empty() {
        return;
    }
    let mut sum = 0.0;
    let keep = candidates.softmax().iter().position(|probability| {
        sum += probability;
        sum >= p
    });
    if let Some(last) = keep {
        candidates.truncate(last + 1);
    }
}

/// Drops tokens less likely than `p * p_max`; 0 is off. (Nguyen et al. 2024, <https://arxiv.org/abs/2407.01082>)
pub fn min_p(candidates: &mut Candidates, p: f32) {
    if p <= 0.0 || candidates.is_empty() {
        return;
    }
    candidates.sort();
    let floor = candidates.items[0].logit + p.ln();
    let keep = candidates.items.partition_point(|item| item.logit >= floor);
    candidates.truncate(keep);
}

/// Tail free sampling: cuts where the curvature of the sorted probabilities has been used up to `z`; 1 is off.
///
/// With p sorted down, d_i = |(p_i - p_{i+1}) - (p_{i+1} - p_{i+2})| normalised to sum 1 (uniform when the sum is below
/// 1e-6); candidates before the first i >= 1 at which d_0 + … + d_i > z are kept.
/// (Phénix & Egan 2019, <https://www.trentonbricken.com/Tail-Free-Sampling/>; as llama.cpp had it until late 2024)
pub fn tfs(candidates: &mut Candidates, z: f32) {
    if z >= 1.0 || candidates.len() <= 2 {
        return;
    }
    let probabilities = candidates.softmax();
    let curvature =
        |i: usize| ((probabilities[i] - probabilities[i + 1]) - (probabilities[i + 1] - probabilities[i + 2])).abs();
    let count = probabilities.len() - 2;
    let total: f32 = (0..count).map(curvature).sum();
    let mut sum = 0.0;
    let cut = (0..count).find(|i| {
        sum += if total > 1e-6 {
            curvature(*i) / total
        } else {
            1.0 / count as f32
        };
        sum > z && *i >= 1
    });
    if let Some(keep) = cut {
        candidates.truncate(keep);
    }
}

/// Locally typical sampling: keeps the tokens whose surprise is nearest to the entropy, until they hold more than `p`;
/// 1 is off. (Meister et al. 2022, <https://arxiv.org/abs/2202.00666>)
pub fn typical(candidates: &mut Candidates, p: f32) {
    if p >= 1.0 || candidates.len() <= 1 {
        return;
    }
    candidates.softmax();
    let entropy = candidates.entropy();
    let shift = |probability: f32| (-probability.ln() - entropy).abs();
    let mut by_shift: Vec<usize> = (0..candidates.len()).collect();
    by_shift.sort_by(|a, b| shift(candidates.probabilities[*a]).total_cmp(&shift(candidates.probabilities[*b])));
    let mut sum = 0.0;
    let keep = by_shift.iter().position(|index| {
        sum += candidates.probabilities[*index];
        sum > p
    });
    by_shift.truncate(keep.map_or(by_shift.len(), |last| last + 1));
    candidates.items = by_shift.iter().map(|index| candidates.items[*index]).collect();
    candidates.sorted = false;
}

/// Exclude top choices: of the tokens at least `threshold` likely, keeps the least likely and everything below.
/// The caller has thrown the dice. (p-e-w 2024, <https://github.com/oobabooga/text-generation-webui/pull/6335>)
pub fn xtc(candidates: &mut Candidates, threshold: f32) {
    if threshold > 0.5 || candidates.len() <= 1 {
        return;
    }
    let above = candidates.softmax().partition_point(|p| *p >= threshold);
    if above > 1 {
        candidates.items.drain(..above - 1);
    }
}
