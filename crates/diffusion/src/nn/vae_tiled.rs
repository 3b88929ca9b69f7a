//! The larger half of the VAE's decoder in tiles that leave no seams.
//!
//! A tile is computed with a border as wide as its convolutions reach, which is then cut off, so that neighbours agree
//! wherever they meet, if only their group norms do. These use moments of the whole picture, gathered from all tiles in
//! rounds before the last: in the first each tile has its own, then each uses what the round before found. The moments of
//! a norm are exact once those before it are; two rounds come close enough that the eye sees no difference.

use candle_core::Tensor;

use super::{
    layers::{Moments, Norm},
    vae::Decoder,
};
use crate::{Error, Result};

/// Side of a tile without its border, in pixels of the tensor that is cut (a quarter of the picture's).
const TILE: usize = 128;
/// The border: the convolutions after the cut reach 5.5 pixels far at most.
const BORDER: usize = 6;
/// Pixels of the picture that one tile with its border makes.
pub(crate) const TILE_PIXELS: u64 = (4 * (TILE + 2 * BORDER) as u64).pow(2);
/// Rounds in which moments are gathered.
const ROUNDS: usize = 2;

/// One tile: where it and its border lie in the tensor that is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    /// The first pixel with border; may lie beyond the edge of a picture that wraps around.
    from: isize,
    /// Pixels before the tile.
    before: usize,
    /// Pixels of the tile.
    length: usize,
    /// Pixels after it.
    after: usize,
}

impl Span {
    fn total(self) -> usize {
        self.before + self.length + self.after
    }
}

/// The tiles along one side of `size` pixels.
fn spans(size: usize, circular: bool) -> Vec<Span> {
    let count = size.div_ceil(TILE).max(1);
    (0..count)
        .map(|i| {
            let (start, end) = (size * i / count, size * (i + 1) / count);
            let (before, after) = if circular {
                (BORDER, BORDER)
            } else {
                (BORDER.min(start), BORDER.min(size - end))
            };
            Span {
                from: start as isize - before as isize,
                before,
                length: end - start,
                after,
            }
        })
        .collect()
}

/// `h (1, c, ..)` as the first level takes it -> the picture `(1, 3, ..)` f32.
pub(super) fn decode(
    decoder: &Decoder,
    mut h: Tensor,
    circular: bool,
    each: &mut dyn FnMut() -> Result<()>,
) -> Result<Tensor> {
    // The last two levels and the enlarging before them hold nine tenths of the memory.
    let cut = decoder.levels.len().saturating_sub(3);
    for (i, level) in decoder.levels.iter().enumerate().take(cut + 1) {
        each()?;
        h = level.blocks(&h, circular, &mut |norm, x| Ok(norm.forward(x)?))?;
        if i < cut {
            h = level.enlarge(&h, circular)?;
        }
    }
    let (_, _, height, width) = h.dims4()?;
    let (rows, columns) = (spans(height, circular), spans(width, circular));
    let mut known: Vec<Moments> = Vec::new();
    for _ in 0..ROUNDS {
        let mut found: Vec<Moments> = Vec::new();
        for row in &rows {
            for column in &columns {
                each()?;
                let tile = cut_out(&h, *row, *column)?;
                let mut at = 0;
                through(decoder, cut, &tile, &mut |norm, x| {
                    let core = core(x, &tile, *row, *column)?;
                    if found.len() <= at {
                        found.push(Moments::default());
                    }
                    found[at].join(&norm.moments(&core)?);
                    let y = normed(norm, x, known.get(at))?;
                    at += 1;
                    Ok(y)
                })?;
            }
        }
        known = found;
    }
    let mut bands = Vec::with_capacity(rows.len());
    for row in &rows {
        let mut band = Vec::with_capacity(columns.len());
        for column in &columns {
            each()?;
            let tile = cut_out(&h, *row, *column)?;
            let mut at = 0;
            let picture = through(decoder, cut, &tile, &mut |norm, x| {
                at += 1;
                normed(norm, x, known.get(at - 1))
            })?;
            band.push(core(&picture, &tile, *row, *column)?.contiguous()?);
        }
        bands.push(Tensor::cat(&band, 3)?);
    }
    Ok(Tensor::cat(&bands, 2)?)
}

fn normed(norm: &Norm, x: &Tensor, moments: Option<&Moments>) -> Result<Tensor> {
    Ok(match moments {
        Some(moments) => norm.forward_with(x, moments)?,
        None => norm.forward(x)?,
    })
}

/// From the cut to the picture. The edges of a tile are those of its border, so nothing wraps around here.
fn through(
    decoder: &Decoder,
    cut: usize,
    tile: &Tensor,
    norm: &mut dyn FnMut(&Norm, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut h = tile.clone();
    for (i, level) in decoder.levels.iter().enumerate().skip(cut) {
        if i > cut {
            h = level.blocks(&h, false, norm)?;
        }
        h = level.enlarge(&h, false)?;
    }
    decoder.end(&h, false, norm)
}

/// A tile with its border; where it reaches over an edge it goes on at the other.
fn cut_out(h: &Tensor, row: Span, column: Span) -> Result<Tensor> {
    let along = |h: &Tensor, dim: usize, span: Span| -> Result<Tensor> {
        let size = h.dim(dim)?;
        if span.from >= 0 && span.from as usize + span.total() <= size {
            return Ok(h.narrow(dim, span.from as usize, span.total())?);
        }
        let places: Vec<u32> = (0..span.total() as isize)
            .map(|i| (span.from + i).rem_euclid(size.max(1) as isize) as u32)
            .collect();
        let places = Tensor::from_vec(places, span.total(), h.device())?;
        Ok(h.contiguous()?.index_select(&places, dim)?)
    };
    Ok(along(&along(h, 2, row)?, 3, column)?.contiguous()?)
}

/// `x`, which is `tile` at some size, without the border.
fn core(x: &Tensor, tile: &Tensor, row: Span, column: Span) -> Result<Tensor> {
    let (now, then) = (x.dim(2)?, tile.dim(2)?);
    let factor = now
        .checked_div(then)
        .filter(|factor| factor * then == now)
        .ok_or_else(|| Error::Weights("the VAE does not enlarge by whole factors".into()))?;
    let rows = x.narrow(2, row.before * factor, row.length * factor)?;
    Ok(rows.narrow(3, column.before * factor, column.length * factor)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_a_side_once_and_their_borders_stay_inside_or_wrap_around() {
        for size in [1, 5, 128, 129, 300, 768] {
            for circular in [false, true] {
                let spans = spans(size, circular);
                assert_eq!(spans.iter().map(|span| span.length).sum::<usize>(), size);
                for span in &spans {
                    assert!(span.length <= TILE);
                    let end = span.from + span.total() as isize;
                    assert!(
                        circular || (span.from >= 0 && end <= size as isize),
                        "{span:?} of {size}"
                    );
                }
                if circular {
                    assert!(spans.iter().all(|span| (span.before, span.after) == (BORDER, BORDER)));
                }
            }
        }
    }
}
