//! How a picture is cut into tiles and what that holds at once, decided from sizes alone before anything is allocated.

use candle_core::Device;

use super::Network;
use crate::error::{Result, VisionError};

/// Most pixels of a result: 8192×8192 of RGB are 201 MB.
pub const MAX_RESULT_PIXELS: u64 = 8192 * 8192;
/// Longest side of a result in pixels: where WebP ends.
pub const MAX_RESULT_SIDE: u64 = 16383;

/// How to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// Longest side of a tile in source pixels, at least 16.
    pub tile: usize,
    /// Pixels that neighbours share, at most half a tile.
    pub overlap: usize,
    /// Outermost pixels of a tile whose results count for nothing, less than half of what is shared: there the network saw
    /// the tile's edge instead of the picture. 0 gives the results of ComfyUI's `tiled_scale`, its places of tiles included;
    /// else tiles are of one size, as few as fit.
    pub context: usize,
    /// Most bytes that may be held at once, source and result included; tiles become more and smaller until they fit, and
    /// where not even the smallest do the plan is refused.
    pub max_bytes: usize,
}

impl Default for Tiling {
    /// 536, of which 48 are shared (1024 pixels are two such tiles) and each tile leaves out 18 (the reach of the compact
    /// networks), within 2 GiB.
    fn default() -> Self {
        Self {
            tile: 536,
            overlap: 48,
            context: 18,
            max_bytes: 2 << 30,
        }
    }
}

impl Tiling {
    /// The default within half of what the device and the machine have left now: another form may be at work beside.
    pub fn within_free(device: &Device) -> Self {
        let free = [device, &Device::Cpu]
            .into_iter()
            .filter_map(tensor_ops::memory::free_bytes);
        let half = free.min().map_or(usize::MAX, |free| (free / 2) as usize);
        let whole = Self::default();
        Self {
            max_bytes: whole.max_bytes.min(half),
            ..whole
        }
    }
}

/// What will be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TilePlan {
    /// Where tiles begin and how long they are, along x.
    pub(super) columns: Vec<(usize, usize)>,
    /// Where tiles begin and how long they are, along y.
    pub(super) rows: Vec<(usize, usize)>,
    pub(super) overlap: usize,
    pub(super) context: usize,
    pub(super) scale: usize,
    pub(super) width: usize,
    pub(super) height: usize,
    peak_bytes: usize,
}

/// Shortest side of a tile in pixels that memory makes of a longer one.
const SMALLEST: usize = 32;

impl TilePlan {
    /// [`VisionError::TooLarge`] for results beyond the limits, [`VisionError::NoRoom`] where no tile is small enough.
    pub(super) fn new(width: u32, height: u32, has_alpha: bool, tiling: Tiling, network: &dyn Network) -> Result<Self> {
        fits_result(width, height, network.scale())?;
        let multiple = network.multiple().max(1);
        let mut limit = tiling.tile.max(16).next_multiple_of(multiple);
        loop {
            let plan = Self::within((width as usize, height as usize), limit, has_alpha, tiling, network);
            if plan.peak_bytes <= tiling.max_bytes {
                return Ok(plan);
            }
            let side = plan.side();
            let shorter = (side.saturating_sub(1) / multiple * multiple).max(SMALLEST.next_multiple_of(multiple));
            if shorter >= side {
                return Err(VisionError::NoRoom {
                    width,
                    height,
                    needed_bytes: plan.peak_bytes,
                    room_bytes: tiling.max_bytes,
                });
            }
            limit = shorter;
        }
    }

