//! Group and layer norm in two reads and one write; a group norm's SiLU goes with the write.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use rayon::prelude::*;

use super::{filled, numbers, simd};
use crate::{Activation, GroupNorm};

/// `x (b, c, ..)`, `weight (c)`, `bias (c)` -> as `x`.
pub(crate) struct NormGroups(pub(crate) GroupNorm);

impl CustomOp3 for NormGroups {
    fn name(&self) -> &'static str {
        "group-norm-f32"
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
        let (x, weight, bias) = (numbers(s1, l1)?, numbers(s2, l2)?, numbers(s3, l3)?);
        let dims = l1.dims();
        let positions: usize = dims[2..].iter().product();
        let group = dims[1] / self.0.groups;
        // SAFETY: each channel of each picture is written whole before its activation.
        let out = unsafe {
            filled(dims, |out| {
                let parts = out
                    .par_chunks_mut(group * positions)
                    .zip(x.par_chunks(group * positions));
                parts.enumerate().for_each(|(index, (out, x))| {
                    let first = index % self.0.groups * group;
                    let (mean, variance) = simd::moments(x);
                    let factor = 1.0 / (variance + self.0.eps).sqrt();
                    let planes = out.chunks_exact_mut(positions).zip(x.chunks_exact(positions));
                    for (channel, (out, x)) in (first..).zip(planes) {
                        let scale = (f64::from(weight[channel]) * factor) as f32;
                        simd::affine(x, out, mean as f32, scale, bias[channel]);
                        if self.0.silu {
                            simd::activate(out, Activation::Silu);
                        }
                    }
                });
            })
        }?;
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }
}

/// `x (.., n)`, `weight (n)`, `bias (n)` -> as `x`.
pub(crate) struct NormRows {
    pub(crate) eps: f64,
}

impl CustomOp3 for NormRows {
    fn name(&self) -> &'static str {
        "layer-norm-f32"
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
        let (x, weight, bias) = (numbers(s1, l1)?, numbers(s2, l2)?, numbers(s3, l3)?);
        let n = weight.len();
        // SAFETY: each row is written whole and never read.
        let out = unsafe {
            filled(l1.dims(), |out| {
                let parts = out.par_chunks_mut(n * 16).zip(x.par_chunks(n * 16));
                parts.for_each(|(out, x)| {
                    for (out, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)) {
                        simd::norm_row(x, out, weight, bias, self.eps);
                    }
                });
            })
        }?;
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }
}
