//! The greatest number of each window.

use candle_core::{Result, Tensor};

use crate::cpu;

/// Greatest number of each `kernel`×`kernel` window, `stride` apart, the first beginning `padding` before the picture. With
/// `ceil` a last window may reach beyond its end (torch's `ceil_mode=True`). What lies outside does not count, so the padding
/// must be smaller than the window. `(b, c, h, w)` to `(b, c, h', w')`.
pub fn max_pool(x: &Tensor, [kernel, stride, padding]: [usize; 3], ceil: bool) -> Result<Tensor> {
    let (_, _, height, width) = x.dims4()?;
    if stride == 0 || kernel == 0 || padding >= kernel || stride > kernel {
        candle_core::bail!("windows of {kernel}, {stride} apart, from {padding} before the picture");
    }
    if height.min(width) == 0 || height.min(width) + 2 * padding < kernel {
        candle_core::bail!("a picture of {width}x{height} is smaller than a window of {kernel}");
    }
    let windows = |n: usize| {
        let beyond = n + 2 * padding - kernel;
        let count = if ceil { beyond.div_ceil(stride) } else { beyond / stride } + 1;
        // The last window begins in the picture or in the padding before it.
        if ceil && (count - 1) * stride >= n + padding {
            count - 1
        } else {
            count
        }
    };
    let windows = (windows(height), windows(width));
    if cpu::takes([x]) {
        return x.contiguous()?.apply_op1_no_bwd(&cpu::Greatest {
            kernel,
            stride,
            padding,
            windows,
        });
    }
    // Repeating an edge never changes a maximum.
    let after = |n: usize, windows: usize| ((windows - 1) * stride + kernel).saturating_sub(n + padding);
    x.pad_with_same(2, padding, after(height, windows.0))?
        .pad_with_same(3, padding, after(width, windows.1))?
        .max_pool2d_with_stride(kernel, stride)
}