    /// With sides of at most `limit`, a multiple of the network's.
    fn within(
        (width, height): (usize, usize),
        limit: usize,
        has_alpha: bool,
        tiling: Tiling,
        network: &dyn Network,
    ) -> Self {
        let (overlap, scale) = (tiling.overlap.min(limit / 2), network.scale());
        // Where few parts of the grid fit, they matter less than what tiles share.
        let grid = match network.grid().max(1) {
            grid if 2 * grid <= limit => grid,
            _ => network.multiple().max(1),
        };
        let cut = |len| match tiling.context {
            0 => as_comfyui(len, limit, overlap),
            _ => evenly(len, limit, overlap, grid),
        };
        let (columns, rows) = (cut(width), cut(height));
        let (tile_width, tile_height) = (longest(&columns), longest(&rows));
        let one_tile = (tile_width * tile_height)
            .saturating_mul(network.floats_per_pixel())
            .saturating_add(network.floats_beside(tile_width, tile_height))
            .saturating_mul(size_of::<f32>());
        // A pixel of a band exists as sums, in finished rows also by itself, as colours and with its alpha; a picture of
        // one tile has no sums.
        let sums = if columns.len() * rows.len() > 1 { 12 } else { 0 };
        let band = tile_height * scale * width * scale * (sums + if has_alpha { 20 } else { 15 });
        let result = width * height * scale * scale * if has_alpha { 4 } else { 3 };
        // Planes, and of a transparent picture the colours with what shows through, and alpha in all columns of the result.
        let source = width * height * if has_alpha { 15 + scale } else { 12 };
        Self {
            columns,
            rows,
            overlap,
            context: tiling.context.min(overlap.saturating_sub(1) / 2),
            scale,
            width,
            height,
            peak_bytes: one_tile.saturating_add(band + result + source),
        }
    }

