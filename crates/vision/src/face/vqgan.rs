//! What CodeFormer and RestoreFormer are both built of: the blocks of an autoencoder over a codebook.
//!
//! Structure: Esser et al. 2021 (arXiv 2012.09841).

use candle_core::Tensor;

use crate::error::Result;
use crate::layers::{Act, Conv, GroupNorm, attention, upsample_nearest};
use crate::weights::Weights;

/// Two convolutions beside a shortcut.
pub(super) struct Residual {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

/// Every position looks at every other.
pub(super) struct Attention {
    norm: GroupNorm,
    /// Of what asks, where that may be something else.
    norm_asking: Option<GroupNorm>,
    query: Conv,
    key: Conv,
    value: Conv,
    out: Conv,
    heads: usize,
}

/// Halves both sides.
pub(super) struct Down(Conv);

/// Doubles both sides.
pub(super) struct Up(Conv);

pub(super) fn norm(w: &Weights, name: &str) -> Result<GroupNorm> {
    GroupNorm::load(w, name, 32, 1e-6)
}

impl Residual {
    /// `shortcut` names the convolution that is there where the number of channels changes.
    pub(super) fn load(w: &Weights, shortcut: &str) -> Result<Self> {
        Ok(Self {
            norm1: norm(w, "norm1")?,
            conv1: Conv::load(w, "conv1")?,
            norm2: norm(w, "norm2")?,
            conv2: Conv::load(w, "conv2")?,
            shortcut: if w.has(&format!("{shortcut}.weight")) {
                Some(Conv::load(w, shortcut)?)
            } else {
                None
            },
        })
    }

    /// (b, c, h, w) to (b, d, h, w).
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.conv1.forward(&self.norm1.forward_act(x, Act::Silu)?)?;
        let h = self.conv2.forward(&self.norm2.forward_act(&h, Act::Silu)?)?;
        Ok(match &self.shortcut {
            Some(conv) => (h + conv.forward(x)?)?,
            None => (h + x)?,
        })
    }
}

impl Attention {
    /// With one norm, `norm`, or with two, `norm1` and `norm2`, of which the second is for what asks.
    pub(super) fn load(w: &Weights, heads: usize) -> Result<Self> {
        let has_two = w.has("norm2.weight");
        Ok(Self {
            norm: norm(w, if has_two { "norm1" } else { "norm" })?,
            norm_asking: if has_two { Some(norm(w, "norm2")?) } else { None },
            query: Conv::load(w, "q")?,
            key: Conv::load(w, "k")?,
            value: Conv::load(w, "v")?,
            out: Conv::load(w, "proj_out")?,
            heads,
        })
    }

    /// (b, c, h, w) to the same. Attends to itself, with queries from `asking` where that is given.
    pub(super) fn forward(&self, x: &Tensor, asking: Option<&Tensor>) -> Result<Tensor> {
        let (b, c, h, w) = x.dims4()?;
        let normed = self.norm.forward(x)?;
        let asking = match (asking, &self.norm_asking) {
            (Some(asking), Some(norm)) => norm.forward(asking)?,
            (Some(asking), None) => self.norm.forward(asking)?,
            (None, _) => normed.clone(),
        };
        let rows = |conv: &Conv, y: &Tensor| -> Result<Tensor> {
            Ok(conv.forward(y)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?) // (b, h w, c)
        };
        let (query, key) = (rows(&self.query, &asking)?, rows(&self.key, &normed)?);
        let mixed = attention(&query, &key, &rows(&self.value, &normed)?, self.heads, None)?;
        let mixed = mixed.transpose(1, 2)?.contiguous()?.reshape((b, c, h, w))?;
        Ok((x + self.out.forward(&mixed)?)?)
    }
}

impl Down {
    pub(super) fn load(w: &Weights, name: &str) -> Result<Self> {
        Ok(Self(Conv::load(w, name)?.stride(2).padding(0)))
    }

    /// (b, c, h, w) to (b, c, h / 2, w / 2); padded on the right and below only.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(&x.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?)
    }
}

impl Up {
    pub(super) fn load(w: &Weights, name: &str) -> Result<Self> {
        Ok(Self(Conv::load(w, name)?))
    }

    /// (b, c, h, w) to (b, c, 2 h, 2 w).
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.0.forward(&upsample_nearest(x, 2)?)
    }
}
