//! Few channels: all transformed kernels are kept for the whole picture, and each job takes one panel of tiles from its
//! pixels to the result's within the second-level cache.

use super::input::{Places, Room, transform};
use super::kernel::kernel_points;
use super::output::output;
use super::{GAP, POINTS, Tiles};
use crate::cpu::conv::{Finish, Joined};
use crate::cpu::matrix::{Panel, Place, Shared, View, multiply, padded, panel_width};
use crate::cpu::{scratch, share_out};

/// Most transformed numbers of all kernels: 2.8 MB, read once per panel from the last-level cache.
const KERNELS: usize = 700_000;

/// Whether the kernels are few enough, and there are panels enough to read them for.
pub(super) fn pays(tiles: &Tiles<'_>) -> bool {
    let sizes = tiles.sizes;
    POINTS * sizes.c_in * sizes.c_out <= KERNELS
        && tiles.count.div_ceil(panel_width()) >= 2 * rayon::current_num_threads()
}

pub(super) fn convolve(x: &Joined<'_>, weight: &[f32], tiles: &Tiles<'_>, finish: Finish<'_>, out: &mut [f32]) {
    let (c_in, c_out) = (tiles.sizes.c_in, tiles.sizes.c_out);
    let width = panel_width();
    let kernel_room = c_in * c_out;
    let mut kernels = vec![0f32; POINTS * kernel_room];
    kernel_points(&weight[..9 * kernel_room], &mut kernels, kernel_room);
    let (point_room, sum_room) = (c_in * width + GAP, c_out * width + GAP);
    let shared = Shared::new(out);
    share_out(tiles.count.div_ceil(width), tiles.sizes.products() / 4, |panel| {
        let tile = panel * width;
        let columns = tiles.columns(tile);
        scratch(POINTS * (point_room + sum_room), |space| {
            let (points, sums) = space.split_at_mut(POINTS * point_room);
            let whole = Shared::new(points);
            let mut room = Room::new();
            for channel in 0..c_in {
                let places = Places {
                    shared: &whole,
                    at: channel * padded(columns),
                    stride: point_room,
                };
                transform(x, tiles, (tile, columns, channel), &mut room, &places);
            }
            let products = Shared::new(sums);
            for point in 0..POINTS {
                let left = View {
                    numbers: &kernels[point * kernel_room..][..kernel_room],
                    row: c_in,
                    column: 1,
                };
                let right = Panel {
                    numbers: &points[point * point_room..][..c_in * padded(columns)],
                    columns,
                };
                let place = Place {
                    shared: &products,
                    at: point * sum_room,
                    row: width,
                };
                // SAFETY: the sums lie in this thread's own scratch memory.
                unsafe { multiply([c_out, c_in], place, left, right, false) };
            }
            for channel in 0..c_out {
                let sums = &sums[channel * width..];
                output(sums, sum_room, tiles, (tile, columns, channel), (finish, &shared));
            }
        });
    });
}
