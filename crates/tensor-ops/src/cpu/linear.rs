//! Rows times a weight in torch's layout, with bias and activation while a tile is still in the cache.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use rayon::prelude::*;

use super::matrix::{Place, Shared, View, multiply};
use super::{numbers, simd, zeros};
use crate::Activation;

/// `x (rows, in)`, `weight (out, in)`, `bias (out)` or empty -> `(rows, out)`.
pub(crate) struct Multiply(pub(crate) Activation);

/// Rows of a tile.
const TILE: usize = 256;

impl CustomOp3 for Multiply {
    fn name(&self) -> &'static str {
        "linear-f32"
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
        let (rows, n_in) = l1.shape().dims2()?;
        let (n_out, _) = l2.shape().dims2()?;
        let (x, weight, bias) = (numbers(s1, l1)?, numbers(s2, l2)?, numbers(s3, l3)?);
        let mut out = zeros(&[rows, n_out])?;
        let threads = rayon::current_num_threads().max(1);
        // Few rows leave the threads to the product, which shares out the columns.
        let (tile, inner) = if rows >= 32 * threads {
            (rows.div_ceil(threads).min(TILE), 1)
        } else {
            (rows, threads)
        };
        let tiles = out.par_chunks_mut(tile * n_out).zip(x.par_chunks(tile * n_in));
        tiles.for_each(|(out, x)| {
            let n = x.len() / n_in;
            let shared = Shared::new(out);
            let place = Place {
                shared: &shared,
                at: 0,
                row: n_out,
            };
            let left = View {
                numbers: x,
                row: n_in,
                column: 1,
            };
            let right = View {
                numbers: weight,
                row: 1,
                column: n_in,
            };
            // SAFETY: the tile of the result is borrowed here alone.
            unsafe { multiply([n, n_out, n_in], place, left, right, inner) };
            for row in out.chunks_exact_mut(n_out) {
                simd::add_row(row, bias);
                simd::activate(row, self.0);
            }
        });
        Ok((CpuStorage::F32(out), (rows, n_out).into()))
    }
}
