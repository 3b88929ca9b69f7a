//! Masks, latents and pictures brought to other sizes and forms, as the reference does it.

use candle_core::Tensor;
use imaging::Picture;

use crate::{Error, Result};

/// A rounded mask grown by a box of 6, as a convolution with padding 3 places it.
pub(super) fn grow(mask: &[f32], w: usize, h: usize) -> Vec<f32> {
    let mut grown = vec![0f32; w * h];
    for (i, value) in grown.iter_mut().enumerate() {
        let (x, y) = (i % w, i / w);
        let rows = y.saturating_sub(3)..(y + 3).min(h);
        let near = |row: usize| {
            mask[row * w + x.saturating_sub(3)..row * w + (x + 3).min(w)]
                .iter()
                .sum::<f32>()
        };
        *value = rows.map(near).sum::<f32>().clamp(0.0, 1.0).round();
    }
    grown
}

/// Bilinear without anti-aliasing, pixel centres aligned, by a whole factor, as torch's `interpolate`.
pub(super) fn shrink(mask: &[f32], (w, h): (usize, usize), (to_w, to_h): (usize, usize)) -> Vec<f32> {
    let place = |i: usize, from: usize, to: usize| {
        let at = ((i as f32 + 0.5) * from as f32 / to as f32 - 0.5).max(0.0);
        let low = (at as usize).min(from - 1);
        (low, (low + 1).min(from - 1), at - low as f32)
    };
    let mut out = Vec::with_capacity(to_w * to_h);
    for y in 0..to_h {
        let (top, bottom, fy) = place(y, h, to_h);
        for x in 0..to_w {
            let (left, right, fx) = place(x, w, to_w);
            let row = |y: usize| mask[y * w + left] * (1.0 - fx) + mask[y * w + right] * fx;
            out.push(row(top) * (1.0 - fy) + row(bottom) * fy);
        }
    }
    out
}

/// torch's `nearest-exact`: each output takes the input under its centre.
pub(super) fn nearest_exact(x: &Tensor, height: u32, width: u32) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    let index = |to: u32, from: usize| -> Result<Tensor> {
        let place = |i: u32| (((f64::from(i) + 0.5) * from as f64 / f64::from(to)) as usize).min(from - 1) as u32;
        let places: Vec<u32> = (0..to).map(place).collect();
        Ok(Tensor::from_vec(places, to as usize, x.device())?)
    };
    let rows = x.index_select(&index(height, h)?, 2)?;
    Ok(rows.index_select(&index(width, w)?, 3)?)
}

/// Decoded `(b, 3, h, w)` in -1..=1 as pictures, whatever they show.
pub fn to_pictures(decoded: &Tensor) -> Result<Vec<Picture>> {
    (0..decoded.dim(0)?)
        .map(|i| Ok(to_picture(&decoded.narrow(0, i, 1)?)?.0))
        .collect()
}

/// Decoded `(1, 3, h, w)` in -1..=1 as a picture, and what is wrong with it.
pub(super) fn to_picture(decoded: &Tensor) -> Result<(Picture, Option<&'static str>)> {
    let (_, _, h, w) = decoded.dims4()?;
    let values: Vec<f32> = decoded.flatten_all()?.to_vec1()?;
    let mut bytes = vec![0u8; values.len()];
    for (at, value) in values.iter().enumerate() {
        let (channel, place) = (at / (h * w), at % (h * w));
        // A float that is no number becomes 0; the cast saturates.
        bytes[place * 3 + channel] = (255.0 * f32::midpoint(*value, 1.0).clamp(0.0, 1.0)) as u8;
    }
    let flaw = if values.iter().any(|value| !value.is_finite()) {
        Some("not-a-number")
    } else if bytes.chunks_exact(3).all(|pixel| *pixel == bytes[..3]) {
        Some("one flat colour")
    } else {
        None
    };
    let picture = Picture::from_rgb(w as u32, h as u32, bytes)
        .map_err(|error| Error::Request(format!("a picture of {w}x{h}: {error}")))?;
    Ok((picture, flaw))
}
