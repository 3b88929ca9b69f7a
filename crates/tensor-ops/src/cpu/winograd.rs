//! Winograd's F(4x4, 3x3): 36 products for 16 outputs of a 3x3 kernel instead of 144.
//!
//! Matrices from A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4.3.
//! A run of tiles is transformed into the last-level cache; then each job transforms the kernels of a few output channels
//! into the second-level cache and multiplies all the run's tiles by them, so no transformed kernel is kept.

use super::conv::{Finish, Joined, Sizes};
use super::lanes::{Lanes, dispatched};
use super::matrix::{Panel, Place, Shared, View, multiply, padded, panel_width};
use super::{scratch, share_out};

/// Transformed values of one tile.
const POINTS: usize = 36;
/// The widest panel of any processor, in tiles.
const WIDEST: usize = 48;
/// Numbers between two points' panels beyond their own, so that they do not fall into the same sets of a cache.
const GAP: usize = 16;
/// Transformed numbers of a run of tiles: 12 MB, a part of the last-level cache.
const RUN: usize = 3 << 20;
/// Output channels of a job and input channels at a time: their transformed kernels are 590 kB.
const OUTPUTS: usize = 16;
const INPUTS: usize = 256;

/// Whether a convolution of stride and dilation 1 is faster this way.
pub(super) fn pays(sizes: &Sizes) -> bool {
    let tiles = sizes.batch * sizes.out_h.div_ceil(4) * sizes.out_w.div_ceil(4);
    (sizes.kernel_h, sizes.kernel_w) == (3, 3) && sizes.c_in >= 16 && tiles >= 8
}

/// All tiles of all pictures in one row, cut into panels.
struct Tiles<'a> {
    sizes: &'a Sizes,
    across: usize,
    per_image: usize,
    count: usize,
}

impl Tiles<'_> {
    /// The panel of tiles that starts at `first`.
    fn columns(&self, first: usize) -> usize {
        panel_width().min(self.count - first)
    }

    /// Calls `each(image, tile row, tile column, position in the panel, n)` for each stretch of `n` tiles side by side.
    fn stretches(&self, first: usize, n: usize, mut each: impl FnMut(usize, usize, usize, usize, usize)) {
        let mut done = 0;
        while done < n {
            let (image, tile) = ((first + done) / self.per_image, (first + done) % self.per_image);
            let (row, column) = (tile / self.across, tile % self.across);
            let count = (self.across - column).min(n - done);
            each(image, row, column, done, count);
            done += count;
        }
    }
}

