//! Attention by tiles of queries: one tile's scores are all that is ever held.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

use super::matrix::{Place, Shared, View, multiply};
use super::{numbers, scratch, simd, zeros};

/// Attention of `heads` heads side by side in the last dimension.
pub(crate) struct Attend {
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    /// f32, broadcast to `(b, heads, nq, nk)`.
    pub(crate) mask: Option<Tensor>,
}

/// Queries of a tile: over 4096 keys its scores are 2 MB.
const TILE: usize = 128;

impl CustomOp3 for Attend {
    fn name(&self) -> &'static str {
        "attention-f32"
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
        let (batch, n_query, width) = l1.shape().dims3()?;
        let (_, n_key, v_width) = l3.shape().dims3()?;
        let (q, k, v) = (numbers(s1, l1)?, numbers(s2, l2)?, numbers(s3, l3)?);
        let mask = self.mask.as_ref().map(Tensor::storage_and_layout);
        let mask = match &mask {
            Some((storage, layout)) => match &**storage {
                Storage::Cpu(storage) => {
                    let numbers = &storage.as_slice::<f32>()?[layout.start_offset()..];
                    Some((numbers, layout.stride()))
                }
                _ => candle_core::bail!("the attention mask is not in the processor's memory"),
            },
            None => None,
        };
        let heads = self.heads;
        let (size, v_size) = (width / heads, v_width / heads);
        let threads = rayon::current_num_threads().max(1);
        let tile = n_query.div_ceil(threads.div_ceil(batch * heads)).clamp(1, TILE);
        let tiles = n_query.div_ceil(tile);
        let mut out = zeros(&[batch, n_query, v_width])?;
        let shared = Shared::new(&mut out);
        (0..batch * heads * tiles).into_par_iter().for_each(|job| {
            let (image, head, first) = (job / tiles / heads, job / tiles % heads, job % tiles * tile);
            let n = tile.min(n_query - first);
            scratch(n * n_key, |scores| {
                let queries = View {
                    numbers: &q[(image * n_query + first) * width + head * size..],
                    row: width,
                    column: 1,
                };
                let keys = View {
                    numbers: &k[image * n_key * width + head * size..],
                    row: 1,
                    column: width,
                };
                let whole = Shared::new(scores);
                let place = Place {
                    shared: &whole,
                    at: 0,
                    row: n_key,
                };
                // SAFETY: the scores lie in this thread's own scratch memory.
                unsafe { multiply([n, n_key, size], place, queries, keys, 1) }; // (n, nk)
                let mut sums = [0f32; TILE];
                for (row, scores) in scores.chunks_exact_mut(n_key).enumerate() {
                    simd::scale(scores, self.scale);
                    if let Some((mask, stride)) = mask {
                        let at = image * stride[0] + head * stride[1] + (first + row) * stride[2];
                        if stride[3] == 1 {
                            simd::add_row(scores, &mask[at..at + n_key]);
                        } else {
                            simd::add(scores, mask[at]);
                        }
                    }
                    sums[row] = simd::softmax_weights(scores);
                }
                let weights = View {
                    numbers: scores,
                    row: n_key,
                    column: 1,
                };
                let values = View {
                    numbers: &v[image * n_key * v_width + head * v_size..],
                    row: v_width,
                    column: 1,
                };
                let at = (image * n_query + first) * v_width + head * v_size;
                let place = Place {
                    shared: &shared,
                    at,
                    row: v_width,
                };
                // SAFETY: each job writes the columns of its own head in the rows of its own queries.
                unsafe { multiply([n, v_size, n_key], place, weights, values, 1) };
                for (row, sum) in sums.iter().enumerate().take(n) {
                    // SAFETY: as above, and the product has ended.
                    simd::scale(unsafe { shared.slice(at + row * v_width, v_size) }, 1.0 / sum);
                }
            });
        });
        Ok((CpuStorage::F32(out), (batch, n_query, v_width).into()))
    }
}
