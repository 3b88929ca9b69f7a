//! What is asked for, and the clamps that make any request safe to run.

use imaging::{Mask, Picture};

use crate::{
    sample::{Sampler, StepNoise},
    sigma::Schedule,
};

/// One request for pictures. [`Request::clamped`] brings every number within bounds.
#[derive(Clone, Debug)]
pub struct Request {
    /// With weights; the negative part after `###`.
    pub prompt: String,
    /// Pixels, 64..=3072, multiples of 8.
    pub width: u32,
    /// Pixels, 64..=3072, multiples of 8.
    pub height: u32,
    /// 1..=500.
    pub steps: usize,
    /// Guidance, 1..=100; at 1 the negative prompt is not used.
    pub cfg_scale: f64,
    /// Of the first picture's noise.
    pub seed: u64,
    /// Which sampler.
    pub sampler: Sampler,
    /// Which schedule, for the first pass.
    pub schedule: Schedule,
    /// Layer of the text encoder from the end, 1..=20.
    pub clip_skip: usize,
    /// Pictures, 1..=20, drawn from one noise.
    pub batch: usize,
    /// A picture to start from.
    pub source: Option<Source>,
    /// Two passes.
    pub hires: Option<Hires>,
    /// Pictures whose edges fit each other.
    pub tiling: bool,
    /// Where samplers draw their noise.
    pub step_noise: StepNoise,
}

/// A picture to start from.
#[derive(Clone)]
pub struct Source {
    /// Brought to the request's size.
    pub picture: Picture,
    /// White is painted anew; brought to the request's size.
    pub mask: Option<Mask>,
    /// The masked part is greyed before it is encoded, so that nothing of it shows through.
    pub inpaint: bool,
    /// How much changes, 0.01..=1.
    pub denoise: f64,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source")
            .field("width", &self.picture.width())
            .field("height", &self.picture.height())
            .field("mask", &self.mask.is_some())
            .field("inpaint", &self.inpaint)
            .field("denoise", &self.denoise)
            .finish()
    }
}

/// The second pass of a hires fix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hires {
    /// Pixels of the first pass.
    pub first_width: u32,
    /// Pixels of the first pass.
    pub first_height: u32,
    /// Steps of the second pass, 1..=500.
    pub steps: usize,
    /// How much the second pass changes, 0.01..=1.
    pub denoise: f64,
}

impl Request {
    /// A plain request.
    pub fn new(prompt: impl Into<String>, width: u32, height: u32) -> Self {
        Self {
            prompt: prompt.into(),
            width,
            height,
            steps: 30,
            cfg_scale: 7.5,
            seed: 0,
            sampler: Sampler::EulerAncestral,
            schedule: Schedule::Karras,
            clip_skip: 1,
            batch: 1,
            source: None,
            hires: None,
            tiling: false,
            step_noise: StepNoise::default(),
        }
    }

    /// With every number within its bounds; a number that is none becomes the default.
    pub fn clamped(mut self) -> Self {
        self.width = size(self.width);
        self.height = size(self.height);
        self.steps = self.steps.clamp(1, 500);
        self.cfg_scale = within(self.cfg_scale, 1.0, 100.0, 8.0);
        self.clip_skip = self.clip_skip.clamp(1, 20);
        self.batch = self.batch.clamp(1, 20);
        if let Some(source) = &mut self.source {
            source.denoise = within(source.denoise, 0.01, 1.0, 1.0);
        }
        if let Some(hires) = &mut self.hires {
            hires.first_width = size(hires.first_width);
            hires.first_height = size(hires.first_height);
            hires.steps = hires.steps.clamp(1, 500);
            hires.denoise = within(hires.denoise, 0.01, 1.0, 0.65);
        }
        self
    }
}

fn size(pixels: u32) -> u32 {
    pixels.clamp(64, 3072) / 8 * 8
}

fn within(value: f64, low: f64, high: f64, default: f64) -> f64 {
    if value.is_nan() {
        default
    } else {
        value.clamp(low, high)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_numbers_are_brought_within_bounds() {
        let request = Request {
            steps: 1_000_000_000,
            cfg_scale: f64::NAN,
            batch: 0,
            clip_skip: 999,
            ..Request::new("", u32::MAX, 1)
        }
        .clamped();
        assert_eq!((request.width, request.height, request.steps), (3072, 64, 500));
        assert_eq!((request.cfg_scale, request.batch, request.clip_skip), (8.0, 1, 20));
    }
}
