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
    let (_, c_in, height, width) = x.dims4()?;
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
    let (x, padding) = if conv.circular && conv.padding > 0 {
        (wrap(x, conv.padding)?, 0)
    } else {
        (x.clone(), conv.padding)
    };
    if conv.groups == 1 && cpu::takes([&x, weight].into_iter().chain(bias)) {
        let op = cpu::Convolve {
            conv: Conv { padding, ..*conv },
            activation,
        };
        return x
            .contiguous()?
            .apply_op3_no_bwd(&weight.contiguous()?, &cpu::bias_or_empty(bias)?, &op);
    }
    if c_group == 1 && c_out == c_in && cpu::takes([&x, weight].into_iter().chain(bias)) {
        let op = cpu::ConvolveEach {
            conv: Conv { padding, ..*conv },
            activation,
        };
        return x
            .contiguous()?
            .apply_op3_no_bwd(&weight.contiguous()?, &cpu::bias_or_empty(bias)?, &op);
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
    activation.apply(&y)
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
