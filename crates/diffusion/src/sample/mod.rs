//! Samplers: from noise to a picture in the space the network works in, by the names the Horde and ComfyUI use.
//!
//! Samples are plain `f32` slices of any number of values; a [`Denoiser`] guesses the clean sample. Formulas: Karras et
//! al. 2022 (Euler, Heun, DPM2), Katherine Crowson's k-diffusion (MIT) for the ancestral and multistep forms, Lu et al.
//! 2022 (DPM-Solver, DPM-Solver++), Zhao et al. 2023 (UniPC), Luo et al. 2023 (LCM).

mod dpm_solver;
mod euler;
mod multistep;
mod singlestep;
mod uni_pc;

use crate::{
    Result,
    noise::{BrownianTree, Philox, TorchCpu},
};

/// Guesses the clean sample.
pub trait Denoiser {
    /// `x` at noise level `sigma` -> the clean sample, as long as `x`.
    fn denoise(&mut self, x: &[f32], sigma: f32) -> Result<Vec<f32>>;
}

/// A way from noise to picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name is its documentation")]
pub enum Sampler {
    Euler,
    EulerAncestral,
    Heun,
    Dpm2,
    Dpm2Ancestral,
    Lms,
    DpmFast,
    DpmAdaptive,
    Dpmpp2sAncestral,
    Dpmpp2m,
    DpmppSde,
    Ddim,
    Lcm,
    UniPc,
    UniPcBh2,
}

impl Sampler {
    /// The sampler of a Horde name, in any case, with or without `k_`; `None` for names we do not have.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Some(match name.strip_prefix("k_").unwrap_or(&name) {
            "euler" | "plms" => Self::Euler,
            "euler_a" | "euler_ancestral" => Self::EulerAncestral,
            "heun" => Self::Heun,
            "dpm_2" => Self::Dpm2,
            "dpm_2_a" | "dpm_2_ancestral" => Self::Dpm2Ancestral,
            "lms" => Self::Lms,
            "dpm_fast" => Self::DpmFast,
            "dpm_adaptive" => Self::DpmAdaptive,
            "dpmpp_2s_a" | "dpmpp_2s_ancestral" => Self::Dpmpp2sAncestral,
            "dpmpp_2m" | "dpmsolver" => Self::Dpmpp2m,
            "dpmpp_sde" => Self::DpmppSde,
            "ddim" => Self::Ddim,
            "lcm" => Self::Lcm,
            "uni_pc" => Self::UniPc,
            "uni_pc_bh2" => Self::UniPcBh2,
            _ => return None,
        })
    }

    /// Whether a step more is planned and the last but one sigma left out (as ComfyUI does for these).
    pub fn skips_penultimate(self) -> bool {
        matches!(self, Self::Dpm2 | Self::Dpm2Ancestral | Self::UniPc | Self::UniPcBh2)
    }

    /// Network calls per step, for estimates.
    pub fn calls_per_step(self) -> u32 {
        match self {
            Self::Heun | Self::Dpm2 | Self::Dpm2Ancestral | Self::Dpmpp2sAncestral | Self::DpmppSde => 2,
            _ => 1,
        }
    }
}

/// Where the noise that a sampler adds on its way comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepNoise {
    /// As ComfyUI on an NVIDIA card: torch's CUDA generator with the job's seed. The same on every device.
    #[default]
    Cuda,
    /// As ComfyUI on a CPU: torch's CPU generator with the seed after the job's.
    Cpu,
}

/// Told of a step: its number from 0, the sample, the guess.
pub type OnStep<'a> = dyn FnMut(usize, &[f32], &[f32]) -> Result<()> + 'a;

/// One run of a sampler.
pub struct Run<'a> {
    /// Falling noise levels, the last usually 0; a run of `n` steps has `n + 1`.
    pub sigmas: &'a [f32],
    /// Whether samples are those of a flow, `sigma·noise + (1 - sigma)·picture`.
    pub is_flow: bool,
    /// The job's seed.
    pub seed: u64,
    /// Where step noise comes from.
    pub step_noise: StepNoise,
    /// Told of each step before it is taken: its number from 0, the sample, the guess. An error ends the run.
    pub on_step: &'a mut OnStep<'a>,
}

