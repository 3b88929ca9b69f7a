//! One pass of sampling: from noise, or from a picture's latent, to a finished latent.

use candle_core::{DType, Tensor};

use super::{
    Pipeline,
    guided::{Hold, Network},
};
use crate::{
    Error, Result,
    model::Encoded,
    noise::TorchCpu,
    progress::Progress,
    request::Request,
    sample::{Run, Sampler, sample},
    sigma::Schedule,
};

/// The scaled latent of a grey picture in the VAE of Stable Diffusion 1, as ComfyUI gives it to inpainting models.
const GREY: [f32; 4] = [0.8223, -0.6876, 0.6364, 0.1380];

/// Where a pass starts.
pub(super) struct Start {
    /// `(1 or batch, z, h, w)`, unscaled.
    pub(super) latent: Tensor,
    /// `h · w` values, 1 where the picture changes.
    pub(super) mask: Option<Vec<f32>>,
}

/// One pass of sampling.
pub(super) struct Pass<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) request: &'a Request,
    pub(super) prompts: &'a (Encoded, Encoded),
    pub(super) size: (u32, u32),
    pub(super) steps: usize,
    pub(super) schedule: Schedule,
    pub(super) denoise: f64,
    pub(super) start: Option<&'a Start>,
    pub(super) total: usize,
    pub(super) done: usize,
    pub(super) suffix: &'a str,
}

impl Pass<'_> {
    pub(super) fn run(&self, progress: &mut dyn Progress) -> Result<Tensor> {
        let (model, request) = (&self.pipeline.model, self.request);
        let device = model.device();
        let (w, h) = (self.size.0 as usize / 8, self.size.1 as usize / 8);
        let shape = (request.batch, model.vae.latent_channels(), h, w);
        let n = shape.0 * shape.1 * h * w;
        let skips = request.sampler.skips_penultimate();
        let sigmas = model.levels.run(self.schedule, self.steps, self.denoise, skips);
        let name = |name: &str| format!("{name}{}", self.suffix);
        progress.stage(
            &name("sigmas"),
            &Tensor::from_vec(sigmas.clone(), sigmas.len(), device)?,
        );
        let noise = TorchCpu::new(request.seed).randn(n);
        progress.stage(&name("noise"), &Tensor::from_vec(noise.clone(), shape, device)?);
        let latent = match self.start {
            Some(start) => {
                let latent = (start.latent.broadcast_as(shape)? * model.scale)?;
                latent.flatten_all()?.to_vec1::<f32>()?
            }
            None => vec![0.0; n],
        };
        let first = sigmas.first().copied().unwrap_or(0.0);
        // From the largest sigma the whole variance is noise.
        let largest = model.levels.max();
        let scale = if first > largest || (first - largest).abs() <= 1e-5 * largest {
            (1.0 + first * first).sqrt()
        } else {
            first
        };
        let x: Vec<f32> = noise
            .iter()
            .zip(&latent)
            .map(|(noise, latent)| noise * scale + latent)
            .collect();
        let mask = self.start.and_then(|start| start.mask.as_ref());
        let mask = mask.map(|mask| -> Vec<f32> { mask.iter().copied().cycle().take(n).collect() });
        let hold = mask.as_ref().map(|mask| Hold {
            mask,
            latent: &latent,
            noise: if request.sampler == Sampler::Ddim {
                TorchCpu::new(request.seed.wrapping_add(1)).randn(n)
            } else {
                noise.clone()
            },
        });
        let extra = self.extra_channels(&latent, mask.as_deref(), shape)?;
        let (cond, uncond) = self.prompts;
        let mut network = Network {
            model,
            shape,
            cond: (&cond.context, model.label(cond, self.size.0, self.size.1)?),
            uncond: (&uncond.context, model.label(uncond, self.size.0, self.size.1)?),
            cfg: request.cfg_scale as f32,
            is_joint: self.pipeline.joint_guidance,
            circular: request.tiling,
            extra,
            hold,
        };
        let mut run = Run {
            sigmas: &sigmas,
            is_flow: model.levels.is_flow(),
            seed: request.seed,
            step_noise: request.step_noise,
            on_step: &mut |step, x, guess| {
                if progress.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                progress.step(self.done + step, self.total);
                progress.stage(&name("trace_x"), &Tensor::from_slice(x, shape, device)?);
                progress.stage(&name("trace_denoised"), &Tensor::from_slice(guess, shape, device)?);
                Ok(())
            },
        };
        let x = sample(request.sampler, &mut network, x, &mut run)?;
        Ok((Tensor::from_vec(x, shape, device)? / model.scale)?)
    }

    /// Mask and masked latent, for models of nine channels.
    fn extra_channels(
        &self,
        latent: &[f32],
        mask: Option<&[f32]>,
        shape: (usize, usize, usize, usize),
    ) -> Result<Option<Tensor>> {
        let model = &self.pipeline.model;
        let (b, z, h, w) = shape;
        if model.unet.in_channels() == z {
            return Ok(None);
        }
        if model.unet.in_channels() != 2 * z + 1 || z != GREY.len() {
            return Err(Error::Weights(format!(
                "a U-Net of {} channels",
                model.unet.in_channels()
            )));
        }
        let Some(mask) = mask else {
            // Everything is to be painted: a mask of ones over the latent of a grey picture.
            let device = model.device();
            let grey = Tensor::from_slice(&GREY, (1, z, 1, 1), device)?.broadcast_as(shape)?;
            let ones = Tensor::ones((b, 1, h, w), DType::F32, device)?;
            return Ok(Some(Tensor::cat(&[&ones, &grey.contiguous()?], 1)?));
        };
        let mask: Vec<f32> = mask.iter().take(h * w).map(|value| value.round_ties_even()).collect();
        let mask = Tensor::from_vec(mask, (1, 1, h, w), model.device())?.broadcast_as((b, 1, h, w))?;
        let latent = Tensor::from_slice(latent, shape, model.device())?;
        Ok(Some(Tensor::cat(&[&mask.contiguous()?, &latent], 1)?))
    }
}
