//! From a request to pictures.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use imaging::{Filter, Picture};

use crate::{
    Error, Result,
    model::{Encoded, Find, Model, ModelFiles, Overrides},
    nn::{unet::Conditions, vae::Vae},
    noise::TorchCpu,
    plan::{MemoryPlan, plan_for},
    progress::Notice,
    prompt,
    request::{Request, Source},
    sample::{Denoiser, Run, Sampler, sample},
    sigma::Schedule,
};

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

/// The scaled latent of a grey picture in the VAE of Stable Diffusion 1, as ComfyUI gives it to inpainting models.
const GREY: [f32; 4] = [0.8223, -0.6876, 0.6364, 0.1380];

/// Where a pass starts.
struct Start {
    /// `(1 or batch, z, h, w)`, unscaled.
    latent: Tensor,
    /// `h · w` values, 1 where the picture changes.
    mask: Option<Vec<f32>>,
}

/// One pass of sampling.
struct Pass<'a> {
    pipeline: &'a Pipeline,
    request: &'a Request,
    prompts: &'a (Encoded, Encoded),
    size: (u32, u32),
    steps: usize,
    schedule: Schedule,
    denoise: f64,
    start: Option<&'a Start>,
    total: usize,
    done: usize,
    suffix: &'a str,
}

impl Pass<'_> {
    fn run(&self, progress: &mut dyn Progress) -> Result<Tensor> {
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

/// Keeps the picture outside the mask.
struct Hold<'a> {
    mask: &'a [f32],
    latent: &'a [f32],
    noise: Vec<f32>,
}

/// The network with its guidance, as a [`Denoiser`].
struct Network<'a> {
    model: &'a Model,
    shape: (usize, usize, usize, usize),
    cond: (&'a Tensor, Option<Tensor>),
    uncond: (&'a Tensor, Option<Tensor>),
    cfg: f32,
    is_joint: bool,
    circular: bool,
    extra: Option<Tensor>,
    hold: Option<Hold<'a>>,
}

impl Network<'_> {
    /// The guess with a prompt.
    fn call(&self, x: &[f32], sigma: f32, (context, label): (&Tensor, Option<&Tensor>)) -> Result<Vec<f32>> {
        let input = self.input(x, sigma)?;
        let (_, tokens, width) = context.dims3()?;
        let context = context.broadcast_as((self.shape.0, tokens, width))?.contiguous()?;
        let output = self.through(&input, sigma, (&context, label))?;
        Ok(self.model.clean(x, &output.flatten_all()?.to_vec1::<f32>()?, sigma))
    }

    /// The guesses with and without the prompt from one call; their contexts are equally long.
    fn call_both(&self, x: &[f32], sigma: f32) -> Result<(Vec<f32>, Vec<f32>)> {
        let (batch, (_, tokens, width)) = (self.shape.0, self.cond.0.dims3()?);
        let input = self.input(x, sigma)?;
        let input = Tensor::cat(&[&input, &input], 0)?;
        let wide = |context: &Tensor| context.broadcast_as((batch, tokens, width))?.contiguous();
        let context = Tensor::cat(&[wide(self.cond.0)?, wide(self.uncond.0)?], 0)?;
        let label = match (&self.cond.1, &self.uncond.1) {
            (Some(cond), Some(uncond)) => {
                let rows = |label: &Tensor| label.broadcast_as((batch, label.dim(1)?))?.contiguous();
                Some(Tensor::cat(&[rows(cond)?, rows(uncond)?], 0)?)
            }
            _ => None,
        };
        let output = self.through(&input, sigma, (&context, label.as_ref()))?;
        let output = output.flatten_all()?.to_vec1::<f32>()?;
        let (with, without) = output.split_at(x.len().min(output.len()));
        Ok((self.model.clean(x, with, sigma), self.model.clean(x, without, sigma)))
    }

    fn input(&self, x: &[f32], sigma: f32) -> Result<Tensor> {
        let scale = 1.0 / (sigma * sigma + 1.0).sqrt();
        let scaled: Vec<f32> = x.iter().map(|x| x * scale).collect();
        let input = Tensor::from_vec(scaled, self.shape, self.model.device())?;
        Ok(match &self.extra {
            Some(extra) => Tensor::cat(&[&input, extra], 1)?,
            None => input,
        })
    }

    fn through(&self, input: &Tensor, sigma: f32, (context, label): (&Tensor, Option<&Tensor>)) -> Result<Tensor> {
        let conditions = Conditions {
            context,
            label,
            residuals: None,
            circular: self.circular,
        };
        self.model
            .unet
            .forward(input, &[self.model.levels.timestep(sigma)], &conditions)
    }
}

