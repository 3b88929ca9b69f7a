//! Columns of a picture for a convolution: for each output pixel the numbers under the kernel's taps.
//!
//! A panel's line, one tap of one channel for the pixels of the panel, is made of few stretches of the picture's rows. They
//! are the same for every channel, so they are found once. Where the stride would pick numbers apart a copy of the picture
//! is sorted first: each row as its numbers 0, s, 2 s, …, then 1, s + 1, …, with the padding's zeros around.

use super::conv::{Joined, Sizes};
use super::matrix::padded;
use crate::Conv;

pub(super) struct Columns<'a> {
    x: &'a Joined<'a>,
    sizes: &'a Sizes,
    conv: &'a Conv,
    sorted: Option<Sorted>,
}

/// Rows of every channel sorted by the stride: `stride` parts of `room` numbers.
struct Sorted {
    numbers: Vec<f32>,
    room: usize,
}

/// A part of a panel's line: `before` zeros, then `n` numbers of the channel from `from` on, then zeros, `count` in all.
#[derive(Clone, Copy)]
pub(super) struct Stretch {
    at: usize,
    count: usize,
    before: usize,
    n: usize,
    from: usize,
}

/// Numbers that are copied at once where there is room for more than are needed; what comes later overwrites the rest.
const QUICK: usize = 16;

impl<'a> Columns<'a> {
    pub(super) fn of(x: &'a Joined<'a>, sizes: &'a Sizes, conv: &'a Conv) -> Self {
        // One tap reads each number once at most: sorting would not pay.
        let sorted = (conv.stride > 1 && sizes.kernel_h * sizes.kernel_w > 1).then(|| {
            let (stride, padding) = (conv.stride, conv.padding);
            let room = (sizes.width + 2 * padding).div_ceil(stride);
            let mut numbers = vec![0.0; sizes.batch * sizes.c_in * sizes.height * stride * room];
            let rows = (0..sizes.batch * sizes.c_in)
                .flat_map(|n| x.plane(n / sizes.c_in, n % sizes.c_in).chunks_exact(sizes.width));
            for (row, sorted) in rows.zip(numbers.chunks_exact_mut(stride * room)) {
                for (part, sorted) in sorted.chunks_exact_mut(room).enumerate() {
                    // The part's first number that is no padding, and its place.
                    let skipped = padding.saturating_sub(part).div_ceil(stride);
                    let first = part + skipped * stride - padding;
                    let picked = row.get(first..).unwrap_or_default().iter().step_by(stride);
                    for (to, v) in sorted[skipped..].iter_mut().zip(picked) {
                        *to = *v;
                    }
                }
            }
            Sorted { numbers, room }
        });
        Self { x, sizes, conv, sorted }
    }

    /// The stretches of the `n` output pixels from `first` on, tap after tap, as many for each.
    pub(super) fn stretches(&self, first: usize, n: usize) -> Vec<Stretch> {
        let (sizes, conv) = (self.sizes, self.conv);
        let (height, width) = (sizes.height, sizes.width);
        let n_rows = (first % sizes.out_w + n).div_ceil(sizes.out_w);
        let mut stretches = Vec::with_capacity(sizes.kernel_h * sizes.kernel_w * n_rows);
        for tap in 0..sizes.kernel_h * sizes.kernel_w {
            let (down, right) = (
                tap / sizes.kernel_w * conv.dilation,
                tap % sizes.kernel_w * conv.dilation,
            );
            let mut at = 0;
            while at < n {
                let (row, column) = ((first + at) / sizes.out_w, (first + at) % sizes.out_w);
                let count = (sizes.out_w - column).min(n - at);
                // Positions are counted in the padded picture, so that they stay unsigned.
                let (y, start) = (row * conv.stride + down, column * conv.stride + right);
                let is_zero = y < conv.padding || y >= height + conv.padding;
                let (before, end, from) = if is_zero {
                    (0, 0, 0)
                } else if let Some(Sorted { room, .. }) = &self.sorted {
                    let line = (y - conv.padding) * conv.stride + right % conv.stride;
                    (0, count, line * room + column + right / conv.stride)
                } else {
                    let before = conv.padding.saturating_sub(start).div_ceil(conv.stride).min(count);
                    let inside = (width + conv.padding).saturating_sub(start).div_ceil(conv.stride);
                    let end = inside.clamp(before, count);
                    // A stretch without numbers may begin anywhere.
                    let from = (start + before * conv.stride).saturating_sub(conv.padding);
                    (before, end, (y - conv.padding) * width + from)
                };
                stretches.push(Stretch {
                    at,
                    count,
                    before,
                    n: end - before,
                    from,
                });
                at += count;
            }
        }
        stretches
    }

    /// Fills a panel of `(channels · taps, n)` with the channels of an image from `from` on.
    pub(super) fn fill(&self, (image, from): (usize, usize), stretches: &[Stretch], n: usize, panel: &mut [f32]) {
        let taps = self.sizes.kernel_h * self.sizes.kernel_w;
        let room = padded(n);
        for (index, lines) in panel.chunks_exact_mut(taps * room).enumerate() {
            let channel = from + index;
            let (source, step) = match &self.sorted {
                Some(Sorted { numbers, room }) => {
                    let size = self.sizes.height * self.conv.stride * room;
                    (&numbers[(image * self.sizes.c_in + channel) * size..][..size], 1)
                }
                None => (self.x.plane(image, channel), self.conv.stride),
            };
            let of_taps = stretches.chunks_exact(stretches.len() / taps);
            for (line, stretches) in lines.chunks_exact_mut(room).zip(of_taps) {
                for stretch in stretches {
                    copy(stretch, source, step, line);
                }
                line[n..].fill(0.0);
            }
        }
    }
}

#[inline(always)]
fn copy(stretch: &Stretch, source: &[f32], step: usize, line: &mut [f32]) {
    let Stretch {
        at,
        count,
        before,
        n,
        from,
    } = *stretch;
    if before > 0 {
        line[at..at + before].fill(0.0);
    }
    let begin = at + before;
    if step > 1 {
        let picked = source.get(from..).unwrap_or_default().iter().step_by(step);
        for (to, v) in line[begin..begin + n].iter_mut().zip(picked) {
            *to = *v;
        }
    } else if n <= QUICK
        && let (Some(to), Some(of)) = (line.get_mut(begin..begin + QUICK), source.get(from..from + QUICK))
    {
        to.copy_from_slice(of);
    } else if n > 0 {
        line[begin..begin + n].copy_from_slice(&source[from..from + n]);
    }
    if before + n < count {
        line[begin + n..at + count].fill(0.0);
    }
}
