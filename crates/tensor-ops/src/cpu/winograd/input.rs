//! Pictures to tiles of 6x6 points, which overlap by two.

use super::{POINTS, Tiles, WIDEST};
use crate::cpu::conv::Joined;
use crate::cpu::lanes::{Lanes, dispatched, width};
use crate::cpu::matrix::{Shared, padded};

/// Where the transformed numbers of one channel go: point `p` to `at + p * stride`.
pub(super) struct Places<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) at: usize,
    pub(super) stride: usize,
}

impl Places<'_> {
    /// The same from column `at` of the panel on.
    fn from(&self, at: usize) -> Self {
        Self {
            at: self.at + at,
            ..*self
        }
    }
}

/// Padded pixels of the lines of a panel's tiles, four per tile and two more: room for those that do not lie in a picture.
type Edges = [[f32; 4 * WIDEST + 2]; 6];

/// Room that one channel after the other is transformed in.
pub(super) struct Room {
    edges: Edges,
    /// Pixel `(y, x)` of every tile of a panel side by side.
    pixels: [[f32; WIDEST]; POINTS],
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            edges: [[0.0; 4 * WIDEST + 2]; 6],
            pixels: [[0.0; WIDEST]; POINTS],
        }
    }
}

/// Transforms one channel of a panel of tiles.
pub(super) fn transform(
    x: &Joined<'_>,
    tiles: &Tiles<'_>,
    (tile, columns, channel): (usize, usize, usize),
    Room { edges, pixels }: &mut Room,
    places: &Places<'_>,
) {
    if tiles.is_straight(tile, columns, width()) {
        tiles.stretches(tile, columns, |image, row, column, at, n| {
            let lines = lines(x.plane(image, channel), tiles, [row, column, n], edges);
            straight_points(&lines, n, &places.from(at));
        });
    } else {
        tiles.stretches(tile, columns, |image, row, column, at, n| {
            let lines = lines(x.plane(image, channel), tiles, [row, column, n], edges);
            for (line, pixels) in lines.iter().zip(pixels.chunks_exact_mut(6)) {
                spread(line, pixels, at, n);
            }
        });
        input_points(pixels, padded(columns), places);
    }
}

/// The six lines of `4 n + 2` pixels that `n` tiles side by side see of a plane, where they lie or with their padding.
fn lines<'a>(
    plane: &'a [f32],
    tiles: &Tiles<'_>,
    [row, column, n]: [usize; 3],
    edges: &'a mut Edges,
) -> [&'a [f32]; 6] {
    let sizes = tiles.sizes;
    let (height, width, padding) = (sizes.height, sizes.width, sizes.padding);
    let (start, reach) = (4 * column, 4 * n + 2);
    let mut lines: [&[f32]; 6] = [&[]; 6];
    for (y, (line, edge)) in lines.iter_mut().zip(edges).enumerate() {
        // Positions are counted in the padded picture, so that they stay unsigned.
        let source = 4 * row + y;
        if source < padding || source >= height + padding {
            edge[..reach].fill(0.0);
            *line = &edge[..reach];
            continue;
        }
        let source = &plane[(source - padding) * width..][..width];
        *line = if start >= padding && start - padding + reach <= width {
            &source[start - padding..][..reach]
        } else {
            let before = padding.saturating_sub(start).min(reach);
            let end = (width + padding).saturating_sub(start).clamp(before, reach);
            edge[..before].fill(0.0);
            edge[end..reach].fill(0.0);
            if end > before {
                edge[before..end].copy_from_slice(&source[start + before - padding..][..end - before]);
            }
            &edge[..reach]
        };
    }
    lines
}

/// Points of `n` tiles side by side, `n` being whole vectors.
#[inline(always)]
unsafe fn straight_points_any<L: Lanes>(lines: &[&[f32]; 6], n: usize, places: &Places<'_>) {
    assert!(n.is_multiple_of(L::COUNT) && lines.iter().all(|line| line.len() == 4 * n + 2));
    for at in (0..n).step_by(L::COUNT) {
        // SAFETY: the vectors end with number 4 n - 1 of a line, and one more is read behind them (asserted).
        unsafe {
            let mut rows = [[L::splat(0.0); 6]; 6];
            for (row, line) in rows.iter_mut().zip(lines) {
                let from = line.as_ptr().add(4 * at);
                let [a, b, c, d] = L::quads(from);
                // The fifth and sixth are the next tile's first and second.
                let (e, f) = (
                    a.shifted(*from.add(4 * L::COUNT)),
                    b.shifted(*from.add(4 * L::COUNT + 1)),
                );
                *row = input_line([a, b, c, d, e, f]);
            }
            input_columns(&rows, at, places);
        }
    }
}
dispatched! {
    fn straight_points(lines: &[&[f32]; 6], n: usize, places: &Places<'_>) = straight_points_any
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
            input_columns(&rows, at, places);
        }
    }
}

/// The second half of the transform, and its end in memory.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "six rows are read at `x`, not one")]
unsafe fn input_columns<L: Lanes>(rows: &[[L; 6]; 6], at: usize, places: &Places<'_>) {
    for x in 0..6 {
        let column = [rows[0][x], rows[1][x], rows[2][x], rows[3][x], rows[4][x], rows[5][x]];
        // SAFETY: passed on; one job alone has this channel of this panel.
        unsafe {
            for (y, v) in input_line(column).iter().enumerate() {
                let to = places
                    .shared
                    .slice(places.at + (y * 6 + x) * places.stride + at, L::COUNT);
                v.store(to.as_mut_ptr());
            }
        }
    }
}
dispatched! {
    fn input_points(pixels: &[[f32; WIDEST]; POINTS], columns: usize, places: &Places<'_>) = input_points_any
}
