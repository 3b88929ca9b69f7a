//! Layers as checkpoints name them, each read from [`Weights`] and run through the kernels of `tensor-ops`.

use candle_core::{D, Tensor};

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
        Ok(match self {
            Self::None => x.clone(),
            Self::Relu => x.relu()?,
            Self::Leaky(slope) => x.maximum(&(x * slope)?)?,
            Self::Silu => x.silu()?,
            Self::Gelu => x.gelu_erf()?,
            Self::QuickGelu => (x * sigmoid(&(x * 1.702)?)?)?,
            Self::Mish => {
                // ln(1 + e^x) written so that a large x does not overflow.
                let softplus = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
                (x * softplus.tanh()?)?
            }
        })
    }
}

/// Two-dimensional convolution, NCHW.
pub(crate) struct Conv {
    weight: Tensor,
    bias: Option<Tensor>,
    stride: usize,
    padding: usize,
    dilation: usize,
    groups: usize,
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
            stride: 1,
            padding: kernel / 2,
            dilation: 1,
            groups: 1,
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
        self.stride = stride;
        self
    }

    pub(crate) fn padding(mut self, padding: usize) -> Self {
        self.padding = padding;
        self
    }

    /// Dilated, padded to keep the size.
    pub(crate) fn dilation(mut self, dilation: usize) -> Self {
        self.dilation = dilation;
        self.padding *= dilation;
        self
    }

    pub(crate) fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }

    pub(crate) fn out_channels(&self) -> usize {
        self.weight.dims()[0]
    }

    pub(crate) fn in_channels(&self) -> usize {
        self.weight.dims()[1] * self.groups
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_act(x, Act::None)
    }

    pub(crate) fn forward_act(&self, x: &Tensor, act: Act) -> Result<Tensor> {
        let y = x.conv2d(&self.weight, self.padding, self.stride, self.dilation, self.groups)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(&bias.reshape((1, (), 1, 1))?)?,
            None => y,
        };
        act.run(&y)
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
        let (out, inner) = self.weight.dims2()?;
        let mut shape = x.dims().to_vec();
        let rows = x.elem_count() / inner;
        let y = x.reshape((rows, inner))?.matmul(&self.weight.t()?)?;
        let y = match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        };
        if let Some(last) = shape.last_mut() {
            *last = out;
        }
        Ok(y.reshape(shape)?)
    }

    pub(crate) fn forward_act(&self, x: &Tensor, act: Act) -> Result<Tensor> {
        act.run(&self.forward(x)?)
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
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + self.eps)?.sqrt()?)?;
        Ok(normed.broadcast_mul(&self.weight)?.broadcast_add(&self.bias)?)
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
        let (b, c, h, w) = x.dims4()?;
        let grouped = x.reshape((b, self.groups, c / self.groups * h * w))?;
        let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred
            .broadcast_div(&(variance + self.eps)?.sqrt()?)?
            .reshape((b, c, h, w))?;
        let shape = (1, c, 1, 1);
        act.run(
            &normed
                .broadcast_mul(&self.weight.reshape(shape)?)?
                .broadcast_add(&self.bias.reshape(shape)?)?,
        )
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
    let (b, n, c) = q.dims3()?;
    let split = |x: &Tensor| -> Result<Tensor> {
        let (b, n, c) = x.dims3()?;
        Ok(x.reshape((b, n, heads, c / heads))?.transpose(1, 2)?.contiguous()?) // (b, heads, n, c / heads)
    };
    let scale = 1.0 / ((c / heads) as f64).sqrt();
    let scores = ((split(q)? * scale)?).matmul(&split(k)?.transpose(2, 3)?)?; // (b, heads, n, m)
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let mixed = softmax(&scores)?.matmul(&split(v)?)?;
    Ok(mixed.transpose(1, 2)?.reshape((b, n, c))?)
}

/// (b, c r², h, w) to (b, c, h r, w r), torch's `pixel_shuffle`.
pub(crate) fn pixel_shuffle(x: &Tensor, r: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let out = c / (r * r);
    Ok(x.reshape(&[b, out, r, r, h, w][..])?
        .permute([0, 1, 4, 2, 5, 3])?
        .reshape((b, out, h * r, w * r))?)
}

/// (b, c, h r, w r) to (b, c r², h, w), torch's `pixel_unshuffle`.
pub(crate) fn pixel_unshuffle(x: &Tensor, r: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    Ok(x.reshape(&[b, c, h / r, r, w / r, r][..])?
        .permute([0, 1, 3, 5, 2, 4])?
        .reshape((b, c * r * r, h / r, w / r))?)
}

/// Nearest-neighbour enlargement by a whole factor.
pub(crate) fn upsample_nearest(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    Ok(x.upsample_nearest2d(h * factor, w * factor)?)
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

/// Largest value of each `kernel`×`kernel` window, the stride apart, windows beyond the lower and right edge cut off
/// (torch's `ceil_mode=True`).
pub(crate) fn max_pool_ceil(x: &Tensor, kernel: usize, stride: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let pad = |n: usize| {
        let windows = n.saturating_sub(kernel).div_ceil(stride) + 1;
        ((windows - 1) * stride + kernel).saturating_sub(n)
    };
    // Repeating the edge never changes a maximum.
    let padded = x.pad_with_same(2, 0, pad(h))?.pad_with_same(3, 0, pad(w))?;
    Ok(padded.max_pool2d_with_stride(kernel, stride)?)
}
