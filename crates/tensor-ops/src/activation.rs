//! Pointwise functions and the gated one of transformer blocks.

use candle_core::{D, Result, Tensor};

/// What is applied to a result before it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Activation {
    /// Nothing.
    #[default]
    None,
    /// `x * sigmoid(x)`.
    Silu,
    /// Gelu with the error function, as torch's default (not the tanh approximation).
    GeluErf,
    /// `x * sigmoid(1.702 x)`, as OpenAI's CLIP.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `x` where positive, `slope * x` elsewhere.
    LeakyRelu(f64),
    /// The logistic function.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Applies it to a tensor of any shape.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Silu => silu(x),
            Self::GeluErf => gelu_erf(x),
            Self::QuickGelu => quick_gelu(x),
            Self::Relu => x.relu(),
            Self::LeakyRelu(slope) => x.relu()? - (x.neg()?.relu()? * slope)?,
            Self::Sigmoid => sigmoid(x),
            Self::Tanh => x.tanh(),
        }
    }
}

/// `x * sigmoid(x)`, any shape.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    x.silu()
}

/// Gelu with the error function, any shape.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    x.gelu_erf()
}

/// `x * sigmoid(1.702 x)`, any shape.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    x.mul(&sigmoid(&(x * 1.702)?)?)
}

/// `(.., 2n) -> (.., n)`: the first half times the erf-gelu of the second half.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if width % 2 != 0 {
        candle_core::bail!("geglu needs an even last dimension, got {width}");
    }
    let value = x.narrow(D::Minus1, 0, width / 2)?;
    let gate = x.narrow(D::Minus1, width / 2, width / 2)?;
    value.mul(&gelu_erf(&gate.contiguous()?)?)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}
