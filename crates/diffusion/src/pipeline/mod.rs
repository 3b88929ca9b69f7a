//! From a request to pictures.

mod guided;
mod pass;
mod raster;

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use imaging::{Filter, Picture};

use crate::{
    Error, Result,
    model::{Encoded, Find, Model, ModelFiles, Overrides},
    nn::vae::Vae,
    plan::{MemoryPlan, plan_for},
    progress::Notice,
    prompt,
    request::{Request, Source},
    sigma::Schedule,
};

use pass::{Pass, Start};
pub use raster::to_pictures;
use raster::{grow, nearest_exact, shrink, to_picture};

pub use crate::progress::Progress;

/// Finds textual inversions: name and whether the big encoder (G, H) asks.
pub type FindEmbedding = Box<Find>;

/// A model ready to make pictures.
pub struct Pipeline {
    model: Model,
    /// Where `embedding:NAME` is looked up.
    pub embeddings: FindEmbedding,
    /// Larger pictures are decoded in tiles; at first [`WHOLE_PIXELS`].
    pub whole_pixels: u64,
    /// Whether both prompts go through the U-Net in one call; at first on every device but the CPU, where it gains nothing
    /// and needs more memory.
    pub joint_guidance: bool,
}

/// The largest picture that is decoded whole, as the reference does, unless told otherwise.
pub const WHOLE_PIXELS: u64 = 1536 * 1536;

impl Pipeline {
    /// Loads a model.
    pub fn load(files: &ModelFiles, device: &Device, overrides: Overrides) -> Result<Self> {
        Self::load_with_encoders(files, &[], device, overrides)
    }

