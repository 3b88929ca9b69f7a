//! Mirostat: keeps the surprise of the text near a target. (Basu et al. 2020, <https://arxiv.org/abs/2007.14966>)

use super::candidates::{Candidate, Candidates};
use super::settings::Mirostat;

/// What is carried from token to token: the largest surprise allowed, in bits; starts at `2 * tau`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mu(pub f32);

/// Chooses a token and moves `mu`: candidates whose surprise is above `mu` (version 2), or beyond the k that the
/// estimated Zipf exponent gives for it (version 1), are dropped, one is drawn with `dice` in 0..1, and
/// `mu -= eta * (surprise - tau)`.
pub fn choose(candidates: &mut Candidates, rule: Mirostat, mu: &mut Mu, dice: f64) -> Option<Candidate> {
    candidates.softmax();
    let keep = if rule.second {
        candidates.probabilities.partition_point(|p| -p.log2() <= mu.0)
    } else {
        zipf_k(&candidates.probabilities, mu.0, candidates.len())
    };
    candidates.truncate(keep);
    let chosen = candidates.draw(dice)?;
    let place = candidates.items.iter().position(|item| item.token == chosen.token)?;
    let surprise = -candidates.probabilities[place].max(f32::MIN_POSITIVE).log2();
    mu.0 = (mu.0 - rule.eta * (surprise - rule.tau)).clamp(0.0, 100.0);
    Some(chosen)
}

/// Candidates to keep in version 1: the Zipf exponent s is estimated from the first 100 probabilities, then
/// `k = ((e * 2^mu) / (1 - n^-e))^(1/s)` with `e = s - 1`.
fn zipf_k(probabilities: &[f32], mu: f32, vocabulary: usize) -> usize {
    const ESTIMATED_FROM: usize = 100;
    let (mut tb, mut tt) = (0.0f64, 0.0f64);
    for place in 0..ESTIMATED_FROM.min(probabilities.len().saturating_sub(1)) {
        let t = ((place + 2) as f64 / (place + 1) as f64).ln();
        let ratio = f64::from(probabilities[place]) / f64::from(probabilities[place + 1].max(f32::MIN_POSITIVE));
        tb += t * ratio.max(1e-30).ln();
        tt += t * t;
    }
    let s = if tt > 0.0 { tb / tt } else { 1.0 };
    let e = s - 1.0;
    let k = ((e * f64::from(mu).exp2()) / (1.0 - (vocabulary.max(2) as f64).powf(-e))).powf(1.0 / s);
    if k.is_finite() {
        (k as usize).max(1)
    } else {
        probabilities.len().max(1)
    }
}
