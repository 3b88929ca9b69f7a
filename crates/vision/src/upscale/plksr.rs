//! RealPLKSR: partial large-kernel convolutions, with pixel-shuffle or DySample at the end.
//!
//! Structure: Lee et al. 2024 (arXiv 2404.11848) in the variant of neosr, DySample: Liu et al. 2023 (arXiv 2308.15085).

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Network, Step};
use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv, GroupNorm, pixel_shuffle, sigmoid};
use crate::weights::Weights;

pub(crate) struct RealPlksr {
    first: Conv,
    blocks: Vec<Block>,
    last: Conv,
    scale: usize,
    dysample: Option<DySample>,
}

struct Block {
    layer_norm: Option<ChannelNorm>,
    mix_in: Conv,
    mix_out: Conv,
    large: Conv,
    attention: Option<Conv>,
    refine: Conv,
    norm: Option<GroupNorm>,
}

/// Layer norm over the channels of NCHW, eps 1e-6.
struct ChannelNorm {
    weight: Tensor,
    bias: Tensor,
}

struct DySample {
    offset: Conv,
    scope: Conv,
    init_pos: Tensor,
    end: Option<Conv>,
    groups: usize,
}

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    w.has("feats.1.lk.conv.weight") && w.has("feats.1.channel_mixer.0.weight")
}

/// Not told by the keys; every published model has four.
const NORM_GROUPS: usize = 4;

impl RealPlksr {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        // Between the blocks and the last convolution stands a dropout without weights.
        let n_blocks = w.count("feats").saturating_sub(1);
        let last_name = format!("feats.{}", n_blocks + 2);
        let blocks = (1..=n_blocks)
            .map(|n| Block::load(&w.at(format!("feats.{n}"))))
            .collect::<Result<_>>()?;
        let last = Conv::load(w, &last_name)?;
        let scale = ((last.out_channels() / 3) as f64).sqrt() as usize;
        if scale == 0 || last.out_channels() != 3 * scale * scale {
            let key = format!("{last_name}.weight");
            return Err(w.misshapen(&key, w.shape(&key)?, "three colours times a square scale are needed"));
        }
        let dysample = if w.has("to_img.init_pos") {
            Some(DySample::load(&w.at("to_img"), scale)?)
        } else {
            None
        };
        Ok(Self {
            first: Conv::load(w, "feats.0")?,
            blocks,
            last,
            scale,
            dysample,
        })
    }
}

impl Block {
    fn load(w: &Weights) -> Result<Self> {
        let layer_norm = if w.has("layer_norm.weight") {
            let vector = |key| -> Result<Tensor> { Ok(w.get(key)?.reshape((1, (), 1, 1))?) };
            Some(ChannelNorm {
                weight: vector("layer_norm.weight")?,
                bias: vector("layer_norm.bias")?,
            })
        } else {
            None
        };
        Ok(Self {
            layer_norm,
            mix_in: Conv::load(w, "channel_mixer.0")?,
            mix_out: Conv::load(w, "channel_mixer.2")?,
            large: Conv::load(w, "lk.conv")?,
            attention: if w.has("attn.f.0.weight") {
                Some(Conv::load(w, "attn.f.0")?)
            } else {
                None
            },
            refine: Conv::load(w, "refine")?,
            norm: if w.has("norm.weight") {
                Some(GroupNorm::load(w, "norm", NORM_GROUPS, 1e-5)?)
            } else {
                None
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = match &self.layer_norm {
            Some(norm) => norm.forward(x)?,
            None => x.clone(),
        };
        let y = self.mix_out.forward(&self.mix_in.forward_act(&y, Act::Mish)?)?;
        // The large kernel sees only the first channels.
        let part = self.large.out_channels();
        let (_, channels, _, _) = y.dims4()?;
        let seen = self.large.forward(&y.narrow(1, 0, part)?.contiguous()?)?;
        let y = Tensor::cat(&[&seen, &y.narrow(1, part, channels - part)?.contiguous()?], 1)?;
        let y = match &self.attention {
            Some(conv) => (&y * sigmoid(&conv.forward(&y)?)?)?,
            None => y,
        };
        let y = self.refine.forward(&y)?;
        let y = match &self.norm {
            Some(norm) => norm.forward(&y)?,
            None => y,
        };
        Ok((y + x)?)
    }
}

impl ChannelNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        let variance = centred.sqr()?.mean_keepdim(1)?;
        let normed = centred.broadcast_div(&(variance + 1e-6)?.sqrt()?)?;
        Ok(normed.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?)
    }
}

impl Network for RealPlksr {
    fn scale(&self) -> usize {
        self.scale
    }