/// Takes `x` along `run.sigmas` with `sampler`.
pub fn sample(sampler: Sampler, denoiser: &mut dyn Denoiser, x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    if run.sigmas.len() < 2 {
        return Ok(x);
    }
    match sampler {
        Sampler::Euler | Sampler::Ddim => euler::euler(denoiser, x, run),
        Sampler::EulerAncestral => euler::euler_ancestral(denoiser, x, run),
        Sampler::Lcm => euler::lcm(denoiser, x, run),
        Sampler::Heun => singlestep::heun(denoiser, x, run),
        Sampler::Dpm2 => singlestep::dpm_2(denoiser, x, run),
        Sampler::Dpm2Ancestral => singlestep::dpm_2_ancestral(denoiser, x, run),
        Sampler::Dpmpp2sAncestral => singlestep::dpmpp_2s_ancestral(denoiser, x, run),
        Sampler::DpmppSde => singlestep::dpmpp_sde(denoiser, x, run),
        Sampler::Lms => multistep::lms(denoiser, x, run),
        Sampler::Dpmpp2m => multistep::dpmpp_2m(denoiser, x, run),
        Sampler::DpmFast => dpm_solver::fast(denoiser, x, run),
        Sampler::DpmAdaptive => dpm_solver::adaptive(denoiser, x, run),
        Sampler::UniPc => uni_pc::uni_pc(denoiser, x, run, uni_pc::Variant::Bh1),
        Sampler::UniPcBh2 => uni_pc::uni_pc(denoiser, x, run, uni_pc::Variant::Bh2),
    }
}

/// Normal noise for successive steps.
enum Steps {
    Cuda(Philox),
    Cpu(Box<TorchCpu>),
}

impl Steps {
    fn new(run: &Run<'_>) -> Self {
        match run.step_noise {
            StepNoise::Cuda => Self::Cuda(Philox::new(run.seed)),
            StepNoise::Cpu => Self::Cpu(Box::new(TorchCpu::new(run.seed.wrapping_add(1)))),
        }
    }

    fn draw(&mut self, n: usize) -> Vec<f32> {
        match self {
            Self::Cuda(noise) => noise.randn(n),
            Self::Cpu(noise) => noise.randn(n),
        }
    }
}

/// The tree between the smallest positive and the largest sigma of a run.
fn tree(run: &Run<'_>, size: usize) -> BrownianTree {
    let positive = run.sigmas.iter().copied().filter(|sigma| *sigma > 0.0);
    let (low, high) = positive.fold((f32::MAX, 0f32), |(low, high), sigma| (low.min(sigma), high.max(sigma)));
    BrownianTree::new(low, high, size, run.seed)
}

/// `a·x + b·y`, value by value.
fn mix(a: f64, x: &[f32], b: f64, y: &[f32]) -> Vec<f32> {
    let (a, b) = (a as f32, b as f32);
    x.iter().zip(y).map(|(x, y)| a * x + b * y).collect()
}

/// Adds `scale·y` to `x`.
fn add(x: &mut [f32], scale: f64, y: &[f32]) {
    let scale = scale as f32;
    for (x, y) in x.iter_mut().zip(y) {
        *x += scale * y;
    }
}

/// The direction `(x - denoised) / sigma`.
fn slope(x: &[f32], sigma: f32, denoised: &[f32]) -> Vec<f32> {
    x.iter().zip(denoised).map(|(x, guess)| (x - guess) / sigma).collect()
}

/// How far an ancestral step goes down and how much noise brings it up again, at eta 1.
fn ancestral(from: f64, to: f64) -> (f64, f64) {
    if to <= 0.0 || from <= 0.0 {
        return (0.0, 0.0);
    }
    let up = (to * to * (from * from - to * to) / (from * from))
        .max(0.0)
        .sqrt()
        .min(to);
    ((to * to - up * up).max(0.0).sqrt(), up)
}

/// The same for a flow: where the step ends, the factor on the sample after it, and that on the noise.
fn ancestral_flow(from: f64, to: f64) -> (f64, f64, f64) {
    let down = to * (1.0 + (to / from - 1.0));
    let ratio = (1.0 - to) / (1.0 - down);
    let up = (to * to - down * down * ratio * ratio).max(0.0).sqrt();
    (down, ratio, up)
}

/// [`ancestral`] in f32 throughout, for samplers that ask the network between two levels: in the logarithm that place is
/// often half-way between two timesteps, and the last digit decides which is the nearer.
fn ancestral_f32(from: f32, to: f32) -> (f32, f32) {
    if to <= 0.0 || from <= 0.0 {
        return (0.0, 0.0);
    }
    let up = (to * to * (from * from - to * to) / (from * from))
        .max(0.0)
        .sqrt()
        .min(to);
    ((to * to - up * up).max(0.0).sqrt(), up)
}

/// The level half-way between two in the logarithm, rounded to f32 at each step as the reference does.
fn middle(from: f32, to: f32) -> f32 {
    let (from, to) = (ln(from), ln(to));
    exp(to - (to - from) * 0.5)
}

/// The natural logarithm, correctly rounded.
fn ln(value: f32) -> f32 {
    f64::from(value).ln() as f32
}

/// The exponential, correctly rounded.
fn exp(value: f32) -> f32 {
    f64::from(value).exp() as f32
}
