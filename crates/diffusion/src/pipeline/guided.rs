//! The network with its guidance and the mask that holds a picture, as samplers see it.

use candle_core::Tensor;

use crate::{Result, model::Model, nn::unet::Conditions, sample::Denoiser};

/// Keeps the picture outside the mask.
pub(super) struct Hold<'a> {
    pub(super) mask: &'a [f32],
    pub(super) latent: &'a [f32],
    pub(super) noise: Vec<f32>,
}

/// The network with its guidance, as a [`Denoiser`].
pub(super) struct Network<'a> {
    pub(super) model: &'a Model,
    pub(super) shape: (usize, usize, usize, usize),
    pub(super) cond: (&'a Tensor, Option<Tensor>),
    pub(super) uncond: (&'a Tensor, Option<Tensor>),
    pub(super) cfg: f32,
    pub(super) is_joint: bool,
    pub(super) circular: bool,
    pub(super) extra: Option<Tensor>,
    pub(super) hold: Option<Hold<'a>>,
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
