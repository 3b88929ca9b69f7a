//! Pillow's resampling of 8-bit values to the bit: columns first, then rows, 22-bit fixed point, each pass rounded to bytes.
//!
//! The order and the rounding matter: CLIP, the background remover and the samplers of the field were measured on
//! pictures that Pillow shrank. Source of the method: Pillow's `src/libImaging/Resample.c` (MIT-CMU), read for its
//! arithmetic.

use crate::Filter;

/// Bits after the binary point: 32 minus 8 of the value minus 2 of head room.
const PRECISION: u32 = 32 - 8 - 2;

/// The source indices that make one target value, and their weights in fixed point.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Resamples `from.0`×`from.1` pixels of `C` bytes to `to.0`×`to.1`. No side is 0.
pub(crate) fn resample<const C: usize>(
    data: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    filter: Filter,
) -> Vec<u8> {
    if filter == Filter::Nearest {
        return nearest::<C>(data, from, to);
    }
    let narrow = if from.0 == to.0 {
        None
    } else {
        Some(columns::<C>(data, from.0, &taps(from.0, to.0, filter)))
    };
    let narrow_data = narrow.as_deref().unwrap_or(data);
    if from.1 == to.1 {
        return narrow.unwrap_or_else(|| data.to_vec());
    }
    rows(narrow_data, to.0 * C, &taps(from.1, to.1, filter))
}

/// Rows `range` of `to_h`, which are not empty; columns stay.
pub(crate) fn resample_rows<const C: usize>(
    data: &[u8],
    (width, height): (usize, usize),
    to_h: usize,
    range: std::ops::Range<usize>,
    filter: Filter,
) -> Vec<u8> {
    let stride = width * C;
    if filter == Filter::Nearest || height == to_h {
        let row = |y: usize| &data[nearest_index(y, height, to_h) * stride..][..stride];
        return range.flat_map(|y| row(y).iter().copied()).collect();
    }
    rows(data, stride, &taps(height, to_h, filter)[range])
}

/// The source pixel of target pixel `i`.
fn nearest_index(i: usize, from: usize, to: usize) -> usize {
    (((i as f64 + 0.5) * (from as f64 / to as f64)) as usize).min(from - 1)
}

fn nearest<const C: usize>(data: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let columns: Vec<usize> = (0..to.0).map(|x| nearest_index(x, from.0, to.0) * C).collect();
    let mut out = Vec::with_capacity(to.0 * to.1 * C);
    for y in 0..to.1 {
        let row = &data[nearest_index(y, from.1, to.1) * from.0 * C..][..from.0 * C];
        for x in &columns {
            out.extend_from_slice(&row[*x..*x + C]);
        }
    }
    out
}

fn columns<const C: usize>(data: &[u8], width: usize, taps: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() / width * taps.len());
    for row in data.chunks_exact(width * C) {
        for tap in taps {
            let mut sums = [1i32 << (PRECISION - 1); C];
            let pixels = row[tap.first * C..].chunks_exact(C);
            for (pixel, weight) in pixels.zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            out.extend(sums.map(to_byte));
        }
    }
    out
}

fn rows(data: &[u8], stride: usize, taps: &[Taps]) -> Vec<u8> {
    let mut out = Vec::with_capacity(stride * taps.len());
    let mut sums = vec![0i32; stride];
    for tap in taps {
        sums.fill(1 << (PRECISION - 1));
        for (row, weight) in data[tap.first * stride..].chunks_exact(stride).zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        out.extend(sums.iter().map(|s| to_byte(*s)));
    }
    out
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Taps> {
    let support = match filter {
        Filter::Nearest | Filter::Box => 0.5,
        Filter::Bilinear => 1.0,
        Filter::Bicubic => 2.0,
        Filter::Lanczos => 3.0,
    };
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = support * filter_scale;
    (0..to)
        .map(|x| {
            let centre = (x as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5).max(0.0) as usize).min(from - 1);
            let last = ((centre + support + 0.5) as usize).clamp(first + 1, from);
            let mut weights: Vec<f64> = (first..last)
                .map(|i| weight(filter, (i as f64 - centre + 0.5) / filter_scale))
                .collect();
            let sum: f64 = weights.iter().sum();
            if sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            let weights = weights
                .iter()
                .map(|w| (w * f64::from(1 << PRECISION)).round() as i32)
                .collect();
            Taps { first, weights }
        })
        .collect()
}

fn weight(filter: Filter, x: f64) -> f64 {
    let sinc = |x: f64| {
        if x == 0.0 {
            1.0
        } else {
            (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI)
        }
    };
    match filter {
        Filter::Nearest | Filter::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
        Filter::Bilinear => (1.0 - x.abs()).max(0.0),
        Filter::Bicubic => {
            const A: f64 = -0.5;
            let x = x.abs();
            if x < 1.0 {
                ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
            } else if x < 2.0 {
                (((x - 5.0) * x + 8.0) * x - 4.0) * A
            } else {
                0.0
            }
        }
        Filter::Lanczos if x.abs() < 3.0 => sinc(x) * sinc(x / 3.0),
        Filter::Lanczos => 0.0,
    }
}

/// Colours times alpha, rounded, so that transparent pixels do not bleed into their neighbours.
pub(crate) fn premultiply(rgba: &[u8]) -> Vec<u8> {
    let times = |value: u8, alpha: u8| {
        let product = u32::from(value) * u32::from(alpha) + 128;
        (((product >> 8) + product) >> 8) as u8
    };
    rgba.chunks_exact(4)
        .flat_map(|p| [times(p[0], p[3]), times(p[1], p[3]), times(p[2], p[3]), p[3]])
        .collect()
}

/// The way back; where alpha is 0 or 255 the colours are left as they are.
pub(crate) fn unpremultiply(mut rgba: Vec<u8>) -> Vec<u8> {
    for pixel in rgba.chunks_exact_mut(4) {
        let alpha = u32::from(pixel[3]);
        if alpha != 0 && alpha != 255 {
            for value in &mut pixel[..3] {
                *value = (255 * u32::from(*value) / alpha).min(255) as u8;
            }
        }
    }
    rgba
}