pub(super) fn convolve(x: &Joined<'_>, weight: &[f32], sizes: &Sizes, finish: Finish<'_>, out: &mut [f32]) {
    let (c_in, c_out) = (sizes.c_in, sizes.c_out);
    let across = sizes.out_w.div_ceil(4);
    let per_image = across * sizes.out_h.div_ceil(4);
    let tiles = Tiles {
        sizes,
        across,
        per_image,
        count: sizes.batch * per_image,
    };
    let width = panel_width();
    let panels = tiles.count.div_ceil(width);
    // A panel's numbers: POINTS matrices of (c_in, width), a little apart.
    let point_room = |columns: usize| c_in * padded(columns) + GAP;
    let panel_room = POINTS * point_room(width);
    let run = (RUN / panel_room).clamp(1, panels);
    let n_points = run.min(panels) * panel_room;
    let mut points: Vec<f32> = Vec::with_capacity(n_points);
    // SAFETY: the capacity is that large, and only numbers that a panel's transform has written are multiplied.
    let points = unsafe { std::slice::from_raw_parts_mut(points.as_mut_ptr(), n_points) };
    let threads = rayon::current_num_threads().max(1);
    let outputs = OUTPUTS.min(c_out.div_ceil(threads).next_multiple_of(8));
    let groups = c_out.div_ceil(outputs);
    let shared = Shared::new(out);
    for first in (0..panels).step_by(run) {
        let run = run.min(panels - first);
        let step = (c_in * run).div_ceil(4 * threads).clamp(1, c_in);
        let parts = c_in.div_ceil(step);
        let whole = Shared::new(points);
        share_out(run * parts, sizes.products() / 4, |job| {
            let (panel, channel) = (job / parts, job % parts * step);
            let tile = (first + panel) * width;
            let columns = tiles.columns(tile);
            let mut pixels = [[0f32; WIDEST]; POINTS];
            for channel in channel..(channel + step).min(c_in) {
                let places = Places {
                    shared: &whole,
                    at: panel * panel_room + channel * padded(columns),
                    stride: point_room(columns),
                };
                input(x, &tiles, (tile, columns, channel), &mut pixels);
                input_points(&pixels, padded(columns), &places);
            }
        });
        let points = &*points;
        // Where output channels are few the run's panels are shared out too.
        let shares = (2 * threads).div_ceil(groups).min(run);
        let share = run.div_ceil(shares);
        share_out(groups * shares, sizes.products() / 4, |job| {
            let (channel, panel) = (job / shares * outputs, job % shares * share);
            if panel >= run {
                return;
            }
            let (n_out, n_panels) = (outputs.min(c_out - channel), share.min(run - panel));
            let depth = INPUTS.min(c_in);
            let sums_room = POINTS * n_out * width;
            scratch(POINTS * n_out * depth + n_panels * sums_room, |space| {
                let (kernels, sums) = space.split_at_mut(POINTS * n_out * depth);
                for from in (0..c_in).step_by(depth) {
                    let depth = depth.min(c_in - from);
                    for i in 0..n_out {
                        let source = &weight[((channel + i) * c_in + from) * 9..][..depth * 9];
                        kernel_points(source, &mut kernels[i * depth..], n_out * depth);
                    }
                    for index in 0..n_panels {
                        let tile = (first + panel + index) * width;
                        let columns = tiles.columns(tile);
                        let products = Shared::new(&mut sums[index * sums_room..][..sums_room]);
                        for point in 0..POINTS {
                            let left = View {
                                numbers: &kernels[point * n_out * depth..],
                                row: depth,
                                column: 1,
                            };
                            let at =
                                (panel + index) * panel_room + point * point_room(columns) + from * padded(columns);
                            let right = Panel {
                                numbers: &points[at..at + depth * padded(columns)],
                                columns,
                            };
                            let place = Place {
                                shared: &products,
                                at: point * n_out * width,
                                row: width,
                            };
                            // SAFETY: the sums lie in this thread's own scratch memory.
                            unsafe { multiply([n_out, depth], place, left, right, from > 0) };
                        }
                    }
                }
                for index in 0..n_panels {
                    let tile = (first + panel + index) * width;
                    let columns = tiles.columns(tile);
                    for i in 0..n_out {
                        let sums = &sums[index * sums_room + i * width..];
                        output(
                            sums,
                            n_out * width,
                            &tiles,
                            (tile, columns, channel + i),
                            (finish, &shared),
                        );
                    }
                }
            });
        });
    }
}

/// Where the transformed numbers of one channel go: point `p` to `at + p * stride`.
struct Places<'a> {
    shared: &'a Shared<'a>,
    at: usize,
    stride: usize,
}

/// Lays pixel `(y, x)` of one channel of every tile of a panel side by side.
fn input(
    x: &Joined<'_>,
    tiles: &Tiles<'_>,
    (tile, columns, channel): (usize, usize, usize),
    pixels: &mut [[f32; WIDEST]; POINTS],
) {
    let sizes = tiles.sizes;
    let (height, width, padding) = (sizes.height, sizes.width, sizes.padding);
    tiles.stretches(tile, columns, |image, row, column, at, n| {
        let plane = x.plane(image, channel);
        let (start, reach) = (4 * column, 4 * n + 2);
        let mut edge = [0f32; 4 * WIDEST + 4];
        for (y, pixels) in pixels.chunks_exact_mut(6).enumerate() {
            // Positions are counted in the padded picture, so that they stay unsigned.
            let source = 4 * row + y;
            if source < padding || source >= height + padding {
                pixels.iter_mut().for_each(|pixels| pixels[at..at + n].fill(0.0));
                continue;
            }
            let source = &plane[(source - padding) * width..][..width];
            let line = if start >= padding && start - padding + reach <= width {
                &source[start - padding..][..reach]
            } else {
                let before = padding.saturating_sub(start).min(reach);
                let end = (width + padding).saturating_sub(start).clamp(before, reach);
                edge[..before].fill(0.0);
                edge[end..].fill(0.0);
                if end > before {
                    edge[before..end].copy_from_slice(&source[start + before - padding..][..end - before]);
                }
                &edge[..reach]
            };
            spread(line, pixels, at, n);
        }
    });
}

