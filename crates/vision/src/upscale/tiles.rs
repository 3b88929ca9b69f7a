//! Cutting a picture into overlapping tiles and joining the results without a seam.
//!
//! As in ComfyUI's `tiled_scale` (what reGen runs) tiles fade linearly and the sum is divided by the sum of the fades, but
//! by default a tile's outermost values, which know least of the picture, count for nothing. Because tiles stand in rows
//! and columns, both sums are products of one-dimensional ones, and finished rows leave the buffer as bytes: a large
//! result never exists as floats. Alpha is resampled, not redrawn, in the same bands and without a seam.

use imaging::{Filter, Mask, Picture, Planar};

use super::ROUNDING;
use super::plan::TilePlan;
use crate::error::{Result, VisionError};

/// A tile's weights along one axis, before the sum over tiles is made 1.
///
/// Without context as in ComfyUI's `tiled_scale`: a linear rise over all that is shared, at the picture's edges too. With
/// context nothing for the values that are left out and a linear rise over the rest of what is shared; an edge of the
/// picture has no fade.
fn fades((at, n): (usize, usize), len: usize, scale: usize, [overlap, context]: [usize; 2]) -> Vec<f32> {
    let (shared, left_out, end) = (overlap * scale, context * scale, n * scale);
    let rise = shared.saturating_sub(2 * left_out);
    let weight = |from_edge: usize| match from_edge.checked_sub(left_out) {
        _ if shared >= end => 1.0,
        None => 0.0,
        Some(inside) => ((inside + 1) as f32 / rise.max(1) as f32).min(1.0),
    };
    (0..end)
        .map(|i| {
            let before = if context > 0 && at == 0 { 1.0 } else { weight(i) };
            let is_last = at + n == len;
            before
                * if context > 0 && is_last {
                    1.0
                } else {
                    weight(end - 1 - i)
                }
        })
        .collect()
}

/// For each tile the share of the result that it gives, so that all shares of a place add up to 1.
fn shares(tiles: &[(usize, usize)], len: usize, scale: usize, overlap: [usize; 2]) -> Vec<Vec<f32>> {
    let fades: Vec<Vec<f32>> = tiles.iter().map(|tile| fades(*tile, len, scale, overlap)).collect();
    let mut sum = vec![0f32; len * scale];
    for ((at, _), fade) in tiles.iter().zip(&fades) {
        sum[at * scale..].iter_mut().zip(fade).for_each(|(s, f)| *s += f);
    }
    tiles
        .iter()
        .zip(fades)
        .map(|((at, _), fade)| fade.iter().zip(&sum[at * scale..]).map(|(f, s)| f / s).collect())
        .collect()
}

/// Runs the plan to a picture. `alpha` has the source's size.
pub(super) fn run(
    plan: &TilePlan,
    source: &Planar,
    alpha: Option<&Mask>,
    network: &mut dyn FnMut(&Planar) -> Result<Planar>,
) -> Result<Picture> {
    let (width, height) = ((plan.width * plan.scale) as u32, (plan.height * plan.scale) as u32);
    // Resampling works on columns, then on rows: the columns at once, the rows band by band.
    let wide = alpha.map(|alpha| alpha.resized(width, alpha.height(), Filter::Bicubic));
    let channels = if alpha.is_some() { 4 } else { 3 };
    let mut bytes: Vec<u8> = Vec::with_capacity(width as usize * height as usize * channels);
    let mut n_rows = 0;
    run_bands(plan, source, network, &mut |band| {
        let colours = band.to_picture(ROUNDING);
        let rows = n_rows..n_rows + colours.height();
        n_rows = rows.end;
        match wide.as_ref() {
            Some(wide) => {
                let alpha = wide.resized_rows(height, rows, Filter::Bicubic);
                bytes.extend_from_slice(colours.with_alpha(&alpha).data());
            }
            None => bytes.extend_from_slice(colours.data()),
        }
        Ok(())
    })?;
    Ok(match alpha {
        Some(_) => Picture::from_rgba(width, height, bytes)?,
        None => Picture::from_rgb(width, height, bytes)?,
    })
}

