//! Layers that look their weights up when they run, so that a LoRA can change them between runs.

use candle_core::{DType, Result, Tensor};
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

/// Mean and mean square of each group, over however many pixels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Pixels counted.
    pub weight: f64,
    /// Per group.
    pub mean: Vec<f64>,
    /// Per group.
    pub square: Vec<f64>,
}

impl Moments {
    /// With those of further pixels.
    pub fn join(&mut self, other: &Self) {
        if self.mean.is_empty() {
            *self = other.clone();
            return;
        }
        let total = self.weight + other.weight;
        let share = if total > 0.0 { other.weight / total } else { 0.0 };
        for (mine, theirs) in [(&mut self.mean, &other.mean), (&mut self.square, &other.square)] {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine += (theirs - *mine) * share;
            }
        }
        self.weight = total;
    }
}

impl Norm {
    /// The moments of `x (1, c, h, w)`.
    pub fn moments(&self, x: &Tensor) -> Result<Moments> {
        let (_, c, h, w) = x.dims4()?;
        let groups = self.norm.groups.clamp(1, c.max(1));
        let rows = x
            .contiguous()?
            .reshape((groups, c * h * w / groups))?
            .to_dtype(DType::F32)?;
        let numbers =
            |tensor: Tensor| -> Result<Vec<f64>> { Ok(tensor.to_vec1::<f32>()?.into_iter().map(f64::from).collect()) };
        Ok(Moments {
            weight: (h * w) as f64,
            mean: numbers(rows.mean(1)?)?,
            square: numbers(rows.sqr()?.mean(1)?)?,
        })
    }

    /// Normalises `x (1, c, h, w)` as if its groups had these moments.
    pub fn forward_with(&self, x: &Tensor, moments: &Moments) -> Result<Tensor> {
        let c = x.dim(1)?;
        let each = c.checked_div(moments.mean.len()).unwrap_or(0).max(1);
        let spread = |i: usize| {
            let (mean, square) = (moments.mean[i], moments.square[i]);
            1.0 / ((square - mean * mean).max(0.0) + self.norm.eps).sqrt()
        };
        let last = moments.mean.len().saturating_sub(1);
        let groups = (0..c).map(|channel| (channel / each).min(last));
        let scales: Vec<f32> = groups.clone().map(|group| spread(group) as f32).collect();
        let means: Vec<f32> = groups.map(|group| moments.mean[group] as f32).collect();
        let column = |values: Vec<f32>| Tensor::from_vec(values, (1, c, 1, 1), x.device())?.to_dtype(x.dtype());
        let scale = (column(scales)? * self.weight.get().reshape((1, c, 1, 1))?)?;
        let shift = (self.bias.get().reshape((1, c, 1, 1))? - (column(means)? * &scale)?)?;
        let y = x.broadcast_mul(&scale)?.broadcast_add(&shift)?;
        if self.norm.silu { tensor_ops::silu(&y) } else { Ok(y) }
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