/// Number `4 i + j` of a line of `4 n + 2` goes to `pixels[j][at + i]`, for `j` in 0..6.
#[inline(always)]
unsafe fn spread_any<L: Lanes>(line: &[f32], pixels: &mut [[f32; WIDEST]], at: usize, n: usize) {
    assert!(line.len() == 4 * n + 2 && at + n <= WIDEST && pixels.len() == 6);
    let mut done = 0;
    let rows = pixels.as_mut_ptr().cast::<f32>();
    // SAFETY: vectors end with number 4 n - 1 of the line at most, and within their rows (asserted) but for one number of
    // the next row, which is read and overwritten.
    unsafe {
        while done + L::COUNT <= n {
            let from = line.as_ptr().add(4 * done);
            for (j, v) in L::quads(from).iter().enumerate() {
                v.store(rows.add(j * WIDEST + at + done));
            }
            // The fifth and sixth are the next tile's first and second.
            for j in 0..2 {
                let row = rows.add(j * WIDEST + at + done);
                L::load(row.add(1)).store(row.add(4 * WIDEST));
                *row.add(4 * WIDEST + L::COUNT - 1) = *from.add(4 * L::COUNT + j);
            }
            done += L::COUNT;
        }
        for i in done..n {
            for j in 0..6 {
                *rows.add(j * WIDEST + at + i) = *line.as_ptr().add(4 * i + j);
            }
        }
    }
}
dispatched! {
    fn spread(line: &[f32], pixels: &mut [[f32; WIDEST]], at: usize, n: usize) = spread_any
}

#[inline(always)]
unsafe fn input_line<L: Lanes>([a, b, c, d, e, f]: [L; 6]) -> [L; 6] {
    // SAFETY: passed on from `dispatched`.
    unsafe {
        let (two, four, five) = (L::splat(2.0), L::splat(4.0), L::splat(-5.0));
        let (minus_two, minus_four) = (L::splat(-2.0), L::splat(-4.0));
        let (d_b, e_c) = (d.sub(b), e.sub(c));
        [
            a.fma(four, c.fma(five, e)),
            b.add(c).fma(minus_four, d.add(e)),
            b.sub(c).fma(four, e.sub(d)),
            d_b.fma(two, e_c),
            d_b.fma(minus_two, e_c),
            b.fma(four, d.fma(five, f)),
        ]
    }
}

