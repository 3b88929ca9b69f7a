//! Rows times a weight in torch's layout, with bias and activation while a tile is still in the cache.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use rayon::prelude::*;

use super::matrix::{Panel, Place, Shared, View, multiply, pack_transposed, padded, panel_width};
use super::{filled, numbers, scratch, simd};
use crate::Activation;

/// `x (rows, in)`, `weight (out, in)`, `bias (out)` or empty -> `(rows, out)`.
pub(crate) struct Multiply(pub(crate) Activation);

/// Rows that go through one packed panel of the weight: 1024 rows of 1280 numbers are 5 MB, a part of the last-level cache.
const ROWS: usize = 1024;
/// Depth of a panel: 768 rows of 48 numbers are 147 kB, a part of the second-level cache.
const DEPTH: usize = 768;
/// Outputs of a job that packs rows: 64 rows of 1280 weights are 328 kB.
const OUTPUTS: usize = 64;

struct Problem<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    rows: usize,
    n_in: usize,
    n_out: usize,
    activation: Activation,
}

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
        let problem = Problem {
            x: numbers(s1, l1)?,
            weight: numbers(s2, l2)?,
            bias: numbers(s3, l3)?,
            rows,
            n_in,
            n_out,
            activation: self.0,
        };
        // SAFETY: the panels or chunks of outputs cover the result; each number is a product's before more is done to it.
        let out = unsafe {
            filled(&[rows, n_out], |out| {
                if rows >= n_out {
                    by_packed_weight(&problem, &Shared::new(out));
                } else {
                    by_packed_rows(&problem, &Shared::new(out));
                }
            })
        }?;
        Ok((CpuStorage::F32(out), (rows, n_out).into()))
    }
}

/// Many rows: a job packs one panel of the weight and runs a run of rows through it.
fn by_packed_weight(p: &Problem<'_>, out: &Shared<'_>) {
    let width = panel_width();
    let panels = p.n_out.div_ceil(width);
    let threads = rayon::current_num_threads().max(1);
    let run = p.rows.div_ceil(threads.div_ceil(panels)).clamp(1, ROWS);
    let runs = p.rows.div_ceil(run);
    (0..runs * panels).into_par_iter().for_each(|job| {
        let (first, start) = (job / panels * run, job % panels * width);
        let (rows, columns) = (run.min(p.rows - first), width.min(p.n_out - start));
        let place = Place {
            shared: out,
            at: first * p.n_out + start,
            row: p.n_out,
        };
        scratch(DEPTH.min(p.n_in) * padded(columns), |packed| {
            for from in (0..p.n_in).step_by(DEPTH) {
                let depth = DEPTH.min(p.n_in - from);
                let weight = View {
                    numbers: &p.weight[start * p.n_in + from..],
                    row: p.n_in,
                    column: 1,
                };
                pack_transposed(weight, depth, columns, 1.0, packed);
                let left = View {
                    numbers: &p.x[first * p.n_in + from..],
                    row: p.n_in,
                    column: 1,
                };
                let panel = Panel {
                    numbers: packed,
                    columns,
                };
                // SAFETY: a job alone writes these columns of these rows.
                unsafe { multiply([rows, depth], place, left, panel, from > 0) };
            }
        });
        let bias = p.bias.get(start..start + columns).unwrap_or(&[]);
        if bias.is_empty() && p.activation == Activation::None {
            return;
        }
        for row in 0..rows {
            // SAFETY: as above, and the product has ended.
            let line = unsafe { out.slice(place.at + row * p.n_out, columns) };
            simd::add_row(line, bias);
            simd::activate(line, p.activation);
        }
    });
}

/// Few rows: they are packed once; a job turns some of the weight's rows into columns of the result.
fn by_packed_rows(p: &Problem<'_>, out: &Shared<'_>) {
    let width = panel_width();
    let mut packed = vec![0f32; p.n_in * padded(p.rows)];
    let panels = packed.par_chunks_mut(p.n_in * width);
    panels.enumerate().for_each(|(index, packed)| {
        let first = index * width;
        let view = View {
            numbers: &p.x[first * p.n_in..],
            row: p.n_in,
            column: 1,
        };
        pack_transposed(view, p.n_in, width.min(p.rows - first), 1.0, packed);
    });
    let threads = rayon::current_num_threads().max(1);
    let chunk = p.n_out.div_ceil(threads).next_multiple_of(8).min(OUTPUTS);
    (0..p.n_out.div_ceil(chunk)).into_par_iter().for_each(|job| {
        let start = job * chunk;
        let outputs = chunk.min(p.n_out - start);
        scratch(outputs * width, |tile| {
            for (index, packed) in packed.chunks(p.n_in * width).enumerate() {
                let first = index * width;
                let columns = width.min(p.rows - first);
                let left = View {
                    numbers: &p.weight[start * p.n_in..],
                    row: p.n_in,
                    column: 1,
                };
                let panel = Panel {
                    numbers: packed,
                    columns,
                };
                let whole = Shared::new(tile);
                let place = Place {
                    shared: &whole,
                    at: 0,
                    row: width,
                };
                // SAFETY: the tile is this thread's own scratch memory.
                unsafe { multiply([outputs, p.n_in], place, left, panel, false) };
                for row in 0..columns {
                    // SAFETY: a job alone writes these columns of the result.
                    let line = unsafe { out.slice((first + row) * p.n_out + start, outputs) };
                    for (i, v) in line.iter_mut().enumerate() {
                        *v = tile[i * width + row];
                    }
                    simd::add_row(line, p.bias.get(start..start + outputs).unwrap_or(&[]));
                    simd::activate(line, p.activation);
                }
            }
        });
    });
}
