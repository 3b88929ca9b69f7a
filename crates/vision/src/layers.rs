//! Layers as checkpoints name them, each read from [`Weights`] and run through the kernels of `tensor-ops`.

use candle_core::{D, Tensor};
use tensor_ops::{Activation, After};

use crate::error::Result;
use crate::weights::Weights;

/// What follows a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Act {
    None,
    Relu,
    /// Slope below zero.
    Leaky(f64),
    Silu,
    /// Exact, by the error function.
    Gelu,
    /// `x * sigmoid(1.702 x)`, OpenAI's CLIP.
    QuickGelu,
    /// `x * tanh(ln(1 + e^x))`
    Mish,
}

impl Act {
    pub(crate) fn run(self, x: &Tensor) -> Result<Tensor> {
        let Self::Mish = self else {
            return Ok(self.fused().apply(x)?);
        };
        // ln(1 + e^x) written so that a large x does not overflow.
        let softplus = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        Ok((x * softplus.tanh()?)?)
    }

    /// What the kernels apply by themselves; nothing for those they do not know.
    fn fused(self) -> Activation {
        match self {
            Self::None | Self::Mish => Activation::None,
            Self::Relu => Activation::Relu,
            Self::Leaky(slope) => Activation::LeakyRelu(slope),
            Self::Silu => Activation::Silu,
            Self::Gelu => Activation::GeluErf,
            Self::QuickGelu => Activation::QuickGelu,
        }
    }
}

/// Two-dimensional convolution, NCHW.
pub(crate) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    shape: tensor_ops::Conv,
}

impl Conv {
    /// `name.weight`, `name.bias` (if there), stride 1, padded to keep the size.
    pub(crate) fn load(w: &Weights, name: &str) -> Result<Self> {
        Self::from_parts(w.get(&format!("{name}.weight"))?, bias(w, name)?)
    }

    pub(crate) fn from_parts(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (_, _, kernel, _) = weight.dims4()?;
        Ok(Self {
            weight,
            bias,
            shape: tensor_ops::Conv::padded(kernel / 2),
        })
    }

    /// A convolution with the batch norm after it folded in. Either name may be missing its bias; without a batch norm
    /// the convolution is taken as folded already.
    pub(crate) fn load_with_norm(w: &Weights, conv: &str, norm: &str) -> Result<Self> {
        let mut folded = Self::load(w, conv)?;
        if !w.has(&format!("{norm}.running_var")) {
            return Ok(folded);
        }
        let (scale, shift) = batch_norm(w, norm)?;
        let bias = match &folded.bias {
            Some(bias) => ((bias * &scale)? + shift)?,
            None => shift,
        };
        folded.weight = folded.weight.broadcast_mul(&scale.reshape(((), 1, 1, 1))?)?;
        folded.bias = Some(bias);
        Ok(folded)
    }

    pub(crate) fn stride(mut self, stride: usize) -> Self {
        self.shape.stride = stride;
        self
    }

    pub(crate) fn padding(mut self, padding: usize) -> Self {
        self.shape.padding = padding;
        self
    }

    /// Dilated, padded to keep the size.
    pub(crate) fn dilation(mut self, dilation: usize) -> Self {
        self.shape.dilation = dilation;
        self.shape.padding *= dilation;
        self
    }

    pub(crate) fn groups(mut self, groups: usize) -> Self {
        self.shape.groups = groups;
        self
    }

    pub(crate) fn out_channels(&self) -> usize {
        self.weight.dims()[0]
    }

    pub(crate) fn in_channels(&self) -> usize {
        self.weight.dims()[1] * self.shape.groups
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_act(x, Act::None)
    }

    pub(crate) fn forward_act(&self, x: &Tensor, act: Act) -> Result<Tensor> {
        self.forward_joined(&[x], act)
    }

    /// Of pictures joined along their channels.
    pub(crate) fn forward_joined(&self, xs: &[&Tensor], act: Act) -> Result<Tensor> {
        let after = After {
            activation: act.fused(),
            ..After::default()
        };
        let y = self.forward_after(xs, &after)?;
        if act == Act::Mish { act.run(&y) } else { Ok(y) }
    }

    /// The activation of the sum with a picture of the result's shape.
    pub(crate) fn forward_onto(&self, x: &Tensor, onto: &Tensor, act: Act) -> Result<Tensor> {
        let after = After {
            scaled_onto: Some((1.0, onto)),
            last: act.fused(),
            ..After::default()
        };
        let y = self.forward_after(&[x], &after)?;
        if act == Act::Mish { act.run(&y) } else { Ok(y) }
    }

    /// Of pictures joined along their channels, with whatever comes after.
    pub(crate) fn forward_after(&self, xs: &[&Tensor], after: &After<'_>) -> Result<Tensor> {
        Ok(tensor_ops::conv2d_joined(
            xs,
            &self.weight,
            self.bias.as_ref(),
            &self.shape,
            after,
        )?)
    }
}

