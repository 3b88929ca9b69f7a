//! Two-dimensional convolution, zero-padded or wrapping around (for pictures that tile).

use candle_core::{Result, Tensor};

use crate::{Activation, cpu, widen::product_dtype};

/// The geometry of a convolution; square in every respect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Step between outputs, at least 1.
    pub stride: usize,
    /// Rows and columns added on each side.
    pub padding: usize,
    /// Distance between the kernel's taps, at least 1.
    pub dilation: usize,
    /// Groups of channels, at least 1; divides both channel counts.
    pub groups: usize,
    /// Padding repeats the opposite edge instead of zeros.
    pub circular: bool,
}

impl Default for Conv {
    fn default() -> Self {
        Self {
            stride: 1,
            padding: 0,
            dilation: 1,
            groups: 1,
            circular: false,
        }
    }
}

impl Conv {
    /// Stride 1 with `padding` rows and columns of zeros on each side.
    pub fn padded(padding: usize) -> Self {
        Self {
            padding,
            ..Self::default()
        }
    }
}

/// Rows and columns that padding may add; far above any network's.
const MAX_BORDER: usize = 1 << 16;

/// `x (b, ci, h, w)`, `weight (co, ci / groups, kh, kw)`, `bias (co)` -> `(b, co, h', w')`.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: &Conv) -> Result<Tensor> {
    conv2d_act(x, weight, bias, conv, Activation::None)
}

/// [`conv2d`] with an activation on its result.
pub fn conv2d_act(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    conv: &Conv,
    activation: Activation,
) -> Result<Tensor> {
    let after = After {
        activation,
        ..After::default()
    };
    conv2d_joined(&[x], weight, bias, conv, &after)
}

/// What is done to a convolution's result while it is still in the cache, in this order.
#[derive(Clone, Copy, Debug, Default)]
pub struct After<'a> {
    /// Applied to each number.
    pub activation: Activation,
    /// Factors of negative numbers, one for each channel or one for all (PReLU); instead of the activation.
    pub slopes: Option<&'a Tensor>,
    /// A factor, and what is added to the product: a tensor of the result's shape.
    pub scaled_onto: Option<(f64, &'a Tensor)>,
    /// Applied to each number of the sum.
    pub last: Activation,
}

impl After<'_> {
    fn apply(&self, y: Tensor) -> Result<Tensor> {
        let y = match self.slopes {
            Some(slopes) => {
                let slopes = slopes.reshape((1, (), 1, 1))?;
                (y.relu()? - y.neg()?.relu()?.broadcast_mul(&slopes)?)?
            }
            None => self.activation.apply(&y)?,
        };
        let y = match self.scaled_onto {
            Some((factor, onto)) => ((y * factor)? + onto)?,
            None => y,
        };
        self.last.apply(&y)
    }
}