/// Runs the plan and hands out finished bands of rows from top to bottom.
pub(super) fn run_bands(
    plan: &TilePlan,
    source: &Planar,
    network: &mut dyn FnMut(&Planar) -> Result<Planar>,
    finished: &mut dyn FnMut(Planar) -> Result<()>,
) -> Result<()> {
    if plan.n_tiles() == 1 {
        return finished(network(source)?);
    }
    let (scale, width) = (plan.scale, plan.width * plan.scale);
    let overlap = [plan.overlap, plan.context];
    let column_shares = shares(&plan.columns, plan.width, scale, overlap);
    let row_shares = shares(&plan.rows, plan.height, scale, overlap);
    // Rows of the result from `band_begin` on that some tile has reached, plane by plane.
    let mut band: [Vec<f32>; 3] = Default::default();
    let mut band_begin = 0;
    for (row_idx, ((y, rows), row_share)) in plan.rows.iter().zip(&row_shares).enumerate() {
        let needed = (y * scale + rows * scale - band_begin) * width;
        band.iter_mut().for_each(|plane| plane.resize(needed, 0.0));
        for ((x, columns), column_share) in plan.columns.iter().zip(&column_shares) {
            let piece = source
                .crop(*x as u32, *y as u32, *columns as u32, *rows as u32)
                .ok_or_else(|| VisionError::Input("a tile lies outside the picture".into()))?;
            let tile = network(&piece)?;
            let tile_size = columns * scale * rows * scale;
            for (plane, from) in band.iter_mut().zip(tile.data().chunks_exact(tile_size)) {
                for (row, share) in row_share.iter().enumerate() {
                    let at = (y * scale + row - band_begin) * width + x * scale;
                    let target = &mut plane[at..at + columns * scale];
                    let values = &from[row * columns * scale..][..columns * scale];
                    for ((t, v), column) in target.iter_mut().zip(values).zip(column_share) {
                        *t += v * share * column;
                    }
                }
            }
        }
        // No later tile reaches above the next row of tiles.
        let done = plan.rows.get(row_idx + 1).map_or(plan.height, |(y, _)| *y) * scale - band_begin;
        let ready: Vec<f32> = band.iter_mut().flat_map(|plane| plane.drain(..done * width)).collect();
        finished(Planar::new(3, width as u32, done as u32, ready)?)?;
        band_begin += done;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Network, Step, Tiling};
    use super::*;

    /// A network without memory of its neighbours: copies of each pixel.
    pub(in super::super) struct Enlarge(pub(in super::super) usize);

    impl Network for Enlarge {
        fn scale(&self) -> usize {
            self.0
        }
        fn floats_per_pixel(&self) -> usize {
            100
        }
        fn steps(&self) -> usize {
            1
        }
        fn forward(&self, x: &candle_core::Tensor, _step: &mut Step<'_>) -> Result<candle_core::Tensor> {
            crate::layers::upsample_nearest(x, self.0)
        }
    }

    fn source(width: u32, height: u32) -> Planar {
        let n = width as usize * height as usize * 3;
        Planar::new(
            3,
            width,
            height,
            (0..n).map(|i| (i * 37 % 101) as f32 / 101.0).collect(),
        )
        .unwrap()
    }

    fn enlarged(width: u32, height: u32, scale: usize, tiling: Tiling) -> Picture {
        let plan = TilePlan::new(width, height, false, tiling, &Enlarge(scale)).unwrap();
        let mut network = |piece: &Planar| {
            Ok(piece.resized(
                piece.width() * scale as u32,
                piece.height() * scale as u32,
                imaging::PlanarFilter::Nearest,
            ))
        };
        run(&plan, &source(width, height), None, &mut network).unwrap()
    }

    #[test]
    fn a_pointwise_network_shows_no_seam_whatever_the_tiles() {
        let whole = Tiling {
            tile: 512,
            overlap: 0,
            context: 0,
            max_bytes: usize::MAX,
        };
        for (width, height, tile, overlap) in [(64, 48, 16, 4), (65, 33, 16, 8), (17, 90, 32, 5), (16, 16, 16, 4)] {
            let expected = enlarged(width, height, 2, whole);
            let tiled = enlarged(
                width,
                height,
                2,
                Tiling {
                    tile,
                    overlap,
                    context: 0,
                    max_bytes: usize::MAX,
                },
            );
            let worst = expected
                .data()
                .iter()
                .zip(tiled.data())
                .map(|(a, b)| a.abs_diff(*b))
                .max();
            assert!(worst <= Some(1), "{width}x{height} in tiles of {tile}: {worst:?}");
        }
    }
}