    /// The longest side of its tiles in source pixels.
    fn side(&self) -> usize {
        longest(&self.columns).max(longest(&self.rows))
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

fn longest(tiles: &[(usize, usize)]) -> usize {
    tiles.iter().map(|(_, len)| *len).max().unwrap_or(0)
}

/// Begin and length of each tile where ComfyUI's `tiled_scale` has them: the last is what is left.
fn as_comfyui(len: usize, tile: usize, overlap: usize) -> Vec<(usize, usize)> {
    if len <= tile {
        return vec![(0, len)];
    }
    (0..len - overlap)
        .step_by(tile - overlap)
        .map(|at| (at, tile.min(len - at)))
        .collect()
}

/// Begin and length of as few tiles as sides of at most `limit` allow, the shortest that do. They begin at multiples of
/// `grid` and are multiples long, but for what is cut off at the end. Neighbours share at least `overlap`.
fn evenly(len: usize, limit: usize, overlap: usize, grid: usize) -> Vec<(usize, usize)> {
    if len <= limit {
        return vec![(0, len)];
    }
    let step = |side: usize| side.saturating_sub(overlap) / grid * grid;
    let reaches =
        |n: usize, side: usize| step(side) > 0 && (n - 1).saturating_mul(step(side)).saturating_add(side) >= len;
    let shortest = |n: usize| {
        let least = (len + (n - 1) * overlap).div_ceil(n).next_multiple_of(grid);
        (least..=limit).step_by(grid).find(|side| reaches(n, *side))
    };
    let found = (2..=len).find_map(|n| Some((n, shortest(n)?)));
    // Without one the whole is a tile, which no limit of at least two parts of the grid comes to.
    let (n, side) = found.unwrap_or((1, len));
    (0..n)
        .map(|i| i * step(side))
        .map(|at| (at, side.min(len - at)))
        .collect()
}

/// Refuses an enlargement beyond [`MAX_RESULT_PIXELS`] or [`MAX_RESULT_SIDE`]. Sides in source pixels.
pub fn fits_result(width: u32, height: u32, scale: usize) -> Result<()> {
    let side = |side: u32| u64::from(side).saturating_mul(scale as u64);
    let (width, height) = (side(width), side(height));
    if width.saturating_mul(height) > MAX_RESULT_PIXELS || width.max(height) > MAX_RESULT_SIDE {
        return Err(VisionError::TooLarge { width, height });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tiles::tests::Enlarge;
    use super::*;

    fn plan(side: u32, scale: usize, max_bytes: usize) -> Result<TilePlan> {
        let tiling = Tiling {
            max_bytes,
            ..Tiling::default()
        };
        TilePlan::new(side, side, false, tiling, &Enlarge(scale))
    }

    #[test]
    fn tiles_shrink_until_they_fit_the_memory() {
        let roomy = plan(2048, 4, usize::MAX).unwrap();
        let tight = plan(2048, 4, roomy.peak_bytes() / 2).unwrap();
        assert!(
            tight.side() < roomy.side() && tight.n_tiles() > roomy.n_tiles(),
            "{tight:?}"
        );
        assert!(tight.peak_bytes() <= roomy.peak_bytes() / 2);
        // The result of 8192×8192×3 bytes must exist; the floats beside it are one band.
        let room = roomy.peak_bytes();
        assert!(room < 8192 * 8192 * 3 + (1 << 30), "{room}");
    }

    #[test]
    fn what_fits_in_no_way_is_refused_with_what_it_would_need() {
        for side in [40, 700, 2048] {
            let Err(VisionError::NoRoom {
                needed_bytes,
                room_bytes: 1000,
                ..
            }) = plan(side, 4, 1000)
            else {
                panic!("{side} pixels fit into 1000 bytes");
            };
            let smallest = plan(side, 4, needed_bytes).unwrap();
            assert_eq!(smallest.peak_bytes(), needed_bytes);
            assert!(smallest.columns.iter().all(|(_, len)| *len <= SMALLEST));
            assert!(matches!(
                plan(side, 4, needed_bytes - 1),
                Err(VisionError::NoRoom { .. })
            ));
        }
    }

    #[test]
    fn tiles_are_few_and_short_and_share_what_they_must() {
        for grid in [1, 2, 4, 16] {
            for limit in [32, 48, 128, 536] {
                let limit = limit / grid * grid;
                let overlap = 16.min(limit / 2);
                for len in (limit - 5..6 * limit).step_by(7) {
                    let tiles = evenly(len, limit, overlap, grid);
                    let told = format!("{len} in {limit}, parts of {grid}: {tiles:?}");
                    let (last, before) = tiles.split_last().unwrap();
                    assert_eq!((tiles[0].0, last.0 + last.1), (0, len), "{told}");
                    assert!(
                        tiles.iter().all(|(at, n)| at % grid == 0 && (1..=limit).contains(n)),
                        "{told}"
                    );
                    assert!(
                        before.iter().all(|(_, n)| n % grid == 0 && *n == longest(&tiles)),
                        "{told}"
                    );
                    assert!(tiles.windows(2).all(|t| t[0].0 + t[0].1 >= t[1].0 + overlap), "{told}");
                    // One fewer, as long as can be, does not reach.
                    let step = (limit - overlap) / grid * grid;
                    assert!(tiles.len() == 1 || (tiles.len() - 2) * step + limit < len, "{told}");
                    if grid == 1 {
                        assert!(longest(&tiles) - last.1 < tiles.len(), "{told}");
                    }
                }
            }
        }
        assert_eq!(evenly(1024, 536, 48, 1), [(0, 536), (488, 536)]);
        assert_eq!(evenly(1024, 544, 48, 32), [(0, 544), (480, 544)]);
    }

    #[test]
    fn results_end_at_8192_square_and_where_webp_ends() {
        assert!(fits_result(2048, 2048, 4).is_ok());
        assert!(fits_result(3072, 3072, 4).is_err());
        assert!(fits_result(4095, 64, 4).is_ok());
        assert!(fits_result(4096, 64, 4).is_err());
        assert!(fits_result(u32::MAX, u32::MAX, usize::MAX).is_err());
        assert!(matches!(
            plan(3072, 4, usize::MAX),
            Err(VisionError::TooLarge { width: 12288, .. })
        ));
    }
}