/// Convolution of pictures joined along their channels, `xs (b, c.., h, w)`, without joining them in memory where a kernel
/// of ours runs; `weight (co, ci / groups, kh, kw)` with the sum of the channels as `ci`.
pub fn conv2d_joined(
    xs: &[&Tensor],
    weight: &Tensor,
    bias: Option<&Tensor>,
    conv: &Conv,
    after: &After<'_>,
) -> Result<Tensor> {
    let Some(x) = xs.first() else {
        candle_core::bail!("a convolution of no picture");
    };
    let (batch, _, height, width) = x.dims4()?;
    let mut c_in = 0;
    for x in xs {
        let (b, c, h, w) = x.dims4()?;
        if (b, h, w) != (batch, height, width) {
            candle_core::bail!("pictures of {:?} and {:?} cannot be joined", xs[0].shape(), x.shape());
        }
        c_in += c;
    }
    let (c_out, c_group, kernel_h, kernel_w) = weight.dims4()?;
    if conv.stride == 0 || conv.dilation == 0 || conv.groups == 0 {
        candle_core::bail!("convolution with a zero stride, dilation or group count");
    }
    if c_group * conv.groups != c_in || c_out % conv.groups != 0 {
        candle_core::bail!(
            "{c_in} channels do not fit a weight of {:?} in {} groups",
            weight.shape(),
            conv.groups
        );
    }
    if bias.is_some_and(|bias| bias.elem_count() != c_out) {
        candle_core::bail!("a bias does not fit {c_out} output channels");
    }
    let reach = |kernel: usize| (kernel.max(1) - 1).saturating_mul(conv.dilation).saturating_add(1);
    let Some(border) = conv.padding.checked_mul(2).filter(|n| *n <= MAX_BORDER) else {
        candle_core::bail!("a padding of {} is too large", conv.padding);
    };
    if height + border < reach(kernel_h) || width + border < reach(kernel_w) {
        candle_core::bail!("a picture of {width}x{height} is smaller than the kernel {kernel_w}x{kernel_h}");
    }
    if after
        .slopes
        .is_some_and(|slopes| slopes.elem_count() != 1 && slopes.elem_count() != c_out)
    {
        candle_core::bail!("slopes do not fit {c_out} output channels");
    }
    let wraps = conv.circular && conv.padding > 0;
    let padding = if wraps { 0 } else { conv.padding };
    let operands = xs.iter().copied().chain([weight]).chain(bias).chain(after.slopes);
    let operands = operands.chain(after.scaled_onto.map(|(_, onto)| onto));
    if conv.groups == 1 && cpu::takes(operands) {
        let mut parts = Vec::with_capacity(xs.len());
        for x in xs {
            let x = if wraps { wrap(x, conv.padding)? } else { (*x).clone() };
            parts.push(x.contiguous()?);
        }
        let x = parts.remove(0);
        let op = cpu::Convolve {
            conv: Conv { padding, ..*conv },
            activation: after.activation,
            more: parts,
            slopes: after.slopes.map(|slopes| slopes.flatten_all()?.to_vec1()).transpose()?,
            scaled_onto: after
                .scaled_onto
                .map(|(factor, onto)| Ok::<_, candle_core::Error>((factor as f32, onto.contiguous()?)))
                .transpose()?,
            last: after.last,
        };
        return x.apply_op3_no_bwd(&weight.contiguous()?, &cpu::bias_or_empty(bias)?, &op);
    }
    let x = match xs {
        [x] => (*x).clone(),
        _ => Tensor::cat(xs, 1)?,
    };
    let x = if wraps { wrap(&x, conv.padding)? } else { x };
    if c_group == 1 && c_out == c_in && cpu::takes([&x, weight].into_iter().chain(bias)) {
        let op = cpu::ConvolveEach {
            conv: Conv { padding, ..*conv },
            activation: if after.slopes.is_some() {
                Activation::None
            } else {
                after.activation
            },
        };
        let y = x
            .contiguous()?
            .apply_op3_no_bwd(&weight.contiguous()?, &cpu::bias_or_empty(bias)?, &op)?;
        let rest = After {
            activation: Activation::None,
            ..*after
        };
        return rest.apply(y);
    }
    let dtype = product_dtype(&x);
    let y = x
        .to_dtype(dtype)?
        .contiguous()?
        .conv2d(
            &weight.to_dtype(dtype)?,
            padding,
            conv.stride,
            conv.dilation,
            conv.groups,
        )?
        .to_dtype(x.dtype())?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, c_out, 1, 1))?)?,
        None => y,
    };
    after.apply(y)
}

/// Continues a picture by `n` rows and columns of its opposite edges.
fn wrap(x: &Tensor, n: usize) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if n > height || n > width {
        candle_core::bail!("circular padding of {n} exceeds the picture {width}x{height}");
    }
    let x = Tensor::cat(&[&x.narrow(2, height - n, n)?, x, &x.narrow(2, 0, n)?], 2)?;
    Tensor::cat(&[&x.narrow(3, width - n, n)?, &x, &x.narrow(3, 0, n)?], 3)
}
