//! What a job asks for, every number within bounds: plain data for the engine.

use diffusion::request::Request;
use diffusion::sample::Sampler;
use diffusion::sigma::Schedule;
use horde_client::image::{Params, Payload, SourceProcessing};
use serde::{Deserialize, Serialize};
use worker_runtime::backend::Fault;

/// A request for pictures, without its prompt and its sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Order {
    /// Pixels, a multiple of 64 from 64 to 3072.
    pub width: u32,
    /// Pixels, a multiple of 64 from 64 to 3072.
    pub height: u32,
    /// 1 to 500.
    pub steps: u32,
    /// 1 to 100.
    pub cfg_scale: f64,
    /// Of the first picture's noise.
    pub seed: u64,
    /// Pictures, 1 to 20.
    pub batch: u32,
    /// By the Horde's name; one this build has.
    pub sampler: String,
    /// By ComfyUI's name; one this build has.
    pub schedule: String,
    /// Layers from the end, 1 to 12.
    pub clip_skip: u32,
    /// Edges fit each other.
    pub tiling: bool,
    /// Two passes, where the model's own size is exceeded.
    pub hires: bool,
    /// How much the second pass changes, 0.01 to 1.
    pub hires_denoise: f64,
    /// How much a source changes, 0.01 to 1.
    pub denoise: f64,
    /// What a source is for; `None` without one.
    pub source: Option<SourceUse>,
}

/// What a source is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceUse {
    /// The picture starts from it; a mask limits what changes.
    Start,
    /// Its masked (or transparent) part is painted anew.
    Paint,
}

/// The sampler of jobs that name one this build lacks, as the reference engine does.
const FALLBACK_SAMPLER: &str = "k_euler";

/// Reads a payload for `batch` pictures of at most `max_pixels`.
///
/// # Errors
/// A size that is no multiple of 64, too small or too large, and features that no offer of this worker allows.
pub fn order(payload: &Payload, batch: usize, max_pixels: u64) -> Result<Order, Fault> {
    let params = &payload.params;
    refuse_what_was_not_offered(payload)?;
    let (width, height) = (side(params.width)?, side(params.height)?);
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(Fault::of_job(format!("{width}x{height} is larger than was offered")));
    }
    if !(1..=20).contains(&batch) {
        return Err(Fault::of_job(format!("{batch} pictures in one job")));
    }
    let has_source = payload
        .source_image
        .as_deref()
        .is_some_and(|text| !text.trim().is_empty());
    let source = has_source.then_some(match payload.source_processing {
        Some(SourceProcessing::Inpainting | SourceProcessing::Outpainting) => SourceUse::Paint,
        _ => SourceUse::Start,
    });
    let denoise = within(params.denoising_strength, 0.01, 1.0).unwrap_or(1.0);
    let hires_default = match (source, params.denoising_strength) {
        (Some(_), Some(_)) => denoise,
        _ => 0.65,
    };
    let sampler = params.sampler_name.as_deref().unwrap_or("k_euler_a");
    let sampler = if Sampler::from_name(sampler).is_some() {
        sampler.to_owned()
    } else {
        FALLBACK_SAMPLER.to_owned()
    };
    Ok(Order {
        width,
        height,
        steps: params.ddim_steps.unwrap_or(30).clamp(1, 500),
        cfg_scale: within(params.cfg_scale, 1.0, 100.0).unwrap_or(8.0),
        seed: params.seed.unwrap_or(0),
        batch: batch as u32,
        sampler,
        schedule: schedule(params),
        clip_skip: params.clip_skip.unwrap_or(1).clamp(1, 12),
        tiling: params.tiling.unwrap_or(false),
        hires: params.hires_fix.unwrap_or(false) && source != Some(SourceUse::Paint),
        hires_denoise: within(params.hires_fix_denoising_strength, 0.01, 1.0).unwrap_or(hires_default),
        denoise,
        source,
    })
}

impl Order {
    /// Pixels of one picture.
    pub fn pixels(&self) -> f64 {
        f64::from(self.width) * f64::from(self.height)
    }

    /// The work of the whole job in megapixel-steps as the Horde counts them, twice for samplers that ask twice a step.
    /// A second pass counts as full, since its length depends on a model that may not be loaded yet.
    pub fn megapixel_steps(&self) -> f64 {
        let calls = self.sampler().calls_per_step();
        let steps = if self.sampler() == Sampler::DpmAdaptive {
            40.0
        } else {
            f64::from(self.steps) * f64::from(calls)
        };
        let passes = if self.hires { 2.0 } else { 1.0 };
        self.pixels() / 1e6 * steps * passes * f64::from(self.batch)
    }

    /// The sampler.
    pub fn sampler(&self) -> Sampler {
        Sampler::from_name(&self.sampler).unwrap_or(Sampler::Euler)
    }

    /// The engine's request with this prompt; sources and second pass are the caller's.
    pub fn request(&self, prompt: String) -> Request {
        Request {
            steps: self.steps as usize,
            cfg_scale: self.cfg_scale,
            seed: self.seed,
            sampler: self.sampler(),
            schedule: Schedule::from_name(&self.schedule).unwrap_or(Schedule::Normal),
            clip_skip: self.clip_skip as usize,
            batch: self.batch as usize,
            tiling: self.tiling,
            ..Request::new(prompt, self.width, self.height)
        }
    }
}

