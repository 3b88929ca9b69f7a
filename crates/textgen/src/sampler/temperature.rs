//! Samplers that change the candidates' weights.

use super::candidates::Candidates;

/// Divides every logit by `temperature`; 0 or less keeps only the likeliest.
pub fn temperature(candidates: &mut Candidates, temperature: f32) {
    if temperature <= 0.0 {
        candidates.keep_largest(1);
    } else {
        divide(candidates, temperature);
    }
}

/// Temperature that grows with the entropy H of the candidates: `low + (high - low) * (H / ln n)^exponent`.
/// (kalomaze 2023, <https://github.com/ggml-org/llama.cpp/pull/4972>)
pub fn dynamic(candidates: &mut Candidates, low: f32, high: f32, exponent: f32) {
    if candidates.len() <= 1 {
        return;
    }
    candidates.softmax();
    let largest_entropy = (candidates.len() as f32).ln();
    let share = (candidates.entropy() / largest_entropy).clamp(0.0, 1.0);
    temperature(
        candidates,
        low.max(0.0) + (high.max(0.0) - low.max(0.0)) * share.powf(exponent),
    );
}

/// Quadratic sampling: with h the largest logit, each becomes `h - factor * (logit - h)²`; 0 is off.
/// (kalomaze 2024, <https://github.com/oobabooga/text-generation-webui/pull/5403>)
pub fn smoothing(candidates: &mut Candidates, factor: f32) {
    if factor <= 0.0 || candidates.len() <= 1 {
        return;
    }
    candidates.sort();
    let highest = candidates.items[0].logit;
    for item in &mut candidates.items {
        let below = item.logit - highest;
        item.logit = (highest - factor * below * below).max(-1e30);
    }
}

fn divide(candidates: &mut Candidates, temperature: f32) {
    for item in &mut candidates.items {
        item.logit = (item.logit / temperature).clamp(-1e30, 1e30);
    }
}
