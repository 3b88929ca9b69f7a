//! The samplers of one request, applied token by token.

use std::collections::HashMap;
use std::sync::Arc;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::candidates::Candidates;
use super::mirostat::Mu;
use super::penalties::{DryRule, Repetition};
use super::settings::{Sampling, Step};
use super::{filters, mirostat, penalties, temperature};

/// No token can be chosen: every logit was minus infinity or no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's output holds no finite number")]
pub struct NoCandidate;

/// Chooses tokens for one request. Its random stream depends on the seed and on nothing else.
#[derive(Debug)]
pub struct Chain {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Prompt and answer so far, as far back as any sampler looks.
    history: Vec<u32>,
    /// How often each token stands in the answer so far; counted only where somebody asks.
    answer: HashMap<u32, u32>,
    mu: Mu,
    /// Tokens that a repetition does not reach across, sorted.
    breakers: Arc<[u32]>,
    /// Tokens that may never be chosen.
    banned: Arc<[u32]>,
    candidates: Candidates,
}

/// Only this many of the likeliest tokens enter the chain, as in KoboldCpp; what lies beyond has next to no weight,
/// and a vocabulary of 250,000 would cost more to sort than a small model to run.
const ENTERING: usize = 3_000;

impl Chain {
    /// For `sampling` (clamped here) after `prompt`.
    pub fn new(sampling: Sampling, seed: u64, prompt: &[u32]) -> Self {
        let sampling = sampling.clamped();
        let reach = sampling.rep_pen_range.max(sampling.dry.range) as usize;
        let mu = Mu(2.0 * sampling.mirostat.map_or(0.0, |mirostat| mirostat.tau));
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            history: prompt[prompt.len().saturating_sub(reach)..].to_vec(),
            answer: HashMap::new(),
            mu,
            sampling,
            breakers: Arc::new([]),
            banned: Arc::new([]),
            candidates: Candidates::default(),
        }
    }

    /// With tokens that end a repetition for DRY. Must be sorted.
    pub fn with_breakers(mut self, breakers: Arc<[u32]>) -> Self {
        self.breakers = breakers;
        self
    }

    /// With tokens that may never be chosen.
    pub fn with_banned(mut self, banned: Arc<[u32]>) -> Self {
        self.banned = banned;
        self
    }

    /// Chooses the next token from one logit per token of the vocabulary, and remembers it.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32, NoCandidate> {
        self.choose_among(logits, |_| true)
    }

    /// The same among the tokens that are allowed.
    pub fn choose_among(&mut self, logits: &[f32], is_allowed: impl Fn(u32) -> bool) -> Result<u32, NoCandidate> {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.fill(logits);
        candidates.items.retain(|item| is_allowed(item.token));
        self.bias(&mut candidates);
        let chosen = self.narrow_and_draw(&mut candidates);
        self.candidates = candidates;
        let token = chosen.ok_or(NoCandidate)?;
        self.history.push(token);
        if self.sampling.answer.act() {
            *self.answer.entry(token).or_insert(0) += 1;
        }
        Ok(token)
    }

    /// Runs the steps before the draw on `candidates`, in the request's order.
    pub fn narrow(&self, candidates: &mut Candidates) {
        for step in &self.sampling.order {
            self.step(*step, candidates);
        }
    }

    fn narrow_and_draw(&mut self, candidates: &mut Candidates) -> Option<u32> {
        // The same number of dice for every token, whatever the samplers do with them: one setting more or less
        // does not shift the rest of the text's random numbers.
        let (first, second) = (self.dice(), self.dice());
        if candidates.is_empty() {
            return None;
        }
        candidates.keep_largest(ENTERING);
        if let Some(rule) = self.sampling.mirostat {
            self.step(Step::RepPen, candidates);
            self.step(Step::Temperature, candidates);
            return mirostat::choose(candidates, rule, &mut self.mu, first).map(|chosen| chosen.token);
        }
        self.narrow(candidates);
        if second < f64::from(self.sampling.xtc.probability) {
            filters::xtc(candidates, self.sampling.xtc.threshold);
        }
        candidates.draw(first).map(|chosen| chosen.token)
    }

    fn step(&self, step: Step, candidates: &mut Candidates) {
        let sampling = &self.sampling;
        match step {
            Step::TopK => filters::top_k(candidates, sampling.top_k),
            Step::TopA => filters::top_a(candidates, sampling.top_a),
            Step::TopP => {
                filters::top_p(candidates, sampling.top_p);
                filters::min_p(candidates, sampling.min_p);
            }
            Step::Tfs => filters::tfs(candidates, sampling.tfs),
            Step::Typical => filters::typical(candidates, sampling.typical),
            Step::Temperature => {
                let (centre, range) = (sampling.temperature, sampling.dynatemp_range);
                if range > 0.0 {
                    temperature::dynamic(candidates, centre - range, centre + range, sampling.dynatemp_exponent);
                } else {
                    temperature::temperature(candidates, centre);
                }
                temperature::smoothing(candidates, sampling.smoothing_factor);
            }
            Step::RepPen => penalties::repetition(
                candidates,
                &self.history,
                Repetition {
                    factor: sampling.rep_pen,
                    range: sampling.rep_pen_range,
                    slope: sampling.rep_pen_slope,
                    presence: sampling.presence_penalty,
                },
            ),
        }
    }

    /// What acts on single tokens before any narrowing: bans, biases, the answer's own tokens, DRY.
    fn bias(&self, candidates: &mut Candidates) {
        let dry = penalties::dry(
            &self.history,
            DryRule {
                multiplier: self.sampling.dry.multiplier,
                base: self.sampling.dry.base,
                allowed_length: self.sampling.dry.allowed_length,
                range: self.sampling.dry.range,
            },
            |token| self.breakers.binary_search(&token).is_ok(),
        );
        let penalties = self.sampling.answer;
        let written = self.answer.iter();
        let written = written.map(|(token, count)| (*token, -penalties.presence - penalties.frequency * *count as f32));
        let biases = self.sampling.logit_bias.iter().copied();
        for (token, bias) in biases.chain(written).chain(dry.into_iter().map(|(t, p)| (t, -p))) {
            if let Some(item) = find(candidates, token) {
                item.logit = (item.logit + bias).clamp(-1e30, 1e30);
            }
        }
        if !self.banned.is_empty() {
            candidates.items.retain(|item| !self.banned.contains(&item.token));
        }
    }

    /// A number in 0..1 with 53 random bits.
    fn dice(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The candidate of `token` while the candidates still stand in the order of the vocabulary.
fn find(candidates: &mut Candidates, token: u32) -> Option<&mut super::Candidate> {
    let place = candidates.items.binary_search_by_key(&token, |item| item.token).ok()?;
    candidates.items.get_mut(place)
}
