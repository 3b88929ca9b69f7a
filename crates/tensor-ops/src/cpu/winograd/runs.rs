//! Many channels: a run of tiles is transformed into the last-level cache; then each job transforms the kernels of a few
//! output channels into the second-level cache and multiplies all the run's tiles by them, so no transformed kernel is kept.

use super::input::{Places, Room, transform};
use super::kernel::kernel_points;
use super::output::output;
use super::{GAP, POINTS, Tiles};
use crate::cpu::conv::{Finish, Joined};
use crate::cpu::matrix::{Panel, Place, Shared, View, multiply, padded, panel_width};
use crate::cpu::{scratch, share_out};

/// Transformed numbers of a run of tiles: 12 MB, a part of the last-level cache.
const RUN: usize = 3 << 20;
/// Output channels of a job and input channels at a time: their transformed kernels are 590 kB.
const OUTPUTS: usize = 16;
const INPUTS: usize = 256;

pub(super) fn convolve(x: &Joined<'_>, weight: &[f32], tiles: &Tiles<'_>, finish: Finish<'_>, out: &mut [f32]) {
    let sizes = tiles.sizes;
    let (c_in, c_out) = (sizes.c_in, sizes.c_out);
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
            let mut room = Room::new();
            for channel in channel..(channel + step).min(c_in) {
                let places = Places {
                    shared: &whole,
                    at: panel * panel_room + channel * padded(columns),
                    stride: point_room(columns),
                };
                transform(x, tiles, (tile, columns, channel), &mut room, &places);
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
            let sum_room = n_out * width + GAP;
            // Sums stay while more input channels come.
            let kept = if depth == c_in { 1 } else { n_panels };
            scratch(POINTS * (n_out * depth + kept * sum_room), |space| {
                let (kernels, sums) = space.split_at_mut(POINTS * n_out * depth);
                for from in (0..c_in).step_by(depth) {
                    let depth = depth.min(c_in - from);
                    let is_last = from + depth == c_in;
                    for i in 0..n_out {
                        let source = &weight[((channel + i) * c_in + from) * 9..][..depth * 9];
                        kernel_points(source, &mut kernels[i * depth..], n_out * depth);
                    }
                    for index in 0..n_panels {
                        let tile = (first + panel + index) * width;
                        let columns = tiles.columns(tile);
                        let sums = &mut sums[index % kept * POINTS * sum_room..][..POINTS * sum_room];
                        let products = Shared::new(sums);
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
                                at: point * sum_room,
                                row: width,
                            };
                            // SAFETY: the sums lie in this thread's own scratch memory.
                            unsafe { multiply([n_out, depth], place, left, right, from > 0) };
                        }
                        for i in (0..n_out).filter(|_| is_last) {
                            let at = (tile, columns, channel + i);
                            output(&sums[i * width..], sum_room, tiles, at, (finish, &shared));
                        }
                    }
                }
            });
        });
    }
}
