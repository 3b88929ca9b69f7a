//! The numbers of a request, and their ranges.

use serde::{Deserialize, Serialize};

/// How the next token is chosen. Defaults are what KoboldCpp uses for a key that a client left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token. 0..=5, default 0.75.
    pub temperature: f32,
    /// Half the width of the dynamic temperature's range; 0 is off. 0..=5, default 0.
    pub dynatemp_range: f32,
    /// Curve from entropy to dynamic temperature. 0..=5, default 1.
    pub dynatemp_exponent: f32,
    /// Quadratic sampling; 0 is off. 0..=10, default 0.
    pub smoothing_factor: f32,
    /// Keeps the likeliest k; 0 is off. Default 100.
    pub top_k: u32,
    /// Drops what is below `top_a * max²`; 0 is off. 0..=1, default 0.
    pub top_a: f32,
    /// Keeps the smallest set that holds this much probability; 1 is off. 0..=1, default 0.92.
    pub top_p: f32,
    /// Drops what is below `min_p * max`; 0 is off. 0..=1, default 0.
    pub min_p: f32,
    /// Tail free sampling; 1 is off. 0..=1, default 1.
    pub tfs: f32,
    /// Locally typical sampling; 1 is off. 0..=1, default 1.
    pub typical: f32,
    /// Divides (or, below zero, multiplies) logits of tokens seen lately; 1 is off. 1..=3, default 1.
    pub rep_pen: f32,
    /// Tokens looked back, prompt included. Default 320.
    pub rep_pen_range: u32,
    /// Share of the penalty for the older half of the range. 0..=10, default 1.
    pub rep_pen_slope: f32,
    /// Subtracted from logits of tokens seen within `rep_pen_range`, prompt included: KoboldCpp's meaning, in the step
    /// [`Step::RepPen`]. 0 is off. -2..=2, default 0.
    pub presence_penalty: f32,
    /// OpenAI's penalties, which look at the answer alone; off by default.
    pub answer: AnswerPenalties,
    /// Order of the steps; each acts once. Default [`Step::ORDER`].
    pub order: Vec<Step>,
    /// Excludes top choices; off by default.
    pub xtc: Xtc,
    /// Penalises growing repetitions; off by default.
    pub dry: Dry,
    /// Steers surprise instead of filtering; off by default.
    pub mirostat: Option<Mirostat>,
    /// Added to the logits of single tokens: (token, bias in -100..=100). At most 512.
    pub logit_bias: Vec<(u32, f32)>,
}

/// One step of the chain; the numbers are those of `sampler_order` on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// 0
    TopK,
    /// 1
    TopA,
    /// 2, followed by min_p
    TopP,
    /// 3
    Tfs,
    /// 4
    Typical,
    /// 5, with dynamic temperature and smoothing
    Temperature,
    /// 6, with presence penalty
    RepPen,
}

impl Step {
    /// KoboldCpp's order: 6, 0, 1, 3, 4, 2, 5.
    pub const ORDER: [Self; 7] = [
        Self::RepPen,
        Self::TopK,
        Self::TopA,
        Self::Tfs,
        Self::Typical,
        Self::TopP,
        Self::Temperature,
    ];

    /// The step of a number of `sampler_order`; `None` for a number that names none.
    pub fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            0 => Self::TopK,
            1 => Self::TopA,
            2 => Self::TopP,
            3 => Self::Tfs,
            4 => Self::Typical,
            5 => Self::Temperature,
            6 => Self::RepPen,
            _ => return None,
        })
    }
}

/// Exclude top choices: with `probability`, drops all tokens above `threshold` but the least likely of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Xtc {
    /// 0..=1; above 0.5 it can never act. Default 0.1.
    pub threshold: f32,
    /// 0..=1; 0 is off. Default 0.
    pub probability: f32,
}

impl Default for Xtc {
    fn default() -> Self {
        Self {
            threshold: 0.1,
            probability: 0.0,
        }
    }
}

/// OpenAI's penalties: before every other step, `presence + frequency * count` is subtracted from the logit of each token that
/// the answer holds already, `count` times. The prompt does not count.
///
/// (`mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence`, with c counting tokens sampled before: OpenAI's
/// API reference, "Frequency and presence penalties")
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AnswerPenalties {
    /// For a token that was written at all. -2..=2, default 0.
    pub presence: f32,
    /// For each time that it was written. -2..=2, default 0.
    pub frequency: f32,
}

impl AnswerPenalties {
    /// Whether they change anything.
    pub fn act(self) -> bool {
        self.presence != 0.0 || self.frequency != 0.0
    }
}

/// "Don't repeat yourself": subtracts `multiplier * base^(length - allowed_length)` from what would prolong a repetition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dry {
    /// 0..=10; 0 is off. Default 0.
    pub multiplier: f32,
    /// 1..=8. Default 1.75.
    pub base: f32,
    /// Repetitions up to this many tokens are free. 1..=512, default 2.
    pub allowed_length: u32,
    /// Tokens looked back; 0 means all. Default 320.
    pub range: u32,
    /// A repetition does not reach across a token that holds one of these. At most 64 of at most 64 bytes.
    pub breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        Self {
            multiplier: 0.0,
            base: 1.75,
            allowed_length: 2,
            range: 320,
            breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
        }
    }
}

