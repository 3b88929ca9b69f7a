//! Layers that look their weights up when they run, so that a LoRA can change them between runs.

use candle_core::{Result, Tensor};
use tensor_ops::{Activation, Conv as Geometry, GroupNorm};

use crate::weights::{Loader, Param};

/// `(.., in) -> (.., out)`.
pub struct Linear {
    weight: Param,
    bias: Option<Param>,
}

impl Linear {
    /// With the bias if there is one.
    pub fn new(loader: &Loader<'_>) -> crate::Result<Self> {
        Ok(Self {
            weight: loader.get("weight")?,
            bias: if loader.has("bias") {
                Some(loader.get("bias")?)
            } else {
                None
            },
        })
    }

    /// A 1x1 convolution's weight serves as well.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_act(x, Activation::None)
    }

    /// With an activation on the result.
    pub fn forward_act(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let weight = self.weight.get();
        let weight = if weight.rank() > 2 {
            weight.flatten_from(1)?
        } else {
            weight
        };
        let bias = self.bias.as_ref().map(Param::get);
        tensor_ops::linear_act(x, &weight, bias.as_ref(), activation)
    }
}

/// `(b, ci, h, w) -> (b, co, h', w')`.
pub struct Conv {
    weight: Param,
    bias: Option<Param>,
    geometry: Geometry,
}

impl Conv {
    /// Padded to keep the size at stride 1.
    pub fn new(loader: &Loader<'_>, stride: usize) -> crate::Result<Self> {
        let kernel = loader.shape("weight")?.get(2).copied().unwrap_or(1);
        let geometry = Geometry {
            stride,
            ..Geometry::padded(kernel / 2)
        };
        Self::with(loader, geometry)
    }

    /// With a geometry of its own.
    pub fn with(loader: &Loader<'_>, geometry: Geometry) -> crate::Result<Self> {
        Ok(Self {
            weight: loader.get("weight")?,
            bias: if loader.has("bias") {
                Some(loader.get("bias")?)
            } else {
                None
            },
            geometry,
        })
    }

    /// `circular` wraps the picture around its edges.
    pub fn forward(&self, x: &Tensor, circular: bool) -> Result<Tensor> {
        let geometry = Geometry {
            circular,
            ..self.geometry
        };
        let bias = self.bias.as_ref().map(Param::get);
        tensor_ops::conv2d(x, &self.weight.get(), bias.as_ref(), &geometry)
    }
}

/// A normalisation over groups of channels.
pub struct Norm {
    weight: Param,
    bias: Param,
    norm: GroupNorm,
}

impl Norm {
    /// `silu` says whether that activation follows.
    pub fn new(loader: &Loader<'_>, groups: usize, eps: f64, silu: bool) -> crate::Result<Self> {
        Ok(Self {
            weight: loader.get("weight")?,
            bias: loader.get("bias")?,
            norm: GroupNorm { groups, eps, silu },
        })
    }

    /// Any `(b, c, ..)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        tensor_ops::group_norm(x, &self.weight.get(), &self.bias.get(), &self.norm)
    }
}

/// A normalisation over the last dimension, eps 1e-5.
pub struct LayerNorm {
    weight: Param,
    bias: Param,
}

impl LayerNorm {
    /// Reads weight and bias.
    pub fn new(loader: &Loader<'_>) -> crate::Result<Self> {
        Ok(Self {
            weight: loader.get("weight")?,
            bias: loader.get("bias")?,
        })
    }

    /// Any `(.., n)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        tensor_ops::layer_norm(x, &self.weight.get(), &self.bias.get(), 1e-5)
    }
}
