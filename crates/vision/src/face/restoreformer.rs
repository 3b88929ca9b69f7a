//! RestoreFormer: an autoencoder over a codebook of faces whose decoder attends to the encoder.
//!
//! Structure: Wang et al. 2022 (arXiv 2201.06374). Sizes are told by the file; eight attention heads are not.

use candle_core::{D, Tensor};

use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv, GroupNorm, attention, upsample_nearest};
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
    levels: Vec<Level>,
    middle: Middle,
    norm: GroupNorm,
    output: Conv,
}

struct Decoder {
    input: Conv,
    middle: Middle,
    /// From the deepest to the outermost.
    levels: Vec<Level>,
    norm: GroupNorm,
    output: Conv,
}

struct Level {
    blocks: Vec<(Residual, Option<Attention>)>,
    /// Halves or doubles at the level's end.
    resize: Option<Conv>,
}

struct Middle {
    block1: Residual,
    attention: Attention,
    block2: Residual,
}

struct Residual {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

struct Attention {
    norm1: GroupNorm,
    norm2: GroupNorm,
    query: Conv,
    key: Conv,
    value: Conv,
    out: Conv,
}

const HEADS: usize = 8;

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    w.has("encoder.mid.attn_1.norm2.weight") && w.has("quantize.embedding.weight")
}

impl RestoreFormer {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        let (encoder, decoder) = (w.at("encoder"), w.at("decoder"));
        let n_levels = encoder.count("down");
        let levels = |w: &Weights, part: &str, resize: &str| -> Result<Vec<Level>> {
            (0..n_levels)
                .map(|n| Level::load(&w.at(format!("{part}.{n}")), resize))
                .collect()
        };
        let mut up = levels(&decoder, "up", "upsample.conv")?;
        up.reverse();
        Ok(Self {
            encoder: Encoder {
                input: Conv::load(&encoder, "conv_in")?,
                levels: levels(&encoder, "down", "downsample.conv")?,
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
                levels: up,
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
            if let Some(conv) = &level.resize {
                // Padded on the right and below only.
                h = conv.forward(&h.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?)?;
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
            if let Some(conv) = &level.resize {
                h = conv.forward(&upsample_nearest(&h, 2)?)?;
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

fn norm(w: &Weights, name: &str) -> Result<GroupNorm> {
    GroupNorm::load(w, name, 32, 1e-6)
}

impl Level {
    fn load(w: &Weights, resize: &str) -> Result<Self> {
        let blocks = (0..w.count("block"))
            .map(|n| {
                let attention = format!("attn.{n}");
                let attention = if w.has(&format!("{attention}.q.weight")) {
                    Some(Attention::load(&w.at(attention))?)
                } else {
                    None
                };
                Ok((Residual::load(&w.at(format!("block.{n}")))?, attention))
            })
            .collect::<Result<_>>()?;
        let resize = if !w.has(&format!("{resize}.weight")) {
            None
        } else if resize.starts_with("down") {
            Some(Conv::load(w, resize)?.stride(2).padding(0))
        } else {
            Some(Conv::load(w, resize)?)
        };
        Ok(Self { blocks, resize })
    }
}

impl Middle {
    fn load(w: &Weights) -> Result<Self> {
        Ok(Self {
            block1: Residual::load(&w.at("block_1"))?,
            attention: Attention::load(&w.at("attn_1"))?,
            block2: Residual::load(&w.at("block_2"))?,
        })
    }
}

impl Residual {
    fn load(w: &Weights) -> Result<Self> {
        Ok(Self {
            norm1: norm(w, "norm1")?,
            conv1: Conv::load(w, "conv1")?,
            norm2: norm(w, "norm2")?,
            conv2: Conv::load(w, "conv2")?,
            shortcut: if w.has("nin_shortcut.weight") {
                Some(Conv::load(w, "nin_shortcut")?)
            } else {
                None
            },
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.forward_act(x, Act::Silu)?)?;
        let h = self.conv2.forward(&self.norm2.forward_act(&h, Act::Silu)?)?;
        Ok(match &self.shortcut {
            Some(conv) => (h + conv.forward(x)?)?,
            None => (h + x)?,
        })
    }
}

impl Attention {
    fn load(w: &Weights) -> Result<Self> {
        Ok(Self {
            norm1: norm(w, "norm1")?,
            norm2: norm(w, "norm2")?,
            query: Conv::load(w, "q")?,
            key: Conv::load(w, "k")?,
            value: Conv::load(w, "v")?,
            out: Conv::load(w, "proj_out")?,
        })
    }

    /// Attends to itself, with queries from `other` where that is given.
    fn forward(&self, x: &Tensor, other: Option<&Tensor>) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        let normed = self.norm1.forward(x)?;
        let asking = match other {
            Some(other) => self.norm2.forward(other)?,
            None => normed.clone(),
        };
        let rows = |y: &Tensor| -> Result<Tensor> { Ok(y.flatten_from(2)?.transpose(1, 2)?.contiguous()?) }; // (b, n, c)
        let query = rows(&self.query.forward(&asking)?)?;
        let (key, value) = (rows(&self.key.forward(&normed)?)?, rows(&self.value.forward(&normed)?)?);
        let mixed = attention(&query, &key, &value, HEADS, None)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w))?;
        Ok((x + self.out.forward(&mixed)?)?)
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
