//! Enlarging and rearranging pixels.

use candle_core::{Result, Tensor};

use crate::cpu;

/// `(b, c, h, w) -> (b, c, height, width)`, each output taking the input at `floor(position · h / height)`.
pub fn upsample_nearest(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if (h, w) == (height, width) {
        return Ok(x.clone());
    }
    if h == 0 || w == 0 || height == 0 || width == 0 {
        candle_core::bail!("cannot resample {w}x{h} to {width}x{height}");
    }
    if cpu::takes([x]) {
        return x.contiguous()?.apply_op1_no_bwd(&cpu::Nearest { height, width });
    }
    x.contiguous()?.upsample_nearest2d(height, width)
}

/// `(b, c·f², h, w) -> (b, c, h·f, w·f)`, as torch's `pixel_shuffle`.
pub fn pixel_shuffle(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    let c_out = shuffled(c, factor)?;
    if cpu::takes([x]) {
        return x.contiguous()?.apply_op1_no_bwd(&cpu::Shuffle { factor, onto: None });
    }
    x.contiguous()?
        .reshape(vec![b, c_out, factor, factor, h, w])?
        .permute(vec![0, 1, 4, 2, 5, 3])? // (b, c, h, f, w, f)
        .contiguous()?
        .reshape((b, c_out, h * factor, w * factor))
}

/// Channels that are left of `c`.
fn shuffled(c: usize, factor: usize) -> Result<usize> {
    match factor.checked_mul(factor) {
        Some(parts) if parts > 0 && c.is_multiple_of(parts) => Ok(c / parts),
        _ => candle_core::bail!("pixel_shuffle by {factor} does not divide {c} channels"),
    }
}

/// [`pixel_shuffle`] of `x` plus `onto`, `(b, c, h, w)`, enlarged `factor` times by repeating its pixels.
pub fn pixel_shuffle_onto(x: &Tensor, factor: usize, onto: &Tensor) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if onto.dims4()? != (b, shuffled(c, factor)?, h, w) {
        candle_core::bail!("pixel_shuffle of {:?} onto {:?}", x.shape(), onto.shape());
    }
    if cpu::takes([x, onto]) {
        let onto = Some(onto.contiguous()?);
        return x.contiguous()?.apply_op1_no_bwd(&cpu::Shuffle { factor, onto });
    }
    pixel_shuffle(x, factor)? + upsample_nearest(onto, h * factor, w * factor)?
}

/// `(b, c, h·f, w·f) -> (b, c·f², h, w)`, the inverse of [`pixel_shuffle`].
pub fn pixel_unshuffle(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (b, c, h, w) = x.dims4()?;
    if factor == 0 || h % factor != 0 || w % factor != 0 {
        candle_core::bail!("pixel_unshuffle by {factor} does not divide {w}x{h}");
    }
    x.contiguous()?
        .reshape(vec![b, c, h / factor, factor, w / factor, factor])?
        .permute(vec![0, 1, 3, 5, 2, 4])? // (b, c, f, f, h, w)
        .contiguous()?
        .reshape((b, c * factor * factor, h / factor, w / factor))
}
