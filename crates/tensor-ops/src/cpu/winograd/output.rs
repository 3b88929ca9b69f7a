//! Sums of 6x6 points to the 4x4 pixels of each tile.

use super::{POINTS, Tiles, WIDEST};
use crate::cpu::conv::Finish;
use crate::cpu::lanes::{Lanes, dispatched};
use crate::cpu::matrix::{Shared, padded};

/// Transforms the sums of one channel of one panel back, and finishes and writes its pixels.
pub(super) fn output(
    sums: &[f32],
    stride: usize,
    tiles: &Tiles<'_>,
    (tile, columns, channel): (usize, usize, usize),
    (finish, shared): (Finish<'_>, &Shared<'_>),
) {
    let sizes = tiles.sizes;
    let mut pixels = [[0f32; WIDEST]; 16];
    output_pixels(sums, stride, padded(columns), &mut pixels);
    finish.apply(channel, pixels.as_flattened_mut());
    tiles.stretches(tile, columns, |image, row, column, at, n| {
        let plane = (image * sizes.c_out + channel) * sizes.out_h * sizes.out_w;
        for (y, pixels) in pixels.chunks_exact(4).enumerate() {
            let row = 4 * row + y;
            if row >= sizes.out_h {
                break;
            }
            let count = (4 * n).min(sizes.out_w - 4 * column);
            // SAFETY: a tile's pixels are written by the one job that has its panel and this channel.
            let at_line = plane + row * sizes.out_w + 4 * column;
            let line = unsafe { shared.slice(at_line, count) };
            join(pixels, at, line);
            finish.place(at_line, line);
        }
    });
}

/// The pixels of tiles from `at` on as a line: number `4 i + j` of it is `pixels[j][at + i]`.
#[inline(always)]
unsafe fn join_any<L: Lanes>(pixels: &[[f32; WIDEST]], at: usize, line: &mut [f32]) {
    assert!(pixels.len() == 4 && at + line.len().div_ceil(4) <= WIDEST);
    let whole = line.len() / (4 * L::COUNT) * L::COUNT;
    for done in (0..whole).step_by(L::COUNT) {
        // SAFETY: vectors lie within their rows and within the line.
        unsafe {
            let quads = [0, 1, 2, 3].map(|j: usize| L::load(pixels[j].as_ptr().add(at + done)));
            L::store_quads(quads, line.as_mut_ptr().add(4 * done));
        }
    }
    for (i, v) in line.iter_mut().enumerate().skip(4 * whole) {
        *v = pixels[i % 4][at + i / 4];
    }
}
dispatched! {
    fn join(pixels: &[[f32; WIDEST]], at: usize, line: &mut [f32]) = join_any
}

#[inline(always)]
unsafe fn output_line<L: Lanes>([a, b, c, d, e, f]: [L; 6]) -> [L; 4] {
    // SAFETY: passed on from `dispatched`.
    unsafe {
        let (b_c, c_b, d_e, e_d) = (b.add(c), b.sub(c), d.add(e), d.sub(e));
        [
            a.add(b_c).add(d_e),
            e_d.fma(L::splat(2.0), c_b),
            d_e.fma(L::splat(4.0), b_c),
            e_d.fma(L::splat(8.0), c_b.add(f)),
        ]
    }
}

#[inline(always)]
unsafe fn output_pixels_any<L: Lanes>(sums: &[f32], stride: usize, columns: usize, pixels: &mut [[f32; WIDEST]; 16]) {
    assert!((POINTS - 1) * stride + columns <= sums.len(), "the sums are whole");
    for at in (0..columns).step_by(L::COUNT) {
        // SAFETY: `columns` are whole vectors, at most WIDEST, and within the sums.
        unsafe {
            let mut rows = [[L::splat(0.0); 4]; 6];
            for (y, row) in rows.iter_mut().enumerate() {
                let mut line = [L::splat(0.0); 6];
                for (x, v) in line.iter_mut().enumerate() {
                    *v = L::load(sums.as_ptr().add((y * 6 + x) * stride + at));
                }
                *row = output_line(line);
            }
            for x in 0..4 {
                let column = [rows[0][x], rows[1][x], rows[2][x], rows[3][x], rows[4][x], rows[5][x]];
                for (y, v) in output_line(column).iter().enumerate() {
                    v.store(pixels[y * 4 + x].as_mut_ptr().add(at));
                }
            }
        }
    }
}
dispatched! {
    fn output_pixels(sums: &[f32], stride: usize, columns: usize, pixels: &mut [[f32; WIDEST]; 16]) = output_pixels_any
}
