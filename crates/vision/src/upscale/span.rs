//! SPAN, the swift parameter-free attention network.
//!
//! Structure: Wan et al. 2023 (arXiv 2311.12770). Its three-convolution blocks are folded into one 3×3 convolution when
//! the file is read, as their authors do for inference.

use candle_core::Tensor;

use super::{Network, Step};
use crate::error::Result;
use crate::layers::{Act, Conv, pixel_shuffle, sigmoid};
use crate::weights::Weights;

pub(crate) struct Span {
    first: Conv,
    blocks: Vec<[Conv; 3]>,
    join: Conv,
    second: Conv,
    up: Conv,
    scale: usize,
    normalise: bool,
}

const MEAN: [f32; 3] = [0.4488, 0.4371, 0.4040];

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    w.has("block_1.c1_r.eval_conv.weight") || w.has("block_1.c1_r.conv.0.weight")
}

impl Span {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        let blocks = (1..=6)
            .map(|n| {
                let block = w.at(format!("block_{n}"));
                Ok([
                    folded(&block.at("c1_r"))?,
                    folded(&block.at("c2_r"))?,
                    folded(&block.at("c3_r"))?,
                ])
            })
            .collect::<Result<_>>()?;
        let up = Conv::load(w, "upsampler.0")?;
        let scale = ((up.out_channels() / 3) as f64).sqrt() as usize;
        if scale == 0 || up.out_channels() != 3 * scale * scale {
            let shape = w.shape("upsampler.0.weight")?;
            return Err(w.misshapen(
                "upsampler.0.weight",
                shape,
                "three colours times a square scale are needed",
            ));
        }
        Ok(Self {
            first: folded(&w.at("conv_1"))?,
            blocks,
            join: Conv::load(w, "conv_cat")?,
            second: folded(&w.at("conv_2"))?,
            up,
            scale,
            normalise: !w.has("no_norm"),
        })
    }
}

/// 1×1, 3×3, 1×1 in a row plus a 1×1 beside them, as one 3×3 convolution.
fn folded(w: &Weights) -> Result<Conv> {
    if !w.has("conv.0.weight") {
        return Conv::load(w, "eval_conv");
    }
    let [middle, input, _, _] = w.dims("conv.0.weight")?;
    let [wide, _, kernel, _] = w.dims("conv.1.weight")?;
    let [output, _, _, _] = w.dims("conv.2.weight")?;
    let taps = kernel * kernel;
    let inner = w.get("conv.0.weight")?.reshape((middle, input))?;
    let inner_bias = w.get("conv.0.bias")?.reshape((middle, 1))?;
    let centre = w.get("conv.1.weight")?.reshape((wide, middle, taps))?;
    let outer = w.get("conv.2.weight")?.reshape((output, wide))?;

    // (wide, taps, middle) x (middle, input) -> (wide, taps, input)
    let rows = centre.transpose(1, 2)?.contiguous()?.reshape((wide * taps, middle))?;
    let twice = rows.matmul(&inner)?.reshape((wide, taps * input))?;
    let weight = outer
        .matmul(&twice)?
        .reshape((output, taps, input))?
        .transpose(1, 2)?
        .contiguous()?; // (output, input, taps)
    let twice_bias = (centre.sum(2)?.matmul(&inner_bias)?.reshape(wide)? + w.get("conv.1.bias")?)?;
    let bias = (outer.matmul(&twice_bias.reshape((wide, 1))?)?.reshape(output)? + w.get("conv.2.bias")?)?;

    let beside = w.get("sk.weight")?.reshape((output, input, 1))?;
    let beside = beside.pad_with_zeros(2, taps / 2, taps / 2)?;
    let bias = (bias + w.get("sk.bias")?)?;
    Conv::from_parts((weight + beside)?.reshape((output, input, kernel, kernel))?, Some(bias))
}

impl Network for Span {
    fn scale(&self) -> usize {
        self.scale
    }

    fn floats_per_pixel(&self) -> usize {
        12 * self.first.out_channels() + 4 * 3 * self.scale * self.scale
    }

    fn steps(&self) -> usize {
        self.blocks.len() + 1
    }

    fn forward(&self, x: &Tensor, step: &mut Step<'_>) -> Result<Tensor> {
        let x = if self.normalise {
            let mean = Tensor::new(&MEAN, x.device())?.reshape((1, 3, 1, 1))?;
            (x.broadcast_sub(&mean)? * 255.0)?
        } else {
            x.clone()
        };
        let first = self.first.forward(&x)?;
        let mut feature = first.clone();
        let (mut after_first, mut inside_last) = (None, None);
        for [conv1, conv2, conv3] in &self.blocks {
            let out1 = conv1.forward(&feature)?;
            // The reference activates in place, so what it keeps of the last block is activated too.
            let out1 = Act::Silu.run(&out1)?;
            let out2 = conv2.forward_act(&out1, Act::Silu)?;
            let out3 = conv3.forward(&out2)?;
            let attention = (sigmoid(&out3)? - 0.5)?;
            feature = ((out3 + &feature)? * attention)?;
            after_first.get_or_insert_with(|| feature.clone());
            inside_last = Some(out1);
            step()?;
        }
        let after_first = after_first.unwrap_or_else(|| feature.clone());
        let inside_last = inside_last.unwrap_or_else(|| feature.clone());
        let second = self.second.forward(&feature)?;
        let joined = self
            .join
            .forward_joined(&[&first, &second, &after_first, &inside_last], Act::None)?;
        pixel_shuffle(&self.up.forward(&joined)?, self.scale)
    }
}