    /// As [`Self::load`], with text encoders from files of their own.
    pub fn load_with_encoders(
        files: &ModelFiles,
        encoders: &[PathBuf],
        device: &Device,
        overrides: Overrides,
    ) -> Result<Self> {
        Ok(Self {
            model: Model::load_with_encoders(files, encoders, device, overrides)?,
            embeddings: Box::new(|_, _| None),
            whole_pixels: WHOLE_PIXELS,
            joint_guidance: !device.is_cpu(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What `request` will need.
    pub fn plan(&self, request: &Request) -> MemoryPlan {
        let on_cpu = self.model.device().is_cpu();
        plan_for(
            self.model.weights(),
            self.model.family,
            request,
            on_cpu,
            self.whole_pixels,
        )
    }

    /// Makes `request.batch` pictures.
    ///
    /// # Errors
    /// [`Error::NoPicture`] where the model gives not-a-number or one flat colour, also when decoded again in f32;
    /// [`Error::Cancelled`]; [`Error::Request`] for what no clamp can mend.
    pub fn generate(&self, request: &Request, progress: &mut dyn Progress) -> Result<Vec<Picture>> {
        let request = request.clone().clamped();
        let latents = self.latents(&request, progress)?;
        progress.stage("latent", &latents);
        (0..request.batch)
            .map(|i| {
                let latent = latents.narrow(0, i, 1)?.contiguous()?;
                self.picture(&latent, request.tiling, progress)
            })
            .collect()
    }

    /// Decodes `(1, z, h, w)`, once more if no picture came out.
    fn picture(&self, latent: &Tensor, circular: bool, progress: &mut dyn Progress) -> Result<Picture> {
        let finite = latent
            .flatten_all()?
            .to_vec1::<f32>()?
            .iter()
            .all(|value| value.is_finite());
        if !finite {
            return Err(Error::NoPicture("not-a-number"));
        }
        let (picture, flaw) = to_picture(&self.decode(&self.model.vae, latent, circular, progress)?)?;
        if flaw.is_none() {
            return Ok(picture);
        }
        progress.notice(Notice::DecodedAgain);
        let (picture, flaw) = to_picture(&self.decode(&self.model.fresh_vae()?, latent, circular, progress)?)?;
        flaw.map_or(Ok(picture), |flaw| Err(Error::NoPicture(flaw)))
    }

    fn decode(&self, vae: &Vae, latent: &Tensor, circular: bool, progress: &mut dyn Progress) -> Result<Tensor> {
        let (_, _, h, w) = latent.dims4()?;
        let mut go_on = || {
            if progress.is_cancelled() {
                Err(Error::Cancelled)
            } else {
                Ok(())
            }
        };
        go_on()?;
        if 64 * (h * w) as u64 <= self.whole_pixels {
            return vae.decode(latent, circular);
        }
        let decoded = vae.decode_tiled(latent, circular, &mut go_on)?;
        progress.notice(Notice::DecodedInTiles);
        Ok(decoded)
    }

    /// Both parts of a prompt.
    fn encode(&self, request: &Request, progress: &mut dyn Progress) -> Result<(Encoded, Encoded)> {
        let (positive, negative) = prompt::split_negative(&request.prompt);
        let skip = Some(request.clip_skip);
        let mut encode = |prompt: &str, is_negative: bool| -> Result<Encoded> {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let encoded = self.model.encode(prompt, skip, &*self.embeddings)?;
            if encoded.dropped_tokens > 0 {
                progress.notice(Notice::PromptCut {
                    is_negative,
                    dropped_tokens: encoded.dropped_tokens,
                });
            }
            Ok(encoded)
        };
        let (cond, uncond) = (encode(positive, false)?, encode(negative, true)?);
        for (name, encoded) in [("cond", &cond), ("uncond", &uncond)] {
            progress.stage(name, &encoded.context);
        }
        progress.stage("pooled", &cond.pooled);
        progress.stage("uncond_pooled", &uncond.pooled);
        Ok((cond, uncond))
    }

    /// Unscaled latents of the finished pictures, `(batch, z, h/8, w/8)` f32.
    fn latents(&self, request: &Request, progress: &mut dyn Progress) -> Result<Tensor> {
        let prompts = self.encode(request, progress)?;
        let first = match &request.hires {
            Some(hires) => (hires.first_width, hires.first_height),
            None => (request.width, request.height),
        };
        let start = match &request.source {
            Some(source) => Some(self.start(source, first, request, progress)?),
            None => None,
        };
        let denoise = request.source.as_ref().map_or(1.0, |source| source.denoise);
        let second_steps = request.hires.map_or(0, |hires| hires.steps);
        let mut pass = Pass {
            pipeline: self,
            request,
            prompts: &prompts,
            size: first,
            steps: request.steps,
            schedule: request.schedule,
            denoise,
            start: start.as_ref(),
            total: request.steps + second_steps,
            done: 0,
            suffix: "",
        };
        let latents = pass.run(progress)?;
        let Some(hires) = &request.hires else {
            return Ok(latents);
        };
        progress.stage("first_latent", &latents);
        let upscaled = nearest_exact(&latents, request.height / 8, request.width / 8)?;
        progress.stage("upscaled", &upscaled);
        let start = Start {
            latent: upscaled,
            mask: None,
        };
        pass = Pass {
            size: (request.width, request.height),
            steps: hires.steps,
            schedule: Schedule::Simple,
            denoise: hires.denoise,
            start: Some(&start),
            done: request.steps,
            suffix: "2",
            ..pass
        };
        pass.run(progress)
    }

    /// The latent of a source picture and its mask.
    fn start(
        &self,
        source: &Source,
        (width, height): (u32, u32),
        request: &Request,
        progress: &mut dyn Progress,
    ) -> Result<Start> {
        let device = self.model.device();
        let (w, h) = (width as usize, height as usize);
        let picture = source.picture.to_rgb();
        let picture = if (picture.width(), picture.height()) == (width, height) {
            picture
        } else {
            picture.resized(width, height, Filter::Lanczos)
        };
        let mut values = picture.to_planar().into_data(); // 0..=1
        let mut mask = source.mask.as_ref().map(|mask| {
            if (mask.width(), mask.height()) == (width, height) {
                mask.to_planar().into_data()
            } else {
                mask.resized(width, height, Filter::Bilinear).to_planar().into_data()
            }
        });
        if let Some(mask) = mask.as_mut().filter(|_| source.inpaint) {
            let rounded: Vec<f32> = mask.iter().map(|value| value.round_ties_even()).collect();
            for plane in values.chunks_exact_mut(w * h) {
                for (value, mask) in plane.iter_mut().zip(&rounded) {
                    *value = (*value - 0.5) * (1.0 - mask) + 0.5;
                }
            }
            *mask = grow(&rounded, w, h);
        }
        for value in &mut values {
            *value = *value * 2.0 - 1.0;
        }
        let picture = Tensor::from_vec(values, (1, 3, h, w), device)?;
        let latent = self.model.vae.encode(&picture, request.tiling)?;
        progress.stage("init_latent", &latent);
        let mask = match mask {
            Some(mask) => {
                progress.stage("noise_mask", &Tensor::from_vec(mask.clone(), (1, 1, h, w), device)?);
                Some(shrink(&mask, (w, h), (w / 8, h / 8)))
            }
            None => None,
        };
        Ok(Start { latent, mask })
    }
}
