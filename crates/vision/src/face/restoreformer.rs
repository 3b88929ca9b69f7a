//! RestoreFormer: an autoencoder over a codebook of faces whose decoder attends to the encoder.
//!
//! Structure: Wang et al. 2022 (arXiv 2201.06374). Sizes are told by the file; eight attention heads are not.

use candle_core::{D, Tensor};

use super::vqgan::{Attention, Down, Residual, Up, norm};
use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv, GroupNorm};
use crate::weights::Weights;

pub(crate) struct RestoreFormer {
    encoder: Encoder,
    before: Conv,
    /// (codes, dimension)
    codebook: Tensor,
    after: Conv,
    decoder: Decoder,
}

struct Encoder {
    input: Conv,
    levels: Vec<Level<Down>>,
    middle: Middle,
    norm: GroupNorm,
    output: Conv,
}

struct Decoder {
    input: Conv,
    middle: Middle,
    /// From the deepest to the outermost.
    levels: Vec<Level<Up>>,
    norm: GroupNorm,
    output: Conv,
}

struct Level<R> {
    blocks: Vec<(Residual, Option<Attention>)>,
    /// Halves or doubles at the level's end.
    resize: Option<R>,
}

struct Middle {
    block1: Residual,
    attention: Attention,
    block2: Residual,
}

const HEADS: usize = 8;
/// What a residual block calls its shortcut.
const SHORTCUT: &str = "nin_shortcut";

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    w.has("encoder.mid.attn_1.norm2.weight") && w.has("quantize.embedding.weight")
}

impl RestoreFormer {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        let (encoder, decoder) = (w.at("encoder"), w.at("decoder"));
        let n_levels = encoder.count("down");
        let down = |n| Level::load(&encoder.at(format!("down.{n}")), "downsample.conv", Down::load);
        let up = |n| Level::load(&decoder.at(format!("up.{n}")), "upsample.conv", Up::load);
        Ok(Self {
            encoder: Encoder {
                input: Conv::load(&encoder, "conv_in")?,
                levels: (0..n_levels).map(down).collect::<Result<_>>()?,
                middle: Middle::load(&encoder.at("mid"))?,
                norm: norm(&encoder, "norm_out")?,
                output: Conv::load(&encoder, "conv_out")?,
            },
            before: Conv::load(w, "quant_conv")?,
            codebook: w.get("quantize.embedding.weight")?,
            after: Conv::load(w, "post_quant_conv")?,
            decoder: Decoder {
                input: Conv::load(&decoder, "conv_in")?,
                middle: Middle::load(&decoder.at("mid"))?,
                levels: (0..n_levels).rev().map(up).collect::<Result<_>>()?,
                norm: norm(&decoder, "norm_out")?,
                output: Conv::load(&decoder, "conv_out")?,
            },
        })
    }

    /// (1, 3, side, side) RGB in -1..=1 to the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // The encoder's deepest features, before and after its last attention.
        let mut h = self.encoder.input.forward(x)?;
        for level in &self.encoder.levels {
            for (block, attention) in &level.blocks {
                h = block.forward(&h)?;
                if let Some(attention) = attention {
                    h = attention.forward(&h, None)?;
                }
            }
            if let Some(down) = &level.resize {
                h = down.forward(&h)?;
            }
        }
        let deep = self.encoder.middle.block1.forward(&h)?;
        let h = self.encoder.middle.attention.forward(&deep, None)?;
        let seen = self.encoder.middle.block2.forward(&h)?;
        let h = self.encoder.norm.forward_act(&seen, Act::Silu)?;
        let code = self.nearest(&self.before.forward(&self.encoder.output.forward(&h)?)?)?;

        let mut h = self.decoder.input.forward(&self.after.forward(&code)?)?;
        h = self.decoder.middle.block1.forward(&h)?;
        h = self.decoder.middle.attention.forward(&h, Some(&seen))?;
        h = self.decoder.middle.block2.forward(&h)?;
        for level in &self.decoder.levels {
            for (block, attention) in &level.blocks {
                h = block.forward(&h)?;
                if let Some(attention) = attention {
                    h = attention.forward(&h, Some(&deep))?;
                }
            }
            if let Some(up) = &level.resize {
                h = up.forward(&h)?;
            }
        }
        self.decoder
            .output
            .forward(&self.decoder.norm.forward_act(&h, Act::Silu)?)
    }

    /// Each position's nearest entry of the codebook.
    fn nearest(&self, z: &Tensor) -> Result<Tensor> {
        let (b, c, h, w) = z.dims4()?;
        if b != 1 {
            return Err(VisionError::Input(format!(
                "RestoreFormer takes one face at a time, not {b}"
            )));
        }
        let flat = z.reshape((c, h * w))?.t()?.contiguous()?; // (h w, c)
        let lengths = self.codebook.sqr()?.sum(D::Minus1)?.unsqueeze(0)?; // (1, codes)
        let apart = lengths.broadcast_sub(&(flat.matmul(&self.codebook.t()?)? * 2.0)?)?;
        let nearest = apart.argmin(D::Minus1)?;
        Ok(self
            .codebook
            .index_select(&nearest, 0)?
            .t()?
            .contiguous()?
            .reshape((1, c, h, w))?)
    }
}

impl<R> Level<R> {
    /// `resize` names what `load` reads, where it is there.
    fn load(w: &Weights, resize: &str, load: fn(&Weights, &str) -> Result<R>) -> Result<Self> {
        let blocks = (0..w.count("block"))
            .map(|n| {
                let attention = format!("attn.{n}");
                let attention = if w.has(&format!("{attention}.q.weight")) {
                    Some(Attention::load(&w.at(attention), HEADS)?)
                } else {
                    None
                };
                Ok((Residual::load(&w.at(format!("block.{n}")), SHORTCUT)?, attention))
            })
            .collect::<Result<_>>()?;
        let resize = if w.has(&format!("{resize}.weight")) {
            Some(load(w, resize)?)
        } else {
            None
        };
        Ok(Self { blocks, resize })
    }
}

impl Middle {
    fn load(w: &Weights) -> Result<Self> {
        Ok(Self {
            block1: Residual::load(&w.at("block_1"), SHORTCUT)?,
            attention: Attention::load(&w.at("attn_1"), HEADS)?,
            block2: Residual::load(&w.at("block_2"), SHORTCUT)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::face::made_up::apart_from_reference;

    #[test]
    fn a_small_network_gives_the_references_numbers() {
        let most = apart_from_reference("own/restoreformer", |w, x| {
            assert!(fits(w));
            RestoreFormer::load(w)?.forward(x)
        });
        assert!(most <= 1e-4, "differs by {most}");
    }
}
