//! CodeFormer: a transformer reads the damaged face as entries of a codebook of faces, and a generator draws from them,
//! guided by the encoder's features.
//!
//! Structure: Zhou et al. 2022 (arXiv 2206.11253). Sizes are told by the file; eight attention heads are not.

use candle_core::{D, Tensor};

use super::vqgan::{Attention, Down, Residual, Up, norm};
use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv, GroupNorm, LayerNorm, Linear, attention};
use crate::weights::Weights;

pub(crate) struct CodeFormer {
    encoder: Vec<Block>,
    /// (positions, width)
    positions: Tensor,
    enter: Linear,
    layers: Vec<Layer>,
    leave_norm: LayerNorm,
    leave: Linear,
    /// (codes, dimension)
    codebook: Tensor,
    generator: Vec<Block>,
    /// By nominal size of the features, for faces of 512 pixels.
    fusions: Vec<(usize, Fusion)>,
}

enum Block {
    Conv(Conv),
    Residual(Residual),
    Attention(Attention),
    Down(Down),
    Up(Up),
    Norm(GroupNorm),
}

struct Layer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: LayerNorm,
    inner: Linear,
    outer: Linear,
}

struct Fusion {
    merge: Residual,
    scale: [Conv; 2],
    shift: [Conv; 2],
}

const HEADS: usize = 8;
/// Nominal side of the encoder's last features.
const DEEPEST: usize = 16;
/// How much the encoder's features count beside the codebook, as the Horde fixes it; 0 draws from the codebook alone.
const FIDELITY: f64 = 0.5;

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    w.has("position_emb") && w.has("idx_pred_layer.1.weight") && w.has("ft_layers.0.self_attn.in_proj_weight")
}

impl CodeFormer {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        let layers = w.at("ft_layers");
        let fusions = w.at("fuse_convs_dict");
        let sizes = [16, 32, 64, 128, 256, 512].into_iter();
        let there = sizes.filter(|size| fusions.has(&format!("{size}.scale.0.weight")));
        Ok(Self {
            encoder: blocks(&w.at("encoder.blocks"), true)?,
            positions: w.get("position_emb")?,
            enter: Linear::load(w, "feat_emb")?,
            layers: (0..w.count("ft_layers"))
                .map(|n| Layer::load(&layers.at(n.to_string())))
                .collect::<Result<_>>()?,
            leave_norm: LayerNorm::load(w, "idx_pred_layer.0", 1e-5)?,
            leave: Linear::load(w, "idx_pred_layer.1")?,
            codebook: w.get("quantize.embedding.weight")?,
            generator: blocks(&w.at("generator.blocks"), false)?,
            fusions: there
                .map(|size| Ok((size, Fusion::load(&fusions.at(size.to_string()))?)))
                .collect::<Result<_>>()?,
        })
    }

    /// Side of the faces it takes: its positions are those of the encoder's last features.
    pub(crate) fn side(&self) -> usize {
        let positions = self.positions.dims().first().copied().unwrap_or(0);
        let times = u32::try_from(self.halvings()).ok().and_then(|n| 1usize.checked_shl(n));
        positions.isqrt().saturating_mul(times.unwrap_or(usize::MAX))
    }

    fn halvings(&self) -> usize {
        self.encoder
            .iter()
            .filter(|block| matches!(block, Block::Down(_)))
            .count()
    }

    /// (1, 3, side, side) RGB in -1..=1 to the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut size = DEEPEST << self.halvings();
        let mut seen: Vec<(usize, Tensor)> = Vec::new();
        let mut h = x.clone();
        for block in &self.encoder {
            if matches!(block, Block::Down(_)) {
                seen.push((size, h.clone()));
                size /= 2;
            }
            h = block.forward(&h)?;
        }
        let mut y = self.codes(&h)?;
        let mut is_due = false;
        for block in &self.generator {
            y = block.forward(&y)?;
            if matches!(block, Block::Up(_)) {
                size *= 2;
                is_due = true;
                continue;
            }
            // Fused behind the first block of each size.
            if std::mem::take(&mut is_due)
                && let Some((_, fusion)) = self.fusions.iter().find(|(of, _)| *of == size)
                && let Some((_, features)) = seen.iter().find(|(of, _)| *of == size)
            {
                y = fusion.forward(features, &y)?;
            }
        }
        Ok(y)
    }

    /// The codebook's entries that the transformer reads in the encoder's features, with these features' mean and spread.
    fn codes(&self, features: &Tensor) -> Result<Tensor> {
        let (b, c, height, width) = features.dims4()?;
        if b != 1 || height * width != self.positions.dim(0)? {
            return Err(VisionError::Input(format!(
                "CodeFormer takes one face of {0}x{0} at a time",
                self.side()
            )));
        }
        let rows = features.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // (1, n, c)
        let mut h = self.enter.forward(&rows)?;
        for layer in &self.layers {
            h = layer.forward(&h, &self.positions)?;
        }
        let scores = self.leave.forward(&self.leave_norm.forward(&h)?)?; // (1, n, codes)
        let found = scores.argmax(D::Minus1)?.flatten_all()?;
        let codes = self.codebook.index_select(&found, 0)?; // (n, c)
        let codes = codes.t()?.contiguous()?.reshape((1, c, height * width))?;
        let (mean, spread) = moments(&features.flatten_from(2)?)?;
        let (own_mean, own_spread) = moments(&codes)?;
        let even = codes.broadcast_sub(&own_mean)?.broadcast_div(&own_spread)?;
        let styled = even.broadcast_mul(&spread)?.broadcast_add(&mean)?;
        Ok(styled.reshape((1, c, height, width))?)
    }
}