/// What nobody asks of a worker that says what this one says; the Horde may still hand it out.
fn refuse_what_was_not_offered(payload: &Payload) -> Result<(), Fault> {
    let params = &payload.params;
    let set = |flag: Option<bool>| flag == Some(true);
    let named = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let refused = if named(&params.control_type) || set(params.image_is_control) || set(params.return_control_map) {
        "control maps"
    } else if named(&params.workflow) {
        "workflows"
    } else if set(params.transparent) {
        "transparent pictures"
    } else if payload.source_processing == Some(SourceProcessing::Remix) {
        "remixes"
    } else {
        return Ok(());
    };
    Err(Fault::of_job(format!("{refused} are not offered here")))
}

/// A named schedule wins over `karras`; one this build lacks is taken as if it were not named.
fn schedule(params: &Params) -> String {
    let named = params
        .scheduler
        .as_deref()
        .filter(|name| Schedule::from_name(name).is_some());
    let default = if params.karras.unwrap_or(true) {
        "karras"
    } else {
        "normal"
    };
    named.unwrap_or(default).to_owned()
}

fn side(pixels: Option<u32>) -> Result<u32, Fault> {
    let pixels = pixels.unwrap_or(512);
    if (64..=3072).contains(&pixels) && pixels.is_multiple_of(64) {
        Ok(pixels)
    } else {
        Err(Fault::of_job(format!("a side of {pixels} pixels")))
    }
}

/// A number that is one, brought within bounds.
pub fn within(value: Option<f64>, low: f64, high: f64) -> Option<f64> {
    value
        .filter(|value| !value.is_nan())
        .map(|value| value.clamp(low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(params: Params) -> Payload {
        Payload {
            params,
            ..Payload::default()
        }
    }

    #[test]
    fn nothing_asked_is_the_horde_s_own_default() {
        let made = order(&Payload::default(), 1, 512 * 512).unwrap();
        assert_eq!(
            (made.width, made.height, made.steps, made.cfg_scale),
            (512, 512, 30, 8.0)
        );
        assert_eq!((made.sampler.as_str(), made.schedule.as_str()), ("k_euler_a", "karras"));
        assert_eq!((made.clip_skip, made.denoise, made.hires_denoise), (1, 1.0, 0.65));
    }

    #[test]
    fn absurd_numbers_are_clamped_and_absurd_sizes_refused() {
        let made = order(
            &payload(Params {
                ddim_steps: Some(1_000_000_000),
                cfg_scale: Some(f64::NAN),
                clip_skip: Some(999),
                denoising_strength: Some(-3.0),
                sampler_name: Some("divination".into()),
                scheduler: Some("divination".into()),
                karras: Some(false),
                ..Params::default()
            }),
            20,
            512 * 512,
        )
        .unwrap();
        assert_eq!(
            (made.steps, made.cfg_scale, made.clip_skip, made.denoise),
            (500, 8.0, 12, 0.01)
        );
        assert_eq!((made.sampler.as_str(), made.schedule.as_str()), ("k_euler", "normal"));
        for (width, batch) in [
            (500, 1),
            (0, 1),
            (4096, 1),
            (u32::MAX, 1),
            (1024, 1),
            (512, 0),
            (512, 21),
        ] {
            let asked = payload(Params {
                width: Some(width),
                ..Params::default()
            });
            assert!(order(&asked, batch, 512 * 512).is_err(), "{width} {batch}");
        }
    }

    #[test]
    fn only_the_source_itself_says_that_there_is_one() {
        let of = |source: Option<&str>, processing| {
            let asked = Payload {
                source_image: source.map(Into::into),
                source_processing: Some(processing),
                params: Params {
                    hires_fix: Some(true),
                    denoising_strength: Some(0.4),
                    ..Params::default()
                },
                ..Payload::default()
            };
            let made = order(&asked, 1, 512 * 512).unwrap();
            (made.source, made.hires, made.hires_denoise)
        };
        assert_eq!(of(None, SourceProcessing::Img2Img), (None, true, 0.65));
        assert_eq!(of(Some(" "), SourceProcessing::Img2Img), (None, true, 0.65));
        assert_eq!(
            of(Some("x"), SourceProcessing::Img2Img),
            (Some(SourceUse::Start), true, 0.4)
        );
        assert_eq!(
            of(Some("x"), SourceProcessing::Outpainting),
            (Some(SourceUse::Paint), false, 0.4)
        );
    }

    #[test]
    fn what_was_not_offered_is_handed_back() {
        let params = [
            Params {
                control_type: Some("canny".into()),
                ..Params::default()
            },
            Params {
                workflow: Some("qr_code".into()),
                ..Params::default()
            },
            Params {
                transparent: Some(true),
                ..Params::default()
            },
        ];
        for params in params {
            let fault = order(&payload(params), 1, 512 * 512).unwrap_err();
            assert!(!fault.ours && fault.reason.contains("not offered"));
        }
    }

    #[test]
    fn work_is_counted_in_megapixel_steps() {
        let mut made = order(&Payload::default(), 2, 512 * 512).unwrap();
        assert!((made.megapixel_steps() - 0.262_144 * 30.0 * 2.0).abs() < 1e-9);
        made.sampler = "k_heun".into();
        assert!((made.megapixel_steps() - 0.262_144 * 60.0 * 2.0).abs() < 1e-9);
    }
}
