//! Cutting a picture into overlapping tiles and joining the results without a seam.
//!
//! As in ComfyUI's `tiled_scale` (what reGen runs) tiles fade linearly and the sum is divided by the sum of the fades, but
//! by default a tile's outermost values, which know least of the picture, count for nothing. Because tiles stand in rows
//! and columns, both sums are products of one-dimensional ones, and finished rows leave the buffer as bytes: a 12288×12288 result never exists as floats.

use imaging::{Picture, Planar};

use super::{Network, ROUNDING};
use crate::error::{Result, VisionError};

/// How to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile in source pixels, at least 16.
    pub tile: usize,
    /// Pixels that neighbours share, at most half a tile.
    pub overlap: usize,
    /// Outermost pixels of a tile whose results count for nothing, less than half of what is shared: there the network saw
    /// the tile's edge instead of the picture. 0 gives the results of ComfyUI's `tiled_scale`.
    pub context: usize,
    /// Most bytes of activations; tiles are halved until they fit.
    pub max_bytes: usize,
}

impl Default for Tiling {
    /// 512 with 48 shared, of which each tile leaves out 18 (the reach of the compact networks), within 2 GiB.
    fn default() -> Self {
        Self {
            tile: 512,
            overlap: 48,
            context: 18,
            max_bytes: 2 << 30,
        }
    }
}

/// What will be done, decided from sizes alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TilePlan {
    /// Where tiles begin and how long they are, along x.
    columns: Vec<(usize, usize)>,
    /// Where tiles begin and how long they are, along y.
    rows: Vec<(usize, usize)>,
    overlap: usize,
    context: usize,
    scale: usize,
    width: usize,
    height: usize,
    peak_bytes: usize,
}

impl TilePlan {
    pub(super) fn new(width: u32, height: u32, tiling: Tiling, network: &dyn Network) -> Self {
        let (width, height) = (width as usize, height as usize);
        let multiple = network.multiple();
        let per_pixel = network.floats_per_pixel() * 4;
        let mut tile = tiling.tile.max(16).next_multiple_of(multiple);
        let bytes = |tile: usize| {
            tile.min(width)
                .saturating_mul(tile.min(height))
                .saturating_mul(per_pixel)
        };
        while bytes(tile) > tiling.max_bytes && tile >= 64 {
            tile = (tile / 2).next_multiple_of(multiple);
        }
        let overlap = tiling.overlap.min(tile / 2);
        let scale = network.scale();
        let band = tile.min(height) * scale * width * scale * 3 * 4;
        let result = width * height * scale * scale * 3;
        Self {
            columns: positions(width, tile, overlap),
            rows: positions(height, tile, overlap),
            overlap,
            context: tiling.context.min(overlap.saturating_sub(1) / 2),
            scale,
            width,
            height,
            // A band exists as sums, its finished rows also by themselves and as bytes.
            peak_bytes: bytes(tile) + band * 9 / 4 + result + width * height * 12,
        }
    }

    /// Number of tiles.
    pub fn n_tiles(&self) -> usize {
        self.columns.len() * self.rows.len()
    }

    /// Estimate of the bytes held at once: source, one tile's activations, one band of results, the result.
    pub fn peak_bytes(&self) -> usize {
        self.peak_bytes
    }
}

/// Begin and length of each tile.
fn positions(len: usize, tile: usize, overlap: usize) -> Vec<(usize, usize)> {
    if len <= tile {
        return vec![(0, len)];
    }
    (0..len - overlap)
        .step_by(tile - overlap)
        .map(|at| (at, tile.min(len - at)))
        .collect()
}

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