/// Mean and standard deviation (of a sample, a little above 0) over the last axis of (1, c, n).
fn moments(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = x.mean_keepdim(D::Minus1)?;
    let variance = (x.var_keepdim(D::Minus1)? + 1e-5)?;
    Ok((mean, variance.sqrt()?))
}

/// Each block's kind is told by its keys.
fn blocks(w: &Weights, is_encoder: bool) -> Result<Vec<Block>> {
    let load = |n: usize| -> Result<Block> {
        let (name, block) = (n.to_string(), w.at(n.to_string()));
        Ok(if block.has("norm1.weight") {
            Block::Residual(Residual::load(&block, "conv_out")?)
        } else if block.has("q.weight") {
            // Its attention has one head.
            Block::Attention(Attention::load(&block, 1)?)
        } else if block.has("conv.weight") && is_encoder {
            Block::Down(Down::load(&block, "conv")?)
        } else if block.has("conv.weight") {
            Block::Up(Up::load(&block, "conv")?)
        } else if w.shape(&format!("{name}.weight"))?.len() == 1 {
            Block::Norm(norm(w, &name)?)
        } else {
            Block::Conv(Conv::load(w, &name)?)
        })
    };
    // `count` looks below a name, and here the blocks are the name.
    (0..w.count("")).map(load).collect()
}

impl Block {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Conv(conv) => conv.forward(x),
            Self::Residual(block) => block.forward(x),
            Self::Attention(block) => block.forward(x, None),
            Self::Down(down) => down.forward(x),
            Self::Up(up) => up.forward(x),
            Self::Norm(norm) => norm.forward(x),
        }
    }
}

impl Layer {
    fn load(w: &Weights) -> Result<Self> {
        let (weight, bias) = (w.get("self_attn.in_proj_weight")?, w.get("self_attn.in_proj_bias")?);
        let width = bias.dim(0)? / 3;
        let part = |n: usize| {
            Linear::from_parts(
                weight.narrow(0, n * width, width)?,
                Some(bias.narrow(0, n * width, width)?),
            )
        };
        Ok(Self {
            norm1: LayerNorm::load(w, "norm1", 1e-5)?,
            query: part(0)?,
            key: part(1)?,
            value: part(2)?,
            out: Linear::load(w, "self_attn.out_proj")?,
            norm2: LayerNorm::load(w, "norm2", 1e-5)?,
            inner: Linear::load(w, "linear1")?,
            outer: Linear::load(w, "linear2")?,
        })
    }

    /// `x` is (1, n, width), `positions` (n, width).
    fn forward(&self, x: &Tensor, positions: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(x)?;
        let placed = normed.broadcast_add(positions)?;
        let (query, key) = (self.query.forward(&placed)?, self.key.forward(&placed)?);
        let mixed = attention(&query, &key, &self.value.forward(&normed)?, HEADS, None)?;
        let x = (x + self.out.forward(&mixed)?)?;
        let h = self.inner.forward_act(&self.norm2.forward(&x)?, Act::Gelu)?;
        Ok((&x + self.outer.forward(&h)?)?)
    }
}

impl Fusion {
    fn load(w: &Weights) -> Result<Self> {
        let pair = |name: &str| -> Result<[Conv; 2]> {
            Ok([
                Conv::load(w, &format!("{name}.0"))?,
                Conv::load(w, &format!("{name}.2"))?,
            ])
        };
        Ok(Self {
            merge: Residual::load(&w.at("encode_enc"), "conv_out")?,
            scale: pair("scale")?,
            shift: pair("shift")?,
        })
    }

    fn forward(&self, features: &Tensor, drawn: &Tensor) -> Result<Tensor> {
        let merged = self.merge.forward(&Tensor::cat(&[features, drawn], 1)?)?;
        let through = |[first, second]: &[Conv; 2]| second.forward(&first.forward_act(&merged, Act::Leaky(0.2))?);
        let change = ((drawn * through(&self.scale)?)? + through(&self.shift)?)?;
        Ok((drawn + (change * FIDELITY)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::face::made_up::apart_from_reference;

    #[test]
    fn a_tiny_network_gives_the_references_numbers() {
        let most = apart_from_reference("faces/codeformer", |w, x| {
            assert!(fits(w));
            let net = CodeFormer::load(w)?;
            assert_eq!((net.side(), net.fusions.len()), (64, 4));
            net.forward(x)
        });
        assert!(most <= 2e-4, "differs by {most}");
    }
}
