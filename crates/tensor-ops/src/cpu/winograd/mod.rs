//! Winograd's F(4x4, 3x3): 36 products for 16 outputs of a 3x3 kernel instead of 144.
//!
//! Matrices from A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks" (2015), section 4.3.
//! Few channels go through panel by panel ([`panels`]), many in runs of panels ([`runs`]).

mod input;
mod kernel;
mod output;
mod panels;
mod runs;

use super::conv::{Finish, Joined, Sizes};
use super::matrix::panel_width;

/// Transformed values of one tile.
const POINTS: usize = 36;
/// The widest panel of any processor, in tiles.
const WIDEST: usize = 48;
/// Numbers between two points' panels beyond their own, so that they do not fall into the same sets of a cache.
const GAP: usize = 16;
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

    /// Whether the panel's tiles lie side by side in whole vectors.
    fn is_straight(&self, first: usize, n: usize, vector: usize) -> bool {
        let mut straight = true;
        self.stretches(first, n, |_, _, _, _, n| straight &= n.is_multiple_of(vector));
        straight
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
    let across = sizes.out_w.div_ceil(4);
    let per_image = across * sizes.out_h.div_ceil(4);
    let tiles = Tiles {
        sizes,
        across,
        per_image,
        count: sizes.batch * per_image,
    };
    if panels::pays(&tiles) {
        panels::convolve(x, weight, &tiles, finish, out);
    } else {
        runs::convolve(x, weight, &tiles, finish, out);
    }
}