/// Runs the plan to a picture.
pub(super) fn run(
    plan: &TilePlan,
    source: &Planar,
    network: &mut dyn FnMut(&Planar) -> Result<Planar>,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Picture> {
    let width = plan.width * plan.scale;
    let mut bytes: Vec<u8> = Vec::with_capacity(width * plan.height * plan.scale * 3);
    run_bands(plan, source, network, progress, &mut |band| {
        bytes.extend_from_slice(band.to_picture(ROUNDING).data());
        Ok(())
    })?;
    Ok(Picture::from_rgb(
        width as u32,
        (plan.height * plan.scale) as u32,
        bytes,
    )?)
}

/// Runs the plan and hands out finished bands of rows from top to bottom.
pub(super) fn run_bands(
    plan: &TilePlan,
    source: &Planar,
    network: &mut dyn FnMut(&Planar) -> Result<Planar>,
    progress: &mut dyn FnMut(usize, usize) -> bool,
    finished: &mut dyn FnMut(&Planar) -> Result<()>,
) -> Result<()> {
    let (scale, width) = (plan.scale, plan.width * plan.scale);
    let overlap = [plan.overlap, plan.context];
    let column_shares = shares(&plan.columns, plan.width, scale, overlap);
    let row_shares = shares(&plan.rows, plan.height, scale, overlap);
    // Rows of the result from `band_begin` on that some tile has reached, plane by plane.
    let mut band: [Vec<f32>; 3] = Default::default();
    let mut band_begin = 0;
    let mut n_done = 0;
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
            n_done += 1;
            if !progress(n_done, plan.n_tiles()) {
                return Err(VisionError::Cancelled);
            }
        }
        // No later tile reaches above the next row of tiles.
        let done = plan.rows.get(row_idx + 1).map_or(plan.height, |(y, _)| *y) * scale - band_begin;
        let ready: Vec<f32> = band.iter_mut().flat_map(|plane| plane.drain(..done * width)).collect();
        finished(&Planar::new(3, width as u32, done as u32, ready)?)?;
        band_begin += done;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network without memory of its neighbours: three copies of each pixel.
    struct Enlarge(usize);

    impl Network for Enlarge {
        fn scale(&self) -> usize {
            self.0
        }
        fn floats_per_pixel(&self) -> usize {
            100
        }
        fn forward(&self, x: &candle_core::Tensor) -> Result<candle_core::Tensor> {
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
        let plan = TilePlan::new(width, height, tiling, &Enlarge(scale));
        let mut network = |piece: &Planar| {
            Ok(piece.resized(
                piece.width() * scale as u32,
                piece.height() * scale as u32,
                imaging::PlanarFilter::Nearest,
            ))
        };
        run(&plan, &source(width, height), &mut network, &mut |_, _| true).unwrap()
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

    #[test]
    fn tiles_shrink_until_they_fit_the_memory() {
        let tight = Tiling {
            tile: 512,
            overlap: 48,
            context: 18,
            max_bytes: 128 * 128 * 400,
        };
        let plan = TilePlan::new(3072, 3072, tight, &Enlarge(4));
        assert!(plan.columns.iter().all(|(_, len)| *len <= 128), "{:?}", plan.columns);
        let roomy = TilePlan::new(3072, 3072, Tiling::default(), &Enlarge(4));
        assert!(plan.peak_bytes() < roomy.peak_bytes());
        // The result of 12288×12288×3 bytes must exist; the floats beside it are one band.
        assert!(
            roomy.peak_bytes() < 12288 * 12288 * 3 + (1 << 30),
            "{}",
            roomy.peak_bytes()
        );
    }

    #[test]
    fn a_refusal_to_go_on_stops_the_work() {
        let plan = TilePlan::new(
            64,
            64,
            Tiling {
                tile: 16,
                overlap: 4,
                context: 0,
                max_bytes: usize::MAX,
            },
            &Enlarge(1),
        );
        let mut n_tiles = 0;
        let mut network = |piece: &Planar| {
            n_tiles += 1;
            Ok(piece.clone())
        };
        let error = run(&plan, &source(64, 64), &mut network, &mut |done, _| done < 3);
        assert!(matches!(error, Err(VisionError::Cancelled)));
        assert_eq!(n_tiles, 3);
    }
}
