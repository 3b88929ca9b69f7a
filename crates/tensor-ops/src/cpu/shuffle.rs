//! Pixels from channels, the end of most upscalers.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::matrix::Shared;
use super::{filled, numbers, share_out, with_numbers};

/// `(b, c·f², h, w) -> (b, c, h·f, w·f)`; what is added is `(b, c, h, w)`, contiguous. The caller has checked both shapes.
pub(crate) struct Shuffle {
    pub(crate) factor: usize,
    pub(crate) onto: Option<Tensor>,
}

impl CustomOp1 for Shuffle {
    fn name(&self) -> &'static str {
        "pixel-shuffle-f32"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, h, w) = layout.shape().dims4()?;
        let factor = self.factor;
        let dims = [batch, channels / (factor * factor), h * factor, w * factor];
        let x = numbers(storage, layout)?;
        let run = |onto: Option<&[f32]>| {
            // SAFETY: every number of every line is written once, by the one job that has the line.
            unsafe {
                filled(&dims, |out| {
                    let n_lines = out.len() / dims[3];
                    let shared = Shared::new(out);
                    share_out(n_lines, x.len(), |line| {
                        let (plane, y) = (line / dims[2], line % dims[2]);
                        let (row, sub) = (y / factor, y % factor);
                        let out = shared.slice(line * dims[3], dims[3]);
                        let from = |i: usize| {
                            let channel = (plane * factor + sub) * factor + i;
                            &x[(channel * h + row) * w..][..w]
                        };
                        let onto = onto.map(|onto| &onto[(plane * h + row) * w..][..w]);
                        interleave(out, factor, from, onto);
                    });
                })
            }
        };
        let out = match &self.onto {
            Some(onto) => with_numbers(onto, |onto| run(Some(onto)))?,
            None => run(None)?,
        };
        Ok((CpuStorage::F32(out), dims.as_slice().into()))
    }
}

/// Number `j` of line `from(i)` to `out[j · factor + i]`, plus `onto[j]`.
fn interleave<'a>(out: &mut [f32], factor: usize, from: impl Fn(usize) -> &'a [f32], onto: Option<&[f32]>) {
    match factor {
        2 => interleave_all::<2>(out, [0, 1].map(from), onto),
        4 => interleave_all::<4>(out, [0, 1, 2, 3].map(from), onto),
        _ => {
            for i in 0..factor {
                for (j, (out, v)) in out.iter_mut().skip(i).step_by(factor).zip(from(i)).enumerate() {
                    *out = v + onto.map_or(0.0, |onto| onto[j]);
                }
            }
        }
    }
}

fn interleave_all<const N: usize>(out: &mut [f32], lines: [&[f32]; N], onto: Option<&[f32]>) {
    let (groups, _) = out.as_chunks_mut::<N>();
    for (j, group) in groups.iter_mut().enumerate() {
        *group = lines.map(|line| line[j]);
    }
    if let Some(onto) = onto {
        for (group, v) in groups.iter_mut().zip(onto) {
            group.iter_mut().for_each(|out| *out += v);
        }
    }
}
