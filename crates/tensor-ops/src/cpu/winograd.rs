//! Winograd's F(4x4, 3x3): 36 products for 16 outputs of a 3x3 kernel instead of 144.
//!
//! Matrices from A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4.3.

use rayon::prelude::*;

use super::conv::{Finish, Sizes};
use super::matrix::{Place, Shared, View, multiply};
use super::scratch;
use super::simd::vectorised;

/// Tiles transformed side by side, one to a vector lane.
const LANES: usize = 8;
/// Transformed values of one tile.
const POINTS: usize = 36;

/// Whether a convolution of stride and dilation 1 is faster this way; below 2048 pixels transforming the kernel costs more than it saves.
pub(super) fn pays(sizes: &Sizes) -> bool {
    (sizes.kernel_h, sizes.kernel_w) == (3, 3)
        && sizes.c_in >= 16
        && sizes.c_out >= 16
        && sizes.batch * sizes.out_h * sizes.out_w >= 2048
}

/// One plane cut into tiles of 4x4 outputs.
#[derive(Clone, Copy)]
struct Grid {
    height: usize,
    width: usize,
    out_h: usize,
    out_w: usize,
    padding: usize,
    across: usize,
}

/// A run of tiles, `n` from `first` on; the transformed values of one point are `stride` numbers apart from the next's.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    n: usize,
    stride: usize,
}

pub(super) fn convolve(x: &[f32], weight: &[f32], sizes: &Sizes, finish: Finish<'_>, out: &mut [f32]) {
    let (c_in, c_out) = (sizes.c_in, sizes.c_out);
    let kernel = transformed_kernel(weight, c_in, c_out); // (c_out, 36, c_in)
    let grid = Grid {
        height: sizes.height,
        width: sizes.width,
        out_h: sizes.out_h,
        out_w: sizes.out_w,
        padding: sizes.padding,
        across: sizes.out_w.div_ceil(4),
    };
    let tiles = grid.across * sizes.out_h.div_ceil(4);
    let block = if c_in.max(c_out) > 512 { 48 } else { 96 };
    let blocks = tiles.div_ceil(block);
    let (plane, pixels) = (sizes.height * sizes.width, sizes.out_h * sizes.out_w);
    let shared = Shared::new(out);
    (0..sizes.batch * blocks).into_par_iter().for_each(|job| {
        let (image, first) = (job / blocks, job % blocks * block);
        let n = block.min(tiles - first);
        scratch(POINTS * n * (c_in + c_out), |space| {
            let (points, sums) = space.split_at_mut(POINTS * n * c_in);
            for channel in 0..c_in {
                let run = Run {
                    first,
                    n,
                    stride: c_in * n,
                };
                let plane = &x[(image * c_in + channel) * plane..][..plane];
                transform_input(plane, grid, run, &mut points[channel * n..]);
            }
            let products = Shared::new(sums);
            for point in 0..POINTS {
                let place = Place {
                    shared: &products,
                    at: point * c_out * n,
                    row: n,
                };
                let left = View {
                    numbers: &kernel[point * c_in..],
                    row: POINTS * c_in,
                    column: 1,
                };
                let right = View {
                    numbers: &points[point * c_in * n..],
                    row: n,
                    column: 1,
                };
                // SAFETY: the products lie in this thread's own scratch memory.
                unsafe { multiply([c_out, n, c_in], place, left, right, 1) };
            }
            for channel in 0..c_out {
                let run = Run {
                    first,
                    n,
                    stride: c_out * n,
                };
                let bias = Finish {
                    bias: finish.bias.get(channel..=channel).unwrap_or(&[]),
                    ..finish
                };
                let target = (&shared, (image * c_out + channel) * pixels);
                transform_output(&sums[channel * n..], grid, run, bias, target);
            }
        });
    });
}

fn kernel_line([a, b, c]: [f32; 3]) -> [f32; 6] {
    [
        a / 4.0,
        -(a + b + c) / 6.0,
        (b - a - c) / 6.0,
        a / 24.0 + b / 12.0 + c / 6.0,
        a / 24.0 - b / 12.0 + c / 6.0,
        c,
    ]
}

fn transformed_kernel(weight: &[f32], c_in: usize, c_out: usize) -> Vec<f32> {
    let mut kernel = vec![0f32; c_out * POINTS * c_in];
    let rows = kernel.par_chunks_mut(POINTS * c_in).zip(weight.par_chunks(9 * c_in));
    rows.for_each(|(kernel, weight)| {
        for (channel, g) in weight.chunks_exact(9).enumerate() {
            let columns = [0, 1, 2].map(|c| kernel_line([g[c], g[3 + c], g[6 + c]]));
            for y in 0..6 {
                let line = kernel_line([columns[0][y], columns[1][y], columns[2][y]]);
                for (x, v) in line.into_iter().enumerate() {
                    kernel[(y * 6 + x) * c_in + channel] = v;
                }
            }
        }
    });
    kernel
}

type Lanes = [f32; LANES];

