//! What the seam promises, on small tensors whose answers can be worked out by hand.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod kernels;

use candle_core::{DType, Device, Result, Tensor};
use tensor_ops::{
    Activation, Attention, Conv, GroupNorm, attention, conv2d, conv2d_act, geglu, group_norm, layer_norm, linear,
    pixel_shuffle, pixel_unshuffle, quick_gelu, upsample_nearest,
};

fn numbers(shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn close(a: &Tensor, b: &Tensor, limit: f32) {
    assert_eq!(a.dims(), b.dims());
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
    let difference = difference.to_scalar::<f32>().unwrap();
    assert!(difference <= limit, "differs by {difference}");
}

#[test]
fn a_circular_convolution_commutes_with_rolling_the_picture() -> Result<()> {
    let (x, w, b) = (numbers(&[1, 2, 5, 6]), numbers(&[3, 2, 3, 3]), numbers(&[3]));
    let conv = Conv {
        circular: true,
        ..Conv::padded(1)
    };
    let rolled = conv2d(&x.roll(2, 3)?.roll(1, 2)?, &w, Some(&b), &conv)?;
    close(&conv2d(&x, &w, Some(&b), &conv)?.roll(2, 3)?.roll(1, 2)?, &rolled, 1e-5);
    Ok(())
}

#[test]
fn a_convolution_equals_its_sum_over_taps() -> Result<()> {
    let (x, w, b) = (numbers(&[2, 4, 6, 7]), numbers(&[6, 2, 3, 3]), numbers(&[6]));
    let conv = Conv {
        stride: 2,
        padding: 1,
        groups: 2,
        ..Conv::default()
    };
    let got = conv2d_act(&x, &w, Some(&b), &conv, Activation::Relu)?;
    assert_eq!(got.dims(), [2, 6, 3, 4]);
    let (xs, ws, bs) = (
        x.flatten_all()?.to_vec1::<f32>()?,
        w.flatten_all()?.to_vec1::<f32>()?,
        b.to_vec1::<f32>()?,
    );
    for (i, value) in got.flatten_all()?.to_vec1::<f32>()?.into_iter().enumerate() {
        let (n, o, y, xx) = (i / 72, i / 12 % 6, i / 4 % 3, i % 4);
        let mut sum = bs[o];
        for c in 0..2 {
            for ky in 0..3 {
                for kx in 0..3 {
                    let (iy, ix) = ((y * 2 + ky) as isize - 1, (xx * 2 + kx) as isize - 1);
                    if (0..6).contains(&iy) && (0..7).contains(&ix) {
                        let channel = o / 3 * 2 + c;
                        sum += ws[((o * 2 + c) * 3 + ky) * 3 + kx]
                            * xs[((n * 4 + channel) * 6 + iy as usize) * 7 + ix as usize];
                    }
                }
            }
        }
        assert!((sum.max(0.0) - value).abs() < 1e-4, "{i}: {sum} {value}");
    }
    Ok(())
}

#[test]
fn attention_is_the_softmax_weighted_mean_of_values() -> Result<()> {
    let (q, k, v) = (numbers(&[2, 3, 8]), numbers(&[2, 5, 8]), numbers(&[2, 5, 8]));
    let mask = Tensor::from_vec(vec![0f32, 0., 0., 0., f32::NEG_INFINITY], (1, 5), &Device::Cpu)?;
    let mask = mask.broadcast_as((3, 5))?.contiguous()?;
    let how = Attention {
        mask: Some(&mask),
        ..Attention::new(2)
    };
    let masked = attention(&q, &k, &v, &how)?;
    let shorter = attention(&q, &k.narrow(1, 0, 4)?, &v.narrow(1, 0, 4)?, &Attention::new(2))?;
    close(&masked, &shorter, 1e-6);
    let same = v.narrow(1, 0, 1)?.broadcast_as((2, 5, 8))?.contiguous()?;
    let flat = attention(&q, &k, &same, &Attention::new(4))?;
    close(&flat, &same.narrow(1, 0, 3)?.contiguous()?, 1e-5);
    Ok(())
}

#[test]
fn norms_give_mean_zero_and_variance_one() -> Result<()> {
    let x = numbers(&[2, 6, 4, 5]);
    let (one, zero) = (
        Tensor::ones(6, DType::F32, &Device::Cpu)?,
        Tensor::zeros(6, DType::F32, &Device::Cpu)?,
    );
    let norm = GroupNorm {
        groups: 3,
        eps: 0.0,
        silu: false,
    };
    let y = group_norm(&x, &one, &zero, &norm)?.reshape((6, 40))?;
    close(&y.mean(1)?, &Tensor::zeros(6, DType::F32, &Device::Cpu)?, 1e-5);
    close(&y.sqr()?.mean(1)?, &one, 1e-4);
    let y = layer_norm(&x.reshape((40, 6))?, &one, &zero, 0.0)?;
    close(&y.sqr()?.mean(1)?, &Tensor::ones(40, DType::F32, &Device::Cpu)?, 1e-4);
    Ok(())
}

#[test]
fn gelu_is_the_one_with_the_error_function() -> Result<()> {
    let x = Tensor::from_vec(vec![1f32, 2.0, 1.0, -1.0], (1, 4), &Device::Cpu)?;
    // 1 * gelu(1) and 2 * gelu(-1); the tanh approximation gives 0.84119 for gelu(1).
    let want = Tensor::from_vec(vec![0.841_344_8_f32, -0.317_310_5], (1, 2), &Device::Cpu)?;
    close(&geglu(&x)?, &want, 1e-6);
    let want = Tensor::from_vec(vec![0.845_795_8_f32], 1, &Device::Cpu)?;
    close(
        &quick_gelu(&Tensor::from_vec(vec![1f32], 1, &Device::Cpu)?)?,
        &want,
        1e-5,
    );
    Ok(())
}

#[test]
fn shuffles_undo_each_other_and_nearest_repeats_pixels() -> Result<()> {
    let x = numbers(&[1, 8, 3, 2]);
    let big = pixel_shuffle(&x, 2)?;
    assert_eq!(big.dims(), [1, 2, 6, 4]);
    close(&pixel_unshuffle(&big, 2)?, &x, 0.0);
    let up = upsample_nearest(&x, 5, 4)?;
    assert_eq!(up.dims(), [1, 8, 5, 4]);
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let x = numbers(&[1, 3, 4, 4]);
    assert!(conv2d(&x, &numbers(&[2, 4, 3, 3]), None, &Conv::padded(1)).is_err());
    assert!(conv2d(&x, &numbers(&[2, 3, 9, 9]), None, &Conv::padded(1)).is_err());
    assert!(linear(&x, &numbers(&[2, 3]), None).is_err());
    assert!(geglu(&numbers(&[1, 3])).is_err());
    let q = numbers(&[1, 2, 6]);
    assert!(attention(&q, &q, &q, &Attention::new(4)).is_err());
    assert!(attention(&q, &q, &q, &Attention::new(0)).is_err());
}

#[test]
fn half_precision_keeps_its_dtype_and_stays_close() -> Result<()> {
    let (x, w) = (numbers(&[1, 4, 6, 6]), numbers(&[4, 4, 3, 3]));
    let full = conv2d(&x, &w, None, &Conv::padded(1))?;
    for dtype in [DType::F16, DType::BF16] {
        let half = conv2d(&x.to_dtype(dtype)?, &w.to_dtype(dtype)?, None, &Conv::padded(1))?;
        assert_eq!(half.dtype(), dtype);
        close(&half.to_dtype(DType::F32)?, &full, 0.5);
    }
    Ok(())
}
