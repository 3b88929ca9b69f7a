//! SRVGGNetCompact, the small network of `realesr-animevideov3` and `realesr-general-x4v3`.
//!
//! Structure: Wang et al. 2021, Real-ESRGAN's compact variant: plain convolutions with PReLU, then pixel-shuffle over
//! the nearest-neighbour enlargement of the input.

use candle_core::Tensor;
use tensor_ops::After;

use super::{Network, Step};
use crate::error::Result;
use crate::layers::Conv;
use crate::weights::Weights;

pub(crate) struct Srvgg {
    hidden: Vec<(Conv, Slopes)>,
    last: Conv,
    scale: usize,
}

/// Slope below zero, one per channel or one for all.
struct Slopes(Tensor);

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    w.has("body.0.weight") && w.has("body.1.weight") && !w.has("body.1.bias")
}

impl Srvgg {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        let n_layers = w.count("body");
        let last_name = format!("body.{}", n_layers.saturating_sub(1));
        let hidden = (0..n_layers / 2)
            .map(|n| {
                let slopes = w.get(&format!("body.{}.weight", 2 * n + 1))?.flatten_all()?;
                Ok((Conv::load(w, &format!("body.{}", 2 * n))?, Slopes(slopes)))
            })
            .collect::<Result<_>>()?;
        let last = Conv::load(w, &last_name)?;
        let scale = ((last.out_channels() / 3) as f64).sqrt() as usize;
        if scale == 0 || last.out_channels() != 3 * scale * scale {
            let key = format!("{last_name}.weight");
            return Err(w.misshapen(&key, w.shape(&key)?, "three colours times a square scale are needed"));
        }
        Ok(Self { hidden, last, scale })
    }
}

impl Network for Srvgg {
    fn scale(&self) -> usize {
        self.scale
    }

    fn floats_per_pixel(&self) -> usize {
        let features = self.hidden.first().map_or(3, |(conv, _)| conv.out_channels());
        // A layer's input and output, or the last one's and the result twice.
        let colours = 3 * self.scale * self.scale;
        2 * features.max(colours) + 2 * colours
    }

    fn tile(&self) -> usize {
        1280
    }

    fn steps(&self) -> usize {
        self.hidden.len() + 1
    }

    fn forward(&self, x: &Tensor, step: &mut Step<'_>) -> Result<Tensor> {
        let mut y = x.clone();
        for (conv, Slopes(slopes)) in &self.hidden {
            let after = After {
                slopes: Some(slopes),
                ..After::default()
            };
            y = conv.forward_after(&[&y], &after)?;
            step()?;
        }
        let y = self.last.forward(&y)?;
        Ok(tensor_ops::pixel_shuffle_onto(&y, self.scale, x)?)
    }
}