/// `y = x W^T + b` over the last axis.
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn load(w: &Weights, name: &str) -> Result<Self> {
        Self::from_parts(w.get(&format!("{name}.weight"))?, bias(w, name)?)
    }

    pub(crate) fn from_parts(weight: Tensor, bias: Option<Tensor>) -> Result<Self> {
        Ok(Self {
            weight: weight.contiguous()?,
            bias,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_act(x, Act::None)
    }

    pub(crate) fn forward_act(&self, x: &Tensor, act: Act) -> Result<Tensor> {
        let y = tensor_ops::linear_act(x, &self.weight, self.bias.as_ref(), act.fused())?;
        if act == Act::Mish { act.run(&y) } else { Ok(y) }
    }
}

/// Layer norm over the last axis.
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn load(w: &Weights, name: &str, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: w.get(&format!("{name}.weight"))?,
            bias: w.get(&format!("{name}.bias"))?,
            eps,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(tensor_ops::layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}

/// Group norm, NCHW.
pub(crate) struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(crate) fn load(w: &Weights, name: &str, groups: usize, eps: f64) -> Result<Self> {
        let [channels] = w.dims(&format!("{name}.weight"))?;
        if groups == 0 || channels % groups != 0 {
            let expected = format!("its channels must be a multiple of {groups} groups");
            return Err(w.misshapen(&format!("{name}.weight"), vec![channels], expected));
        }
        Ok(Self {
            weight: w.get(&format!("{name}.weight"))?,
            bias: w.get(&format!("{name}.bias"))?,
            groups,
            eps,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_act(x, Act::None)
    }

    pub(crate) fn forward_act(&self, x: &Tensor, act: Act) -> Result<Tensor> {
        let silu = act == Act::Silu;
        let norm = tensor_ops::GroupNorm {
            groups: self.groups,
            eps: self.eps,
            silu,
        };
        let y = tensor_ops::group_norm(x, &self.weight, &self.bias, &norm)?;
        if silu { Ok(y) } else { act.run(&y) }
    }
}

fn bias(w: &Weights, name: &str) -> Result<Option<Tensor>> {
    let key = format!("{name}.bias");
    if w.has(&key) { w.get(&key).map(Some) } else { Ok(None) }
}

/// Scale and shift that a batch norm at rest comes to (eps 1e-5).
pub(crate) fn batch_norm(w: &Weights, name: &str) -> Result<(Tensor, Tensor)> {
    let get = |part: &str| w.get(&format!("{name}.{part}"));
    let scale = (get("weight")? / (get("running_var")? + 1e-5)?.sqrt()?)?;
    let shift = (get("bias")? - (get("running_mean")? * &scale)?)?;
    Ok((scale, shift))
}

pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

/// Softmax over the last axis.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?)
}

/// Scaled dot-product attention. `q` is (b, n, c), `k` and `v` are (b, m, c) with `c` split among `heads`;
/// `mask` is added to the scores and broadcasts to (b, heads, n, m). Gives (b, n, c).
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
    let how = tensor_ops::Attention {
        mask,
        ..tensor_ops::Attention::new(heads)
    };
    Ok(tensor_ops::attention(q, k, v, &how)?)
}

/// (b, c r², h, w) to (b, c, h r, w r), torch's `pixel_shuffle`.
pub(crate) fn pixel_shuffle(x: &Tensor, r: usize) -> Result<Tensor> {
    Ok(tensor_ops::pixel_shuffle(x, r)?)
}

/// (b, c, h r, w r) to (b, c r², h, w), torch's `pixel_unshuffle`.
pub(crate) fn pixel_unshuffle(x: &Tensor, r: usize) -> Result<Tensor> {
    Ok(tensor_ops::pixel_unshuffle(x, r)?)
}

/// Nearest-neighbour enlargement by a whole factor.
pub(crate) fn upsample_nearest(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    Ok(tensor_ops::upsample_nearest(x, h * factor, w * factor)?)
}

/// Bilinear resampling to `height`×`width`, pixel centres aligned (torch's `align_corners=False`).
pub(crate) fn resize_bilinear(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    use imaging::{Planar, PlanarFilter};
    let (b, c, h, w) = x.dims4()?;
    if (h, w) == (height, width) {
        return Ok(x.clone());
    }
    let planar = Planar::new(b * c, w as u32, h as u32, x.flatten_all()?.to_vec1::<f32>()?)?;
    let resized = planar.resized(width as u32, height as u32, PlanarFilter::Bilinear);
    Ok(Tensor::from_vec(
        resized.into_data(),
        (b, c, height, width),
        x.device(),
    )?)
}

/// Largest value of each `kernel`×`kernel` window, the stride apart from the edge on, windows beyond the lower and right edge cut off
/// (torch's `ceil_mode=True`).
pub(crate) fn max_pool_ceil(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    Ok(tensor_ops::max_pool(x, [kernel, stride, 0], true)?)
}
