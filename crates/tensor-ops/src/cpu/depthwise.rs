//! Convolution of each channel by itself: no products to share, so several vectors of results are held in registers over
//! all taps. Rows lie padded, and sorted by the stride, in a ring that holds as many as a kernel reaches over.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};

use super::lanes::{self, Lanes, dispatched};
use super::matrix::Shared;
use super::{filled, numbers, scratch, share_out, simd};
use crate::{Activation, Conv};

/// Depthwise convolution with zero padding, its bias (or an empty one) and activation.
pub(crate) struct ConvolveEach {
    pub(crate) conv: Conv,
    pub(crate) activation: Activation,
}

/// Vectors of results in registers at once.
const VECTORS: usize = 4;

impl CustomOp3 for ConvolveEach {
    fn name(&self) -> &'static str {
        "depthwise-conv2d-f32"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = l1.shape().dims4()?;
        let (_, _, kernel_h, kernel_w) = l2.shape().dims4()?;
        let Conv {
            stride,
            padding,
            dilation,
            ..
        } = self.conv;
        let reach = |kernel: usize| (kernel - 1) * dilation + 1;
        let outputs = |size: usize, kernel: usize| (size + 2 * padding - reach(kernel)) / stride + 1;
        let (out_h, out_w) = (outputs(height, kernel_h), outputs(width, kernel_w));
        let (x, weight) = (numbers(s1, l1)?, numbers(s2, l2)?);
        let bias = numbers(s3, l3)?;
        let rows = Rows {
            padding,
            stride,
            // Vectors may reach beyond the last result.
            room: (width + 2 * padding).div_ceil(stride) + VECTORS * lanes::width(),
            n: reach(kernel_h),
            outside: 0.0,
        };
        let places = rows.places(kernel_h * kernel_w, |tap| {
            (tap / kernel_w * dilation, tap % kernel_w * dilation)
        });
        let fill = |out: &mut [f32]| {
            let work = out.len() * kernel_h * kernel_w;
            let shared = Shared::new(out);
            share_out(batch * channels, work, |n| {
                let plane = &x[n * height * width..][..height * width];
                // SAFETY: each job has a plane of its own.
                let target = unsafe { shared.slice(n * out_h * out_w, out_h * out_w) };
                let channel = n % channels;
                let kernel = &weight[channel * kernel_h * kernel_w..][..kernel_h * kernel_w];
                let bias = bias.get(channel).copied().unwrap_or(0.0);
                scratch(rows.n * rows.stride * rows.room, |ring| {
                    ring.fill(rows.outside);
                    let mut next = 0;
                    for (y, row) in target.chunks_exact_mut(out_w).enumerate() {
                        while next < y * stride + rows.n {
                            let source = next.checked_sub(padding).filter(|y| *y < height);
                            rows.put(ring, next, source.map(|y| &plane[y * width..][..width]));
                            next += 1;
                        }
                        let turn = y * stride % rows.n;
                        let taps = &places[turn * kernel.len()..][..kernel.len()];
                        sum_taps(ring, taps, kernel, bias, row);
                        if self.activation != Activation::None {
                            simd::activate(row, self.activation);
                        }
                    }
                });
            });
        };
        // SAFETY: each plane of the result is cut into rows, and every number of a row is a sum.
        let out = unsafe { filled(&[batch, channels, out_h, out_w], fill)? };
        Ok((CpuStorage::F32(out), (batch, channels, out_h, out_w).into()))
    }
}

/// A ring of `n` rows of the padded picture, each as its numbers 0, s, 2 s, …, then 1, s + 1, …, `room` numbers apart.
pub(super) struct Rows {
    pub(super) padding: usize,
    pub(super) stride: usize,
    pub(super) room: usize,
    pub(super) n: usize,
    /// What stands around the picture.
    pub(super) outside: f32,
}

impl Rows {
    /// Where in the ring number `x` of row `y` of the padded picture lies.
    pub(super) fn place(&self, y: usize, x: usize) -> usize {
        (y % self.n * self.stride + x % self.stride) * self.room + x / self.stride
    }

    /// Where the numbers of `taps` taps begin when row 0, 1, … of the ring is the first that a kernel reaches: so many for
    /// each turn of the ring. `tap` gives its distance down and right.
    pub(super) fn places(&self, taps: usize, tap: impl Fn(usize) -> (usize, usize)) -> Vec<usize> {
        let turns = (0..self.n).flat_map(|turn| (0..taps).map(move |n| (turn, n)));
        turns
            .map(|(turn, n)| {
                let (down, right) = tap(n);
                self.place(turn + down, right)
            })
            .collect()
    }

    /// Writes row `y`, or what is outside. What stands beside rows is there from the beginning.
    pub(super) fn put(&self, ring: &mut [f32], y: usize, row: Option<&[f32]>) {
        let slot = &mut ring[self.place(y, 0)..][..self.stride * self.room];
        let Some(row) = row else {
            slot.fill(self.outside);
            return;
        };
        if self.stride == 1 {
            slot[self.padding..][..row.len()].copy_from_slice(row);
            return;
        }
        for (part, slot) in slot.chunks_exact_mut(self.room).enumerate() {
            let skipped = self.padding.saturating_sub(part).div_ceil(self.stride);
            let first = part + skipped * self.stride - self.padding;
            let picked = row.get(first..).unwrap_or_default().iter().step_by(self.stride);
            for (to, v) in slot[skipped..].iter_mut().zip(picked) {
                *to = *v;
            }
        }
    }
}

#[inline(always)]
unsafe fn sum_taps_any<L: Lanes>(ring: &[f32], taps: &[usize], weights: &[f32], bias: f32, row: &mut [f32]) {
    let last = taps.iter().copied().max().unwrap_or(0);
    assert!(
        last + row.len() + L::COUNT <= ring.len(),
        "every tap's numbers lie in the ring"
    );
    let mut at = 0;
    while at < row.len() {
        let left = (row.len() - at).div_ceil(L::COUNT);
        // SAFETY: the vectors of every tap lie within the ring (asserted; a block of several is whole).
        unsafe {
            if left >= VECTORS && row.len() - at >= VECTORS * L::COUNT {
                let mut sums = [L::splat(bias); VECTORS];
                for (from, weight) in taps.iter().zip(weights) {
                    let (from, weight) = (ring.as_ptr().add(from + at), L::splat(*weight));
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(from.add(v * L::COUNT)).fma(weight, *sum);
                    }
                }
                for (v, sum) in sums.iter().enumerate() {
                    sum.store(row.as_mut_ptr().add(at + v * L::COUNT));
                }
                at += VECTORS * L::COUNT;
                continue;
            }
            let mut sum = L::splat(bias);
            for (from, weight) in taps.iter().zip(weights) {
                sum = L::load(ring.as_ptr().add(from + at)).fma(L::splat(*weight), sum);
            }
            let n = L::COUNT.min(row.len() - at);
            let mut edge = [0f32; 16];
            sum.store(edge.as_mut_ptr());
            row[at..at + n].copy_from_slice(&edge[..n]);
            at += n;
        }
    }
}
dispatched! {
    /// `row[i]` is the bias and the sum of `ring[tap + i] * weight` over all taps.
    fn sum_taps(ring: &[f32], taps: &[usize], weights: &[f32], bias: f32, row: &mut [f32]) = sum_taps_any
}
