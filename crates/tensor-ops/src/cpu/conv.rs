//! Convolution as a product of the kernel, in its own layout, with columns of the picture: copied panel by panel
//! ([`super::columns`]), or read where they lie when a kernel of one tap has few outputs.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, Tensor};

use super::columns::Columns;
use super::matrix::{Panel, Place, Shared, View, multiply, multiply_in_place, padded, panel_width};
use super::{filled, numbers, scratch, share_out, simd, winograd, with_numbers};
use crate::{Activation, Conv};

/// Convolution of one group with zero padding, its bias (or an empty one) and what comes after.
pub(crate) struct Convolve {
    pub(crate) conv: Conv,
    pub(crate) activation: Activation,
    /// Pictures whose channels come after the operand's, contiguous.
    pub(crate) more: Vec<Tensor>,
    /// Of negative numbers, instead of the activation.
    pub(crate) slopes: Option<Vec<f32>>,
    /// A factor and what is added then, contiguous.
    pub(crate) scaled_onto: Option<(f32, Tensor)>,
    /// Of the sum.
    pub(crate) last: Activation,
}

/// The sizes of one convolution.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) c_in: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) c_out: usize,
    pub(super) kernel_h: usize,
    pub(super) kernel_w: usize,
    pub(super) out_h: usize,
    pub(super) out_w: usize,
    pub(super) padding: usize,
}

impl Sizes {
    /// Multiplications of the plain way.
    pub(super) fn products(&self) -> usize {
        let kernel = self.c_in * self.kernel_h * self.kernel_w;
        (self.batch * self.c_out * self.out_h * self.out_w).saturating_mul(kernel)
    }
}

/// Pictures joined along their channels, each where it lies.
pub(super) struct Joined<'a> {
    /// The numbers of a picture's batch and its channels.
    parts: Vec<(&'a [f32], usize)>,
    pixels: usize,
}

impl Joined<'_> {
    /// One channel of one picture.
    pub(super) fn plane(&self, image: usize, mut channel: usize) -> &[f32] {
        for (numbers, channels) in &self.parts {
            if channel < *channels {
                return &numbers[(image * channels + channel) * self.pixels..][..self.pixels];
            }
            channel -= channels;
        }
        unreachable!("channels are counted from the parts")
    }

    /// The pictures' channels of one place in the batch, each with their number.
    fn stretches(&self, image: usize) -> impl Iterator<Item = (&[f32], usize)> {
        let pixels = self.pixels;
        self.parts
            .iter()
            .map(move |(numbers, channels)| (&numbers[image * channels * pixels..][..channels * pixels], *channels))
    }
}

/// What is done to each channel of a finished tile.
#[derive(Clone, Copy)]
pub(super) struct Finish<'a> {
    pub(super) bias: &'a [f32],
    pub(super) activation: Activation,
    pub(super) slopes: Option<&'a [f32]>,
    pub(super) scaled_onto: Option<(f32, &'a [f32])>,
    pub(super) last: Activation,
}

impl Finish<'_> {
    pub(super) fn apply(&self, channel: usize, row: &mut [f32]) {
        let bias = self.bias.get(channel).copied().unwrap_or(0.0);
        let activation = match self.slopes {
            Some(slopes) => Activation::LeakyRelu(f64::from(slopes[channel % slopes.len()])),
            None => self.activation,
        };
        if bias != 0.0 || activation != Activation::None {
            simd::add_and_activate(row, bias, activation);
        }
    }

    /// The last steps, for numbers that lie at `at` of the result.
    pub(super) fn place(&self, at: usize, row: &mut [f32]) {
        if let Some((factor, onto)) = self.scaled_onto {
            let onto = &onto[at..][..row.len()];
            simd::scale_onto(row, factor, onto, self.last == Activation::Relu);
        }
        let is_done = self.scaled_onto.is_some() && self.last == Activation::Relu;
        if self.last != Activation::None && !is_done {
            simd::activate(row, self.last);
        }
    }
}

/// Taps of a panel: 768 rows of 48 numbers are 147 kB, a part of the second-level cache.
const DEPTH: usize = 768;

