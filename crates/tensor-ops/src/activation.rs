//! Pointwise functions and the gated one of transformer blocks.

use candle_core::{D, Result, Tensor};

use crate::cpu;

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
        if self != Self::None && cpu::takes([x]) {
            return x.contiguous()?.apply_op1_no_bwd(&cpu::Activate(self));
        }
        match self {
            Self::None => Ok(x.clone()),
            Self::Silu => x.silu(),
            Self::GeluErf => x.gelu_erf(),
            Self::QuickGelu => x.mul(&sigmoid(&(x * 1.702)?)?),
            Self::Relu => x.relu(),
            Self::LeakyRelu(slope) => x.relu()? - (x.neg()?.relu()? * slope)?,
            Self::Sigmoid => sigmoid(x),
            Self::Tanh => x.tanh(),
        }
    }
}

/// `x * sigmoid(x)`, any shape.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    Activation::Silu.apply(x)
}

/// Gelu with the error function, any shape.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    Activation::GeluErf.apply(x)
}

/// `x * sigmoid(1.702 x)`, any shape.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    Activation::QuickGelu.apply(x)
}

/// `(.., 2n) -> (.., n)`: the first half times the erf-gelu of the second half.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if width % 2 != 0 {
        candle_core::bail!("geglu needs an even last dimension, got {width}");
    }
    if cpu::takes([x]) {
        return x.contiguous()?.apply_op1_no_bwd(&cpu::Geglu);
    }
    let value = x.narrow(D::Minus1, 0, width / 2)?;
    let gate = x.narrow(D::Minus1, width / 2, width / 2)?;
    value.mul(&gelu_erf(&gate.contiguous()?)?)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}