    fn floats_per_pixel(&self) -> usize {
        // Offsets of every target pixel: several maps of them, then the taps of each group.
        let sampling = self.dysample.as_ref().map_or(0, |d| 12 * d.offset.out_channels());
        8 * self.first.out_channels() + 8 * 3 * self.scale * self.scale + sampling
    }

    fn steps(&self) -> usize {
        self.blocks.len() + 1
    }

    fn forward(&self, x: &Tensor, step: &mut Step<'_>) -> Result<Tensor> {
        let mut y = self.first.forward(x)?;
        for block in &self.blocks {
            y = block.forward(&y)?;
            step()?;
        }
        let y = self.last.forward(&y)?; // (b, 3 scale², h, w)
        let Some(dysample) = &self.dysample else {
            return Ok(tensor_ops::pixel_shuffle_onto(&y, self.scale, x)?);
        };
        let (b, c, h, w) = x.dims4()?;
        let copies = self.scale * self.scale;
        let repeated = x
            .unsqueeze(2)?
            .broadcast_as((b, c, copies, h, w))?
            .reshape((b, c * copies, h, w))?;
        dysample.forward(&(y + repeated)?, self.scale)
    }
}

impl DySample {
    fn load(w: &Weights, scale: usize) -> Result<Self> {
        let init_pos = w.get("init_pos")?;
        let groups = init_pos.elem_count() / (2 * scale * scale);
        let offset = Conv::load(w, "offset")?;
        if groups == 0 || offset.in_channels() % groups != 0 || offset.out_channels() != 2 * groups * scale * scale {
            return Err(w.misshapen(
                "init_pos",
                w.shape("init_pos")?,
                "two offsets per group and target pixel are needed",
            ));
        }
        Ok(Self {
            offset,
            scope: Conv::load(w, "scope")?,
            init_pos: init_pos.reshape((1, (), 1, 1))?,
            end: if w.has("end_conv.weight") {
                Some(Conv::load(w, "end_conv")?)
            } else {
                None
            },
            groups,
        })
    }

    /// Samples `x` (b, c, h, w) at learned places: (b, c or 3, h scale, w scale).
    fn forward(&self, x: &Tensor, scale: usize) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        let scope = (sigmoid(&self.scope.forward(x)?)? * 0.5)?;
        let offset = (self.offset.forward(x)? * scope)?.broadcast_add(&self.init_pos)?;
        // Channels of `offset` are (2 axes, groups, scale²): x first, in source pixels.
        let offset = pixel_shuffle(&offset, scale)?; // (b, 2 groups, h scale, w scale)
        let offsets = offset.flatten_all()?.to_vec1::<f32>()?;
        let values = x.flatten_all()?.to_vec1::<f32>()?;
        let (out_h, out_w) = (h * scale, w * scale);
        let (source, target) = (h * w, out_h * out_w);
        if b != 1 {
            return Err(VisionError::Input(format!(
                "DySample takes one picture at a time, not {b}"
            )));
        }
        let per_group = c / self.groups;
        let mut sampled = vec![0f32; c * target];
        sampled
            .par_chunks_mut(per_group * target)
            .enumerate()
            .for_each(|(group, planes)| {
                let dx = &offsets[group * target..][..target];
                let dy = &offsets[(self.groups + group) * target..][..target];
                let bilinear: Vec<(usize, usize, usize, usize, f32, f32)> = (0..target)
                    .map(|i| {
                        let (x0, x1, tx) = tap((i % out_w / scale) as f32 + dx[i], w);
                        let (y0, y1, ty) = tap((i / out_w / scale) as f32 + dy[i], h);
                        (y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1, tx, ty)
                    })
                    .collect();
                for (channel, plane) in planes.chunks_exact_mut(target).enumerate() {
                    let from = &values[(group * per_group + channel) * source..][..source];
                    for (value, (a, b, c, d, tx, ty)) in plane.iter_mut().zip(&bilinear) {
                        let top = from[*a] + (from[*b] - from[*a]) * tx;
                        let bottom = from[*c] + (from[*d] - from[*c]) * tx;
                        *value = top + (bottom - top) * ty;
                    }
                }
            });
        let sampled = Tensor::from_vec(sampled, (b, c, out_h, out_w), x.device())?;
        match &self.end {
            Some(end) => end.forward(&sampled),
            None => Ok(sampled),
        }
    }
}

/// The two neighbours of a position (pixel index 0 is position 0) and the share of the second; edges repeat.
fn tap(position: f32, len: usize) -> (usize, usize, f32) {
    let last = (len - 1) as f32;
    let at = if position.is_finite() {
        position.clamp(0.0, last)
    } else {
        0.0
    };
    let low = at.floor();
    (low as usize, (low as usize + 1).min(len - 1), at - low)
}
