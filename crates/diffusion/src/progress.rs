//! What a run tells on its way, and when it will be done.

use std::time::{Duration, Instant};

use candle_core::Tensor;

/// Told of each step, and asked whether to go on.
pub trait Progress {
    /// `step` of `total` steps begins.
    fn step(&mut self, step: usize, total: usize);
    /// True once the run should stop at the next step.
    fn is_cancelled(&self) -> bool;
    /// Something the requester may want to know; the run goes on.
    fn notice(&mut self, _notice: Notice) {}
    /// Every value that a stage ends with, by name, for comparison with a reference.
    fn stage(&mut self, _name: &str, _value: &Tensor) {}
}

/// Tells nobody and never stops.
impl Progress for () {
    fn step(&mut self, _: usize, _: usize) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// What happened on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A prompt is longer than the text encoders take; its end has no effect.
    PromptCut {
        /// The negative prompt, else the prompt itself.
        is_negative: bool,
        /// Tokens left out.
        dropped_tokens: usize,
    },
    /// The picture came out as not-a-number or flat; its decoding is tried again with a VAE read anew in f32.
    DecodedAgain,
    /// The picture is too large to be decoded whole and is decoded in tiles.
    DecodedInTiles,
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PromptCut {
                is_negative,
                dropped_tokens,
            } => {
                let which = if *is_negative { "negative prompt" } else { "prompt" };
                write!(
                    f,
                    "the last {dropped_tokens} tokens of the {which} found no room and have no effect"
                )
            }
            Self::DecodedAgain => f.write_str("the picture came out black or flat and is decoded again in f32"),
            Self::DecodedInTiles => f.write_str("the picture is decoded in tiles to save memory"),
        }
    }
}

/// When a run will be done, from the time its steps took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Eta {
    first: Option<(usize, Instant)>,
    last: Option<(usize, Instant)>,
    total: usize,
}

impl Eta {
    /// `step` of `total` begins at `now`.
    pub fn step(&mut self, step: usize, total: usize, now: Instant) {
        self.first.get_or_insert((step, now));
        self.last = Some((step, now));
        self.total = total;
    }

    /// The mean time of a step; `None` before the second one began.
    pub fn each(&self) -> Option<Duration> {
        let ((first, begun), (last, now)) = (self.first?, self.last?);
        let steps = u32::try_from(last.checked_sub(first)?)
            .ok()
            .filter(|steps| *steps > 0)?;
        Some(now.saturating_duration_since(begun) / steps)
    }

    /// What is left of the steps at `now`; `None` before the second one began.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        let (last, since) = self.last?;
        let steps = u32::try_from(self.total.saturating_sub(last)).unwrap_or(u32::MAX);
        let left = self.each()?.saturating_mul(steps);
        Some(left.saturating_sub(now.saturating_duration_since(since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_from_the_second_step_on_and_falls_with_time() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let mut eta = Eta::default();
        assert_eq!(eta.left(begun), None);
        eta.step(0, 10, begun);
        assert_eq!(eta.left(begun), None);
        eta.step(1, 10, begun + 2 * second);
        assert_eq!(eta.left(begun + 2 * second), Some(18 * second));
        assert_eq!(eta.left(begun + 3 * second), Some(17 * second));
        eta.step(2, 10, begun + 6 * second);
        assert_eq!(eta.each(), Some(3 * second));
        assert_eq!(eta.left(begun + 6 * second), Some(24 * second));
        assert_eq!(eta.left(begun + 600 * second), Some(Duration::ZERO));
    }

    #[test]
    fn steps_out_of_order_or_without_end_give_no_nonsense() {
        let now = Instant::now();
        let mut eta = Eta::default();
        eta.step(5, 0, now);
        eta.step(3, 0, now);
        assert_eq!(eta.left(now), None);
        eta.step(7, usize::MAX, now + Duration::from_secs(1));
        assert!(eta.left(now).is_some());
    }
}