impl Denoiser for Network<'_> {
    fn denoise(&mut self, x: &[f32], sigma: f32) -> Result<Vec<f32>> {
        let held;
        let x = match &self.hold {
            Some(hold) => {
                let outside = hold
                    .latent
                    .iter()
                    .zip(&hold.noise)
                    .map(|(latent, noise)| latent + noise * sigma);
                let mixed = x.iter().zip(hold.mask).zip(outside);
                held = mixed
                    .map(|((x, mask), out)| x * mask + out * (1.0 - mask))
                    .collect::<Vec<f32>>();
                &held
            }
            None => x,
        };
        let is_guided = self.cfg != 1.0;
        let is_joint = is_guided && self.is_joint && self.cond.0.dims() == self.uncond.0.dims();
        let (mut guess, without) = if is_joint {
            let (guess, without) = self.call_both(x, sigma)?;
            (guess, Some(without))
        } else {
            let guess = self.call(x, sigma, (self.cond.0, self.cond.1.as_ref()))?;
            let without = match is_guided {
                true => Some(self.call(x, sigma, (self.uncond.0, self.uncond.1.as_ref()))?),
                false => None,
            };
            (guess, without)
        };
        if let Some(without) = without {
            for (guess, without) in guess.iter_mut().zip(without) {
                *guess = without + (*guess - without) * self.cfg;
            }
        }
        if let Some(hold) = &self.hold {
            for ((guess, mask), latent) in guess.iter_mut().zip(hold.mask).zip(hold.latent) {
                *guess = *guess * mask + latent * (1.0 - mask);
            }
        }
        Ok(guess)
    }
}

/// A rounded mask grown by a box of 6, as a convolution with padding 3 places it.
fn grow(mask: &[f32], w: usize, h: usize) -> Vec<f32> {
    let mut grown = vec![0f32; w * h];
    for (i, value) in grown.iter_mut().enumerate() {
        let (x, y) = (i % w, i / w);
        let rows = y.saturating_sub(3)..(y + 3).min(h);
        let near = |row: usize| {
            mask[row * w + x.saturating_sub(3)..row * w + (x + 3).min(w)]
                .iter()
                .sum::<f32>()
        };
        *value = rows.map(near).sum::<f32>().clamp(0.0, 1.0).round();
    }
    grown
}

/// Bilinear without anti-aliasing, pixel centres aligned, by a whole factor, as torch's `interpolate`.
fn shrink(mask: &[f32], (w, h): (usize, usize), (to_w, to_h): (usize, usize)) -> Vec<f32> {
    let place = |i: usize, from: usize, to: usize| {
        let at = ((i as f32 + 0.5) * from as f32 / to as f32 - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        (low, (low + 1).min(from - 1), at - low as f32)
    };
    let mut out = Vec::with_capacity(to_w * to_h);
    for y in 0..to_h {
        let (top, bottom, fy) = place(y, h, to_h);
        for x in 0..to_w {
            let (left, right, fx) = place(x, w, to_w);
            let row = |y: usize| mask[y * w + left] * (1.0 - fx) + mask[y * w + right] * fx;
            out.push(row(top) * (1.0 - fy) + row(bottom) * fy);
        }
    }
    out
}

/// torch's `nearest-exact`: each output takes the input under its centre.
fn nearest_exact(x: &Tensor, height: u32, width: u32) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let index = |to: u32, from: usize| -> Result<Tensor> {
        let place = |i: u32| (((f64::from(i) + 0.5) * from as f64 / f64::from(to)) as usize).min(from - 1) as u32;
        let places: Vec<u32> = (0..to).map(place).collect();
        Ok(Tensor::from_vec(places, to as usize, x.device())?)
    };
    let rows = x.index_select(&index(height, h)?, 2)?;
    Ok(rows.index_select(&index(width, w)?, 3)?)
}

/// Decoded `(b, 3, h, w)` in -1..=1 as pictures, whatever they show.
pub fn to_pictures(decoded: &Tensor) -> Result<Vec<Picture>> {
    (0..decoded.dim(0)?)
        .map(|i| Ok(to_picture(&decoded.narrow(0, i, 1)?)?.0))
        .collect()
}

/// Decoded `(1, 3, h, w)` in -1..=1 as a picture, and what is wrong with it.
fn to_picture(decoded: &Tensor) -> Result<(Picture, Option<&'static str>)> {
    let (_, _, h, w) = decoded.dims4()?;
    let values: Vec<f32> = decoded.flatten_all()?.to_vec1()?;
    let mut bytes = vec![0u8; values.len()];
    for (at, value) in values.iter().enumerate() {
        let (channel, place) = (at / (h * w), at % (h * w));
        // A float that is no number becomes 0; the cast saturates.
        bytes[place * 3 + channel] = (255.0 * f32::midpoint(*value, 1.0).clamp(0.0, 1.0)) as u8;
    }
    let flaw = if values.iter().any(|value| !value.is_finite()) {
        Some("not-a-number")
    } else if bytes.chunks_exact(3).all(|pixel| *pixel == bytes[..3]) {
        Some("one flat colour")
    } else {
        None
    };
    let picture = Picture::from_rgb(w as u32, h as u32, bytes)
        .map_err(|error| Error::Request(format!("a picture of {w}x{h}: {error}")))?;
    Ok((picture, flaw))
}