#[inline(always)]
unsafe fn input_points_any<L: Lanes>(pixels: &[[f32; WIDEST]; POINTS], columns: usize, places: &Places<'_>) {
    for at in (0..columns).step_by(L::COUNT) {
        // SAFETY: `columns` are whole vectors and at most WIDEST; this job alone has this channel of this panel.
        unsafe {
            let mut rows = [[L::splat(0.0); 6]; 6];
            for y in 0..6 {
                let mut line = [L::splat(0.0); 6];
                for (x, v) in line.iter_mut().enumerate() {
                    *v = L::load(pixels[y * 6 + x].as_ptr().add(at));
                }
                rows[y] = input_line(line);
            }
            #[expect(clippy::needless_range_loop, reason = "six rows are read at `x`, not one")]
            for x in 0..6 {
                let column = [rows[0][x], rows[1][x], rows[2][x], rows[3][x], rows[4][x], rows[5][x]];
                let column = input_line(column);
                for (y, v) in column.iter().enumerate() {
                    let to = places
                        .shared
                        .slice(places.at + (y * 6 + x) * places.stride + at, L::COUNT);
                    v.store(to.as_mut_ptr());
                }
            }
        }
    }
}
dispatched! {
    fn input_points(pixels: &[[f32; WIDEST]; POINTS], columns: usize, places: &Places<'_>) = input_points_any
}

#[inline(always)]
unsafe fn kernel_line<L: Lanes>([a, b, c]: [L; 3]) -> [L; 6] {
    // SAFETY: passed on from `dispatched`.
    unsafe {
        let sum = a.add(c);
        let far = c.fma(L::splat(1.0 / 6.0), a.mul(L::splat(1.0 / 24.0)));
        let twelfth = L::splat(1.0 / 12.0);
        [
            a.mul(L::splat(0.25)),
            sum.add(b).mul(L::splat(-1.0 / 6.0)),
            b.sub(sum).mul(L::splat(1.0 / 6.0)),
            b.fma(twelfth, far),
            b.fma(L::splat(-1.0 / 12.0), far),
            c,
        ]
    }
}

/// Kernels that are transformed side by side.
const KERNELS: usize = 16;

/// Transforms the 3x3 kernels that lie one after another in `weight`; point `p` of kernel `i` goes to `p * stride + i`.
#[inline(always)]
unsafe fn kernel_points_any<L: Lanes>(weight: &[f32], points: &mut [f32], stride: usize) {
    let n = weight.len() / 9;
    assert!(
        (POINTS - 1) * stride + n <= points.len(),
        "all transformed kernels have a place"
    );
    let mut taps = [[0f32; KERNELS]; 9];
    for (first, kernels) in (0..n).step_by(KERNELS).zip(weight.chunks(9 * KERNELS)) {
        for (i, kernel) in kernels.as_chunks::<9>().0.iter().enumerate() {
            for (tap, v) in taps.iter_mut().zip(kernel) {
                tap[i] = *v;
            }
        }
        let count = kernels.len() / 9;
        for at in (0..count).step_by(L::COUNT) {
            // SAFETY: the vectors lie within the taps, KERNELS being a multiple of their size; a vector is stored whole
            // only where all its kernels exist (the assertion above bounds the last).
            unsafe {
                let mut rows = [[L::splat(0.0); 3]; 6];
                for x in 0..3 {
                    let tap = |y: usize| L::load(taps[y * 3 + x].as_ptr().add(at));
                    let column = kernel_line([tap(0), tap(1), tap(2)]);
                    for (row, v) in rows.iter_mut().zip(column) {
                        row[x] = v;
                    }
                }
                for (y, row) in rows.iter().enumerate() {
                    for (x, v) in kernel_line(*row).iter().enumerate() {
                        let to = (y * 6 + x) * stride + first + at;
                        if at + L::COUNT <= count {
                            v.store(points.as_mut_ptr().add(to));
                        } else {
                            let mut edge = [0f32; KERNELS];
                            v.store(edge.as_mut_ptr());
                            points[to..to + count - at].copy_from_slice(&edge[..count - at]);
                        }
                    }
                }
            }
        }
    }
}
dispatched! {
    fn kernel_points(weight: &[f32], points: &mut [f32], stride: usize) = kernel_points_any
}

/// Transforms the sums of one channel of one panel back, and finishes and writes its pixels.
fn output(
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
            let [a, b, c, d] = pixels else {
                unreachable!("chunks of four")
            };
            let sources = a[at..at + n].iter().zip(&b[at..at + n]);
            let mut sources = sources.zip(&c[at..at + n]).zip(&d[at..at + n]);
            let (quads, rest) = line.as_chunks_mut::<4>();
            for (quad, (((a, b), c), d)) in quads.iter_mut().zip(&mut sources) {
                *quad = [*a, *b, *c, *d];
            }
            if !rest.is_empty() {
                let last = at + n - 1;
                for (v, source) in rest.iter_mut().zip([a[last], b[last], c[last], d[last]]) {
                    *v = source;
                }
            }
            finish.place(at_line, line);
        }
    });
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