impl CustomOp3 for Convolve {
    fn name(&self) -> &'static str {
        "conv2d-f32"
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
        let (batch, c_first, height, width) = l1.shape().dims4()?;
        let (c_out, c_in, kernel_h, kernel_w) = l2.shape().dims4()?;
        let conv = &self.conv;
        let outputs =
            |size: usize, kernel: usize| (size + 2 * conv.padding - (kernel - 1) * conv.dilation - 1) / conv.stride + 1;
        let sizes = Sizes {
            batch,
            c_in,
            height,
            width,
            c_out,
            kernel_h,
            kernel_w,
            out_h: outputs(height, kernel_h),
            out_w: outputs(width, kernel_w),
            padding: conv.padding,
        };
        let weight = numbers(s2, l2)?;
        let more: Vec<_> = self.more.iter().map(Tensor::storage_and_layout).collect();
        let mut parts = vec![(numbers(s1, l1)?, c_first)];
        for (storage, layout) in &more {
            let Storage::Cpu(storage) = &**storage else {
                candle_core::bail!("a joined picture is not in the processor's memory");
            };
            parts.push((numbers(storage, layout)?, layout.dims()[1]));
        }
        let x = Joined {
            parts,
            pixels: height * width,
        };
        let dims = [batch, c_out, sizes.out_h, sizes.out_w];
        let run = |onto: Option<(f32, &[f32])>| {
            let finish = Finish {
                bias: numbers(s3, l3)?,
                activation: self.activation,
                slopes: self.slopes.as_deref(),
                scaled_onto: onto,
                last: self.last,
            };
            if onto.is_some_and(|(_, onto)| onto.len() != dims.iter().product::<usize>()) {
                candle_core::bail!("what a convolution is added to does not have its shape {dims:?}");
            }
            // SAFETY: panels, or tiles, cover the result; each number is a product's before more is done to it.
            unsafe {
                filled(&dims, |out| {
                    if conv.stride == 1 && conv.dilation == 1 && winograd::pays(&sizes) {
                        winograd::convolve(&x, weight, &sizes, finish, out);
                    } else {
                        by_columns(&x, weight, &sizes, (conv, finish), out);
                    }
                })
            }
        };
        let out = match &self.scaled_onto {
            Some((factor, onto)) => with_numbers(onto, |onto| run(Some((*factor, onto))))?,
            None => run(None)?,
        };
        Ok((CpuStorage::F32(out), dims.as_slice().into()))
    }
}

/// Most outputs for which the picture's own rows are multiplied: with more a copy is read often enough to pay.
const FEW_OUTPUTS: usize = 32;

fn by_columns(x: &Joined<'_>, weight: &[f32], sizes: &Sizes, (conv, finish): (&Conv, Finish<'_>), out: &mut [f32]) {
    let pixels = sizes.out_h * sizes.out_w;
    let taps = sizes.kernel_h * sizes.kernel_w;
    let depth = sizes.c_in * taps;
    let width = panel_width();
    let panels = pixels.div_ceil(width);
    let threads = rayon::current_num_threads().max(1);
    // Few pixels leave threads idle unless the channels are shared out too.
    let parts = threads.div_ceil(sizes.batch * panels);
    let part = sizes.c_out.div_ceil(parts).next_multiple_of(8);
    let parts = sizes.c_out.div_ceil(part);
    let step = (DEPTH / taps).clamp(1, sizes.c_in); // channels of a panel
    let as_it_lies = taps == 1 && conv.stride == 1 && conv.padding == 0 && sizes.c_out <= FEW_OUTPUTS;
    let columns = Columns::of(x, sizes, conv);
    let shared = Shared::new(out);
    share_out(sizes.batch * panels * parts, sizes.products(), |job| {
        let (image, first, channel) = (job / parts / panels, job / parts % panels * width, job % parts * part);
        let (n, c_out) = (width.min(pixels - first), part.min(sizes.c_out - channel));
        let place = Place {
            shared: &shared,
            at: (image * sizes.c_out + channel) * pixels + first,
            row: pixels,
        };
        let kernel = |from: usize| View {
            numbers: &weight[channel * depth + from * taps..],
            row: depth,
            column: 1,
        };
        if as_it_lies && n == width {
            let mut from = 0;
            for (numbers, channels) in x.stretches(image) {
                let panel = Panel {
                    numbers: &numbers[first..],
                    columns: n,
                };
                // SAFETY: a job alone writes these pixels of these channels.
                unsafe { multiply_in_place([c_out, channels], place, kernel(from), (panel, pixels), from > 0) };
                from += channels;
            }
        } else {
            let stretches = columns.stretches(first, n);
            scratch(step * taps * padded(n), |panel| {
                for from in (0..sizes.c_in).step_by(step) {
                    let channels = step.min(sizes.c_in - from);
                    let panel = &mut panel[..channels * taps * padded(n)];
                    columns.fill((image, from), &stretches, n, panel);
                    let panel = Panel {
                        numbers: panel,
                        columns: n,
                    };
                    // SAFETY: as above.
                    unsafe { multiply([c_out, channels * taps], place, kernel(from), panel, from > 0) };
                }
            });
        }
        for i in 0..c_out {
            // SAFETY: as above, and the product has ended.
            let row = unsafe { shared.slice(place.at + i * pixels, n) };
            finish.apply(channel + i, row);
            finish.place(place.at + i * pixels, row);
        }
    });
}