/// Mirostat, version 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mirostat {
    /// True for version 2.
    pub second: bool,
    /// Target surprise in bits. 0..=20, default 5.
    pub tau: f32,
    /// Learning rate. 0..=1, default 0.1.
    pub eta: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.75,
            dynatemp_range: 0.0,
            dynatemp_exponent: 1.0,
            smoothing_factor: 0.0,
            top_k: 100,
            top_a: 0.0,
            top_p: 0.92,
            min_p: 0.0,
            tfs: 1.0,
            typical: 1.0,
            rep_pen: 1.0,
            rep_pen_range: 320,
            rep_pen_slope: 1.0,
            presence_penalty: 0.0,
            answer: AnswerPenalties::default(),
            order: Step::ORDER.to_vec(),
            xtc: Xtc::default(),
            dry: Dry::default(),
            mirostat: None,
            logit_bias: Vec::new(),
        }
    }
}

impl Sampling {
    /// Longest look-back of any sampler, in tokens.
    pub const MAX_RANGE: u32 = 1 << 16;

    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::neutral()
        }
    }

    /// Every filter off, temperature 1.
    pub fn neutral() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            ..Self::default()
        }
    }

    /// Puts every number into its range; what is no number takes its default, a step named twice acts once,
    /// a step left out acts at its place of the default order.
    pub fn clamped(mut self) -> Self {
        let default = Self::default();
        let fix = |value: &mut f32, low: f32, high: f32, default: f32| {
            *value = if value.is_nan() {
                default
            } else {
                value.clamp(low, high)
            };
        };
        fix(&mut self.temperature, 0.0, 5.0, default.temperature);
        // Between greedy and very cold lies nothing but overflow.
        if self.temperature > 0.0 {
            self.temperature = self.temperature.max(0.01);
        }
        fix(&mut self.dynatemp_range, 0.0, 5.0, 0.0);
        fix(&mut self.dynatemp_exponent, 0.0, 5.0, 1.0);
        fix(&mut self.smoothing_factor, 0.0, 10.0, 0.0);
        fix(&mut self.top_a, 0.0, 1.0, 0.0);
        fix(&mut self.top_p, 0.0, 1.0, default.top_p);
        fix(&mut self.min_p, 0.0, 1.0, 0.0);
        fix(&mut self.tfs, 0.0, 1.0, 1.0);
        fix(&mut self.typical, 0.0, 1.0, 1.0);
        fix(&mut self.rep_pen, 1.0, 3.0, 1.0);
        fix(&mut self.rep_pen_slope, 0.0, 10.0, 1.0);
        fix(&mut self.presence_penalty, -2.0, 2.0, 0.0);
        fix(&mut self.answer.presence, -2.0, 2.0, 0.0);
        fix(&mut self.answer.frequency, -2.0, 2.0, 0.0);
        self.rep_pen_range = self.rep_pen_range.min(Self::MAX_RANGE);
        fix(&mut self.xtc.threshold, 0.0, 1.0, 0.1);
        fix(&mut self.xtc.probability, 0.0, 1.0, 0.0);
        fix(&mut self.dry.multiplier, 0.0, 10.0, 0.0);
        fix(&mut self.dry.base, 1.0, 8.0, 1.75);
        self.dry.allowed_length = self.dry.allowed_length.clamp(1, 512);
        if self.dry.range == 0 || self.dry.range > Self::MAX_RANGE {
            self.dry.range = Self::MAX_RANGE;
        }
        self.dry
            .breakers
            .retain(|breaker| !breaker.is_empty() && breaker.len() <= 64);
        self.dry.breakers.truncate(64);
        if let Some(mirostat) = &mut self.mirostat {
            fix(&mut mirostat.tau, 0.0, 20.0, 5.0);
            fix(&mut mirostat.eta, 0.0, 1.0, 0.1);
        }
        self.logit_bias.truncate(512);
        for (_, bias) in &mut self.logit_bias {
            fix(bias, -100.0, 100.0, 0.0);
        }
        self.order = full_order(&self.order);
        self
    }
}

/// `order` without repetitions; missing steps follow in the default order.
fn full_order(order: &[Step]) -> Vec<Step> {
    let mut full: Vec<Step> = Vec::with_capacity(Step::ORDER.len());
    for step in order.iter().chain(&Step::ORDER) {
        if !full.contains(step) {
            full.push(*step);
        }
    }
    full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_pulled_in() {
        let wild = Sampling {
            temperature: f32::NAN,
            top_p: f32::INFINITY,
            rep_pen: 0.0,
            min_p: -3.0,
            tfs: f32::NEG_INFINITY,
            rep_pen_range: u32::MAX,
            ..Sampling::default()
        }
        .clamped();
        assert_eq!(wild.temperature, 0.75);
        assert_eq!((wild.top_p, wild.rep_pen, wild.min_p, wild.tfs), (1.0, 1.0, 0.0, 0.0));
        assert_eq!(wild.rep_pen_range, Sampling::MAX_RANGE);
    }

    #[test]
    fn an_order_with_repetitions_and_gaps_becomes_whole() {
        let order = [5, 5, 9, -1, 0].into_iter().filter_map(Step::from_number).collect();
        let sampling = Sampling {
            order,
            ..Sampling::default()
        }
        .clamped();
        assert_eq!(
            sampling.order,
            [
                Step::Temperature,
                Step::TopK,
                Step::RepPen,
                Step::TopA,
                Step::Tfs,
                Step::Typical,
                Step::TopP
            ]
        );
    }
}