#[inline(always)]
fn input_line(d: [Lanes; 6]) -> [Lanes; 6] {
    let mut out = [[0f32; LANES]; 6];
    for i in 0..LANES {
        let [a, b, c, e, f, g] = [d[0][i], d[1][i], d[2][i], d[3][i], d[4][i], d[5][i]];
        out[0][i] = 4.0 * a - 5.0 * c + f;
        out[1][i] = e + f - 4.0 * (b + c);
        out[2][i] = f - e + 4.0 * (b - c);
        out[3][i] = f - c + 2.0 * (e - b);
        out[4][i] = f - c + 2.0 * (b - e);
        out[5][i] = 4.0 * b - 5.0 * e + g;
    }
    out
}

#[inline(always)]
fn output_line(m: [Lanes; 6]) -> [Lanes; 4] {
    let mut out = [[0f32; LANES]; 4];
    for i in 0..LANES {
        let [a, b, c, e, f, g] = [m[0][i], m[1][i], m[2][i], m[3][i], m[4][i], m[5][i]];
        out[0][i] = a + b + c + e + f;
        out[1][i] = b - c + 2.0 * (e - f);
        out[2][i] = b + c + 4.0 * (e + f);
        out[3][i] = b - c + 8.0 * (e - f) + g;
    }
    out
}

#[inline(always)]
fn transform_input_loop<const FMA: bool>(plane: &[f32], grid: Grid, run: Run, points: &mut [f32]) {
    let mut done = 0;
    while done < run.n {
        let count = (run.n - done).min(LANES);
        let mut d = [[[0f32; LANES]; 6]; 6];
        for lane in 0..count {
            let tile = run.first + done + lane;
            // Positions in the padded picture.
            let (top, left) = (tile / grid.across * 4, tile % grid.across * 4);
            let inside = top >= grid.padding
                && left >= grid.padding
                && top + 6 <= grid.height + grid.padding
                && left + 6 <= grid.width + grid.padding;
            for (y, rows) in d.iter_mut().enumerate() {
                if inside {
                    let at = (top + y - grid.padding) * grid.width + left - grid.padding;
                    for (row, v) in rows.iter_mut().zip(&plane[at..at + 6]) {
                        row[lane] = *v;
                    }
                    continue;
                }
                let row = (top + y).wrapping_sub(grid.padding);
                for (x, values) in rows.iter_mut().enumerate() {
                    let column = (left + x).wrapping_sub(grid.padding);
                    if row < grid.height && column < grid.width {
                        values[lane] = plane[row * grid.width + column];
                    }
                }
            }
        }
        let e = d.map(input_line);
        #[expect(
            clippy::needless_range_loop,
            reason = "a plain loop is inlined into the vectorised function; an iterator may not be"
        )]
        for x in 0..6 {
            let column = input_line([e[0][x], e[1][x], e[2][x], e[3][x], e[4][x], e[5][x]]);
            for (y, values) in column.iter().enumerate() {
                let at = (y * 6 + x) * run.stride + done;
                points[at..at + count].copy_from_slice(&values[..count]);
            }
        }
        done += count;
    }
}
vectorised! {
    fn transform_input(plane: &[f32], grid: Grid, run: Run, points: &mut [f32]) = transform_input_loop
}

#[inline(always)]
fn transform_output_loop<const FMA: bool>(
    sums: &[f32],
    grid: Grid,
    run: Run,
    finish: Finish<'_>,
    (shared, plane): (&Shared<'_>, usize),
) {
    let mut done = 0;
    while done < run.n {
        let count = (run.n - done).min(LANES);
        let mut d = [[[0f32; LANES]; 6]; 6];
        for (y, rows) in d.iter_mut().enumerate() {
            for (x, values) in rows.iter_mut().enumerate() {
                let at = (y * 6 + x) * run.stride + done;
                values[..count].copy_from_slice(&sums[at..at + count]);
            }
        }
        let e = d.map(output_line); // (6 rows, 4 columns)
        let mut tile_rows = [[[0f32; 4]; LANES]; 4];
        for x in 0..4 {
            let column = output_line([e[0][x], e[1][x], e[2][x], e[3][x], e[4][x], e[5][x]]);
            for (y, values) in column.iter().enumerate() {
                for (lane, v) in values.iter().enumerate() {
                    tile_rows[y][lane][x] = *v;
                }
            }
        }
        for (y, lanes) in tile_rows.iter_mut().enumerate() {
            finish.apply(0, lanes.as_flattened_mut());
            for (lane, values) in lanes.iter().enumerate().take(count) {
                let tile = run.first + done + lane;
                let (row, column) = (tile / grid.across * 4 + y, tile % grid.across * 4);
                if row < grid.out_h && column < grid.out_w {
                    let width = (grid.out_w - column).min(4);
                    // SAFETY: a tile's outputs are written by the one job that has the tile.
                    let target = unsafe { shared.slice(plane + row * grid.out_w + column, width) };
                    target.copy_from_slice(&values[..width]);
                }
            }
        }
        done += count;
    }
}
vectorised! {
    fn transform_output(sums: &[f32], grid: Grid, run: Run, finish: Finish<'_>, target: (&Shared<'_>, usize)) = transform_output_loop
}
