//! Attention by panels of queries and blocks of keys: the softmax is kept as it goes, so a few blocks are all that is held.
//!
//! Scores are made with keys down and queries across, one query to a vector lane: maxima and sums need no work across lanes.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor};
use rayon::prelude::*;

use super::matrix::{Panel, Place, Shared, View, multiply, pack_transposed, padded, panel_width};
use super::{numbers, scratch, simd, zeros};

/// Attention of `heads` heads side by side in the last dimension.
pub(crate) struct Attend {
    pub(crate) heads: usize,
    pub(crate) scale: f32,
    /// f32, broadcast to `(b, heads, nq, nk)`.
    pub(crate) mask: Option<Tensor>,
}

/// Keys of a block: 128 keys by 48 queries are 25 kB, the first-level cache.
const KEYS: usize = 128;

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
        let panel = panel_width();
        let panels = n_query.div_ceil(panel);
        let mut out = zeros(&[batch, n_query, v_width])?;
        let shared = Shared::new(&mut out);
        (0..batch * heads * panels).into_par_iter().for_each(|job| {
            let (image, head, first) = (job / panels / heads, job / panels % heads, job % panels * panel);
            let n = panel.min(n_query - first);
            let room = padded(n);
            scratch((size + KEYS + v_size + 3) * room, |space| {
                let (queries, space) = space.split_at_mut(size * room);
                let (scores, space) = space.split_at_mut(KEYS * room);
                let (values, state) = space.split_at_mut(v_size * room);
                let view = View {
                    numbers: &q[(image * n_query + first) * width + head * size..],
                    row: width,
                    column: 1,
                };
                pack_transposed(view, size, n, self.scale, queries);
                state.fill(0.0);
                // Not minus infinity: a block that is masked altogether must not make NaN of its zeros.
                state[..room].fill(f32::MIN);
                let queries = Panel {
                    numbers: queries,
                    columns: n,
                };
                for start in (0..n_key).step_by(KEYS) {
                    let keys = KEYS.min(n_key - start);
                    let left = View {
                        numbers: &k[(image * n_key + start) * width + head * size..],
                        row: width,
                        column: 1,
                    };
                    let scores = &mut scores[..keys * room];
                    if room > n {
                        scores.fill(0.0);
                    }
                    let whole = Shared::new(scores);
                    let place = Place {
                        shared: &whole,
                        at: 0,
                        row: room,
                    };
                    // SAFETY: scores and values lie in this thread's own scratch memory.
                    unsafe { multiply([keys, size], place, left, queries, false) }; // (keys, n)
                    if let Some((mask, stride)) = mask {
                        let at = image * stride[0] + head * stride[1] + first * stride[2] + start * stride[3];
                        for (key, scores) in scores.chunks_exact_mut(room).enumerate() {
                            for (query, score) in scores[..n].iter_mut().enumerate() {
                                *score += mask[at + query * stride[2] + key * stride[3]];
                            }
                        }
                    }
                    simd::softmax_block(scores, room, state);
                    if start > 0 {
                        simd::scale_rows(values, &state[2 * room..]);
                    }
                    let left = View {
                        numbers: &v[(image * n_key + start) * v_width + head * v_size..],
                        row: 1,
                        column: v_width,
                    };
                    let scores = Panel {
                        numbers: scores,
                        columns: n,
                    };
                    let whole = Shared::new(values);
                    let place = Place {
                        shared: &whole,
                        at: 0,
                        row: room,
                    };
                    // SAFETY: as above.
                    unsafe { multiply([v_size, keys], place, left, scores, start > 0) }; // (v_size, n)
                }
                for query in 0..n {
                    let at = (image * n_query + first + query) * v_width + head * v_size;
                    let part = 1.0 / state[room + query];
                    // SAFETY: each job writes the columns of its own head in the rows of its own queries.
                    let line = unsafe { shared.slice(at, v_size) };
                    for (line, values) in line.iter_mut().zip(values.chunks_exact(room)) {
                        *line = values[query] * part;
                    }
                }
            });
        });
        Ok((CpuStorage::F32(out), (batch, n_query, v_width).into()))
    }
}
