//! Pre-norm transformer layers and the vision tower that CLIP, BLIP and the safety checker share, in every published key layout.

use candle_core::{D, Tensor};

use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv, LayerNorm, Linear, attention};
use crate::weights::Weights;

/// Names of one layer's parts.
pub(crate) struct LayerKeys {
    norm1: &'static str,
    norm2: &'static str,
    qkv: Qkv,
    out: &'static str,
    up: &'static str,
    down: &'static str,
}

enum Qkv {
    /// Query, key and value apart.
    Apart([&'static str; 3]),
    /// One matrix: names of its weight and its bias.
    Fused(&'static str, &'static str),
}

/// Hugging Face's CLIP.
pub(crate) const HF_CLIP: LayerKeys = LayerKeys {
    norm1: "layer_norm1",
    norm2: "layer_norm2",
    qkv: Qkv::Apart(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    out: "self_attn.out_proj",
    up: "mlp.fc1",
    down: "mlp.fc2",
};
/// OpenAI's CLIP.
pub(crate) const OPENAI_CLIP: LayerKeys = LayerKeys {
    norm1: "ln_1",
    norm2: "ln_2",
    qkv: Qkv::Fused("attn.in_proj_weight", "attn.in_proj_bias"),
    out: "attn.out_proj",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
};
/// Hugging Face's BLIP.
pub(crate) const HF_BLIP: LayerKeys = LayerKeys {
    norm1: "layer_norm1",
    norm2: "layer_norm2",
    qkv: Qkv::Fused("self_attn.qkv.weight", "self_attn.qkv.bias"),
    out: "self_attn.projection",
    up: "mlp.fc1",
    down: "mlp.fc2",
};
/// Salesforce's BLIP.
pub(crate) const SALESFORCE_BLIP: LayerKeys = LayerKeys {
    norm1: "norm1",
    norm2: "norm2",
    qkv: Qkv::Fused("attn.qkv.weight", "attn.qkv.bias"),
    out: "attn.proj",
    up: "mlp.fc1",
    down: "mlp.fc2",
};

/// Attention and a two-layer perceptron, each behind a layer norm and beside a residual.
pub(crate) struct Layer {
    norm1: LayerNorm,
    qkv: Linear,
    out: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    heads: usize,
    act: Act,
}

/// Numbers that the tensors do not tell.
#[derive(Clone, Copy)]
pub(crate) struct LayerStyle {
    pub(crate) heads: usize,
    pub(crate) act: Act,
    pub(crate) eps: f64,
}

impl Layer {
    pub(crate) fn load(w: &Weights, keys: &LayerKeys, style: LayerStyle) -> Result<Self> {
        let qkv = match keys.qkv {
            Qkv::Fused(weight, bias) => Linear::from_parts(w.get(weight)?, Some(w.get(bias)?))?,
            Qkv::Apart(names) => {
                let parts = |end: &str| -> Result<Tensor> {
                    let parts = names
                        .iter()
                        .map(|n| w.get(&format!("{n}.{end}")))
                        .collect::<Result<Vec<_>>>()?;
                    Ok(Tensor::cat(&parts, 0)?)
                };
                Linear::from_parts(parts("weight")?, Some(parts("bias")?))?
            }
        };
        Ok(Self {
            norm1: LayerNorm::load(w, keys.norm1, style.eps)?,
            qkv,
            out: Linear::load(w, keys.out)?,
            norm2: LayerNorm::load(w, keys.norm2, style.eps)?,
            up: Linear::load(w, keys.up)?,
            down: Linear::load(w, keys.down)?,
            heads: style.heads,
            act: style.act,
        })
    }

    /// (b, n, c) to (b, n, c).
    pub(crate) fn forward(&self, x: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let width = qkv.dim(D::Minus1)? / 3;
        let part = |n: usize| qkv.narrow(D::Minus1, n * width, width);
        let mixed = attention(&part(0)?, &part(1)?, &part(2)?, self.heads, mask)?;
        let x = (x + self.out.forward(&mixed)?)?;
        let inner = self.up.forward_act(&self.norm2.forward(&x)?, self.act)?;
        Ok((x + self.down.forward(&inner)?)?)
    }
}

/// Head count: as told, else one per 64 channels, which every published CLIP and BLIP has.
pub(crate) fn heads(told: Option<usize>, width: usize) -> Result<usize> {
    let heads = told.unwrap_or((width / 64).max(1));
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(VisionError::Input(format!(
            "{heads} attention heads do not divide a width of {width}"
        )));
    }
    Ok(heads)
}

/// Longest side in pixels that is believed; published towers take at most 384.
const MAX_SIDE: usize = 2048;

/// Vision transformer: patches, a class token, positions, layers.
pub(crate) struct VisionTower {
    patches: Conv,
    class: Tensor,
    positions: Tensor,
    before: Option<LayerNorm>,
    layers: Vec<Layer>,
    after: LayerNorm,
    side: usize,
}

/// Where a layout keeps the tower's parts.
pub(crate) struct TowerKeys {
    pub(crate) patches: &'static str,
    pub(crate) class: &'static str,
    pub(crate) positions: &'static str,
    pub(crate) before: Option<&'static str>,
    pub(crate) layers: &'static str,
    pub(crate) after: &'static str,
    pub(crate) layer: LayerKeys,
}

impl VisionTower {
    pub(crate) fn load(w: &Weights, keys: &TowerKeys, told_heads: Option<usize>, act: Act, eps: f64) -> Result<Self> {
        let [width, _, patch, _] = w.dims(&format!("{}.weight", keys.patches))?;
        let style = LayerStyle {
            heads: heads(told_heads, width)?,
            act,
            eps,
        };
        let positions = w.get(keys.positions)?.reshape(((), width))?;
        let grid = ((positions.dim(0)? - 1) as f64).sqrt().round() as usize;
        if grid == 0 || grid * grid + 1 != positions.dim(0)? || grid.saturating_mul(patch) > MAX_SIDE {
            let expected = format!("a square of patches plus one is needed, for pictures of at most {MAX_SIDE} a side");
            return Err(w.misshapen(keys.positions, w.shape(keys.positions)?, expected));
        }
        Ok(Self {
            patches: Conv::load(w, keys.patches)?.stride(patch).padding(0),
            class: w.get(keys.class)?.reshape((1, 1, width))?,
            positions: positions.unsqueeze(0)?,
            before: keys.before.map(|name| LayerNorm::load(w, name, eps)).transpose()?,
            layers: (0..w.count(keys.layers))
                .map(|n| Layer::load(&w.at(format!("{}.{n}", keys.layers)), &keys.layer, style))
                .collect::<Result<_>>()?,
            after: LayerNorm::load(w, keys.after, eps)?,
            side: grid * patch,
        })
    }

    /// Side of the square pictures it takes, in pixels.
    pub(crate) fn side(&self) -> usize {
        self.side
    }

    /// (b, 3, side, side) to (b, 1 + patches, width), before the last norm.
    pub(crate) fn hidden(&self, x: &Tensor) -> Result<Tensor> {
        let (b, _, h, w) = x.dims4()?;
        if (h, w) != (self.side, self.side) {
            let side = self.side;
            return Err(VisionError::Input(format!(
                "the vision tower takes {side}x{side} pixels, not {w}x{h}"
            )));
        }
        let patches = self.patches.forward(x)?.flatten_from(2)?.transpose(1, 2)?; // (b, patches, width)
        let (_, _, width) = patches.dims3()?;
        let class = self.class.broadcast_as((b, 1, width))?;
        let mut x = Tensor::cat(&[&class, &patches], 1)?.broadcast_add(&self.positions)?;
        if let Some(norm) = &self.before {
            x = norm.forward(&x)?;
        }
        for layer in &self.layers {
            x = layer.forward(&x, None)?;
        }
        Ok(x)
    }

    /// The last norm.
    pub(crate) fn norm(&self, x: &Tensor) -> Result<Tensor> {
        self.after.forward(x)
    }
}
