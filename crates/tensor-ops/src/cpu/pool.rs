//! The greatest number of each window.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};

use super::depthwise::Rows;
use super::matrix::Shared;
use super::{filled, numbers, scratch, share_out, simd};

/// Square windows that may reach beyond the picture, where nothing counts.
pub(crate) struct Greatest {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) padding: usize,
    /// Windows down and across.
    pub(crate) windows: (usize, usize),
}

impl CustomOp1 for Greatest {
    fn name(&self) -> &'static str {
        "max-pool-f32"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = layout.shape().dims4()?;
        let (out_h, out_w) = self.windows;
        let x = numbers(storage, layout)?;
        let rows = Rows {
            padding: self.padding,
            stride: self.stride,
            room: (width + self.padding)
                .div_ceil(self.stride)
                .max(out_w + self.kernel.div_ceil(self.stride)),
            n: self.kernel,
            outside: f32::NEG_INFINITY,
        };
        let n_taps = self.kernel * self.kernel;
        let places = rows.places(n_taps, |tap| (tap / self.kernel, tap % self.kernel));
        let fill = |out: &mut [f32]| {
            let work = out.len() * self.kernel * self.kernel;
            let shared = Shared::new(out);
            share_out(batch * channels, work, |n| {
                let plane = &x[n * height * width..][..height * width];
                // SAFETY: each job has a plane of its own.
                let target = unsafe { shared.slice(n * out_h * out_w, out_h * out_w) };
                scratch(rows.n * rows.stride * rows.room, |ring| {
                    ring.fill(rows.outside);
                    let mut next = 0;
                    for (y, row) in target.chunks_exact_mut(out_w).enumerate() {
                        while next < y * self.stride + self.kernel {
                            let source = next.checked_sub(self.padding).filter(|y| *y < height);
                            rows.put(ring, next, source.map(|y| &plane[y * width..][..width]));
                            next += 1;
                        }
                        row.fill(rows.outside);
                        let turn = y * self.stride % rows.n;
                        for at in &places[turn * n_taps..][..n_taps] {
                            simd::greatest(row, &ring[*at..][..out_w]);
                        }
                    }
                });
            });
        };
        // SAFETY: each plane of the result is cut into rows, and every number of a row is written.
        let out = unsafe { filled(&[batch, channels, out_h, out_w], fill)? };
        Ok((CpuStorage::F32(out), (batch, channels, out_h, out_w).into()))
    }
}
