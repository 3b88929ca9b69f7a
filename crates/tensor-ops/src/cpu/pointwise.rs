//! Activations and the gated gelu over whole tensors.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use rayon::prelude::*;

use super::{filled, numbers, simd};
use crate::Activation;

/// Numbers a thread takes at a time: they fit the second-level cache.
const CHUNK: usize = 16 * 1024;

/// An activation on a tensor of any shape.
pub(crate) struct Activate(pub(crate) Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation-f32"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = numbers(storage, layout)?;
        // SAFETY: all chunks are copied before anything else is done to them.
        let out = unsafe {
            filled(layout.dims(), |out| {
                out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(out, x)| {
                    out.copy_from_slice(x);
                    simd::activate(out, self.0);
                });
            })
        }?;
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }
}

/// `(.., 2n) -> (.., n)`: the first half times the gelu of the second.
pub(crate) struct Geglu;

impl CustomOp1 for Geglu {
    fn name(&self) -> &'static str {
        "geglu-f32"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = numbers(storage, layout)?;
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut() else {
            candle_core::bail!("geglu of a scalar");
        };
        *last /= 2;
        let n = *last;
        let rows = CHUNK.div_ceil(n);
        // SAFETY: each row is written whole and never read.
        let out = unsafe {
            filled(&dims, |out| {
                out.par_chunks_mut(rows * n)
                    .zip(x.par_chunks(rows * 2 * n))
                    .for_each(|(out, x)| {
                        for (out, x) in out.chunks_exact_mut(n).zip(x.chunks_exact(2 * n)) {
                            simd::geglu_row(x, out);
                        }
                    });
            })
        }?;
        Ok((CpuStorage::F32(out), dims.into()))
    }
}
