//! Convolution of each channel by itself: no products to share, so rows are added up tap by tap.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use rayon::prelude::*;

use super::{numbers, simd, zeros};
use crate::{Activation, Conv};

/// Depthwise convolution with zero padding, its bias (or an empty one) and activation.
pub(crate) struct ConvolveEach {
    pub(crate) conv: Conv,
    pub(crate) activation: Activation,
}

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
        let outputs = |size: usize, kernel: usize| (size + 2 * padding - (kernel - 1) * dilation - 1) / stride + 1;
        let (out_h, out_w) = (outputs(height, kernel_h), outputs(width, kernel_w));
        let (x, weight) = (numbers(s1, l1)?, numbers(s2, l2)?);
        let bias = numbers(s3, l3)?;
        let mut out = zeros(&[batch, channels, out_h, out_w])?;
        let planes = x.par_chunks_exact(height * width);
        let targets = out.par_chunks_exact_mut(out_h * out_w);
        planes.zip(targets).enumerate().for_each(|(n, (plane, target))| {
            let channel = n % channels;
            let kernel = &weight[channel * kernel_h * kernel_w..][..kernel_h * kernel_w];
            for (y, row) in target.chunks_exact_mut(out_w).enumerate() {
                for (tap, weight) in kernel.iter().enumerate() {
                    // Positions are counted in the padded picture, so that they stay unsigned.
                    let source = y * stride + tap / kernel_w * dilation;
                    if source < padding || source >= height + padding {
                        continue;
                    }
                    let line = &plane[(source - padding) * width..][..width];
                    let shift = tap % kernel_w * dilation;
                    // The first and the last result whose pixel lies in the line.
                    let first = padding.saturating_sub(shift).div_ceil(stride);
                    let end = (width + padding).saturating_sub(shift).div_ceil(stride).min(out_w);
                    if first >= end {
                        continue;
                    }
                    let pixels = &line[first * stride + shift - padding..];
                    let results = &mut row[first..end];
                    if stride == 1 {
                        for (result, pixel) in results.iter_mut().zip(pixels) {
                            *result += pixel * weight;
                        }
                    } else {
                        for (result, pixel) in results.iter_mut().zip(pixels.iter().step_by(stride)) {
                            *result += pixel * weight;
                        }
                    }
                }
                if let Some(bias) = bias.get(channel) {
                    simd::add(row, *bias);
                }
                simd::activate(row, self.activation);
            }
        });
        Ok((CpuStorage::F32(out), (batch, channels, out_h, out_w).into()))
    }
}
