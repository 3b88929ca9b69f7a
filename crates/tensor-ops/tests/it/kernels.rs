//! The f32 kernels against candle's own operations, which f64 tensors still take.
//!
//! Tolerance: 2e-5 of the greatest magnitude of the answer plus 2e-5, unless a test says otherwise (Winograd: 1e-4).

use candle_core::{DType, Device, Result, Tensor};
use proptest::prelude::*;
use tensor_ops::{
    Activation, After, Attention, Conv, GroupNorm, attention, conv2d_act, conv2d_joined, geglu, gelu_erf, group_norm,
    layer_norm, linear_act, max_pool, pixel_shuffle, pixel_shuffle_onto, upsample_nearest,
};

/// Numbers in -1..1 that look random and depend on the shape and `seed` alone.
fn noise(shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..n).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The same numbers, laid out with the last two dimensions swapped in memory when `strided`.
fn laid_out(x: &Tensor, strided: bool) -> Tensor {
    if !strided || x.rank() < 2 {
        return x.clone();
    }
    let n = x.rank();
    let swapped = x.transpose(n - 2, n - 1).unwrap().contiguous().unwrap();
    swapped.transpose(n - 2, n - 1).unwrap()
}

fn wide(x: &Tensor) -> Tensor {
    x.to_dtype(DType::F64).unwrap()
}

fn greatest(x: &Tensor) -> f64 {
    let x = x.abs().unwrap().flatten_all().unwrap();
    x.max(0).unwrap().to_scalar::<f64>().unwrap()
}

/// `got` (f32) is `want` (f64) to `limit`, absolutely and relative to the greatest.
fn agree(got: &Tensor, want: &Tensor, limit: f64) {
    assert_eq!(got.dims(), want.dims());
    assert_eq!(got.dtype(), DType::F32);
    let difference = greatest(&(wide(got) - want).unwrap());
    let bound = limit * (1.0 + greatest(want));
    assert!(difference <= bound, "differs by {difference}, allowed {bound}");
}

fn check_conv(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, conv: &Conv, (act, limit): (Activation, f64)) {
    let want = conv2d_act(&wide(x), &wide(weight), bias.map(wide).as_ref(), conv, act);
    let got = conv2d_act(x, weight, bias, conv, act);
    match (got, want) {
        (Ok(got), Ok(want)) => agree(&got, &want, limit),
        (got, want) => assert!(got.is_err() && want.is_err(), "only one refuses: {got:?} {want:?}"),
    }
}

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![
        Just(Activation::None),
        Just(Activation::Silu),
        Just(Activation::GeluErf),
        Just(Activation::QuickGelu),
        Just(Activation::Relu),
        Just(Activation::LeakyRelu(0.2)),
        Just(Activation::Sigmoid),
        Just(Activation::Tanh),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_convolution_is_candles_for_any_geometry(
        (batch, height, width) in (1usize..3, 1usize..23, 1usize..31),
        (groups, c_in, c_out) in (1usize..4, 1usize..5, 1usize..6),
        (kernel_h, kernel_w) in (1usize..5, 1usize..5),
        (stride, padding, dilation) in (1usize..4, 0usize..4, 1usize..3),
        (circular, biased, strided, seed) in any::<(bool, bool, bool, u64)>(),
        act in activations(),
    ) {
        let x = laid_out(&noise(&[batch, c_in * groups, height, width], seed), strided);
        let weight = laid_out(&noise(&[c_out * groups, c_in, kernel_h, kernel_w], !seed), strided);
        let bias = biased.then(|| noise(&[c_out * groups], seed ^ 5));
        let conv = Conv { stride, padding, dilation, groups, circular };
        check_conv(&x, &weight, bias.as_ref(), &conv, (act, 2e-5));
    }

    #[test]
    fn pictures_are_joined_scaled_and_added_as_by_candle(
        (batch, height, width) in (1usize..3, 1usize..23, 1usize..71),
        channels in prop::collection::vec(1usize..20, 1..4),
        (c_out, kernel, circular, seed) in (1usize..40, prop_oneof![Just(1usize), Just(3)], any::<bool>(), any::<u64>()),
        (one_slope, has_slopes, has_onto) in any::<(bool, bool, bool)>(),
        last in activations(),
    ) {
        let shapes = channels.iter().map(|c| [batch, *c, height, width]);
        let xs: Vec<Tensor> = (seed..).zip(shapes).map(|(seed, shape)| noise(&shape, seed)).collect();
        let weight = noise(&[c_out, channels.iter().sum(), kernel, kernel], !seed);
        let bias = noise(&[c_out], seed ^ 5);
        let slopes = noise(&[if one_slope { 1 } else { c_out }], seed ^ 9);
        let onto = noise(&[batch, c_out, height, width], seed ^ 13);
        let conv = Conv { circular, ..Conv::padded(kernel / 2) };
        let run = |change: fn(&Tensor) -> Tensor| {
            let xs: Vec<Tensor> = xs.iter().map(change).collect();
            let (slopes, onto) = (change(&slopes), change(&onto));
            let after = After {
                activation: Activation::Relu,
                slopes: has_slopes.then_some(&slopes),
                scaled_onto: has_onto.then_some((0.3, &onto)),
                last,
            };
            conv2d_joined(&xs.iter().collect::<Vec<_>>(), &change(&weight), Some(&change(&bias)), &conv, &after)
        };
        agree(&run(Tensor::clone).unwrap(), &run(wide).unwrap(), 1e-4);
    }

    #[test]
    fn a_convolution_of_each_channel_by_itself_is_candles(
        (batch, channels, height, width) in (1usize..3, 1usize..9, 1usize..23, 1usize..31),
        (kernel_h, kernel_w) in (1usize..5, 1usize..5),
        (stride, padding, dilation) in (1usize..4, 0usize..6, 1usize..4),
        (circular, biased, strided, seed) in any::<(bool, bool, bool, u64)>(),
        act in activations(),
    ) {
        let x = laid_out(&noise(&[batch, channels, height, width], seed), strided);
        let weight = laid_out(&noise(&[channels, 1, kernel_h, kernel_w], !seed), strided);
        let bias = biased.then(|| noise(&[channels], seed ^ 5));
        let conv = Conv { stride, padding, dilation, groups: channels, circular };
        check_conv(&x, &weight, bias.as_ref(), &conv, (act, 2e-5));
    }

    #[test]
    fn the_greatest_of_windows_are_candles(
        (batch, channels, height, width) in (1usize..3, 1usize..9, 1usize..23, 1usize..71),
        (kernel, stride, padding) in (1usize..5, 1usize..5, 0usize..4),
        (ceil, strided, seed) in any::<(bool, bool, u64)>(),
    ) {
        let x = laid_out(&noise(&[batch, channels, height, width], seed), strided);
        let how = [kernel, stride, padding];
        match (max_pool(&x, how, ceil), max_pool(&wide(&x), how, ceil)) {
            (Ok(got), Ok(want)) => agree(&got, &want, 0.0),
            (got, want) => assert!(got.is_err() && want.is_err(), "only one refuses: {got:?} {want:?}"),
        }
    }

    #[test]
    fn attention_is_candles_for_any_shape_and_mask(
        (batch, n_query, n_key) in (1usize..3, 1usize..150, 1usize..40),
        (heads, size, v_size) in (1usize..4, 1usize..20, 1usize..20),
        (mask_kind, scale) in (0usize..5, prop_oneof![Just(None), Just(Some(0.3))]),
        (strided, seed) in any::<(bool, u64)>(),
    ) {
        let q = laid_out(&noise(&[batch, n_query, heads * size], seed), strided);
        let k = laid_out(&noise(&[batch, n_key, heads * size], !seed), strided);
        let v = laid_out(&noise(&[batch, n_key, heads * v_size], seed ^ 9), strided);
        let mask = match mask_kind {
            0 => None,
            1 => Some(noise(&[n_query, n_key], seed ^ 1)),
            2 => Some(noise(&[batch, 1, 1, n_key], seed ^ 1)),
            3 => Some(noise(&[1, heads, n_query, 1], seed ^ 1)),
            _ => Some(laid_out(&noise(&[batch, heads, n_query, n_key], seed ^ 1), true)),
        };
        let how = Attention { heads, scale, mask: mask.as_ref() };
        let got = attention(&q, &k, &v, &how).unwrap();
        agree(&got, &attention(&wide(&q), &wide(&k), &wide(&v), &how).unwrap(), 2e-5);
    }

    #[test]
    fn norms_are_candles_far_from_zero_too(
        (batch, groups, size, height, width) in (1usize..3, 1usize..5, 1usize..5, 1usize..9, 2usize..40),
        (offset, silu, strided, seed) in (-20.0f64..20.0, any::<bool>(), any::<bool>(), any::<u64>()),
    ) {
        let c = groups * size;
        let x = (noise(&[batch, c, height, width], seed) + offset).unwrap();
        let x = laid_out(&x, strided);
        let (weight, bias) = (noise(&[c], !seed), noise(&[c], seed ^ 3));
        let norm = GroupNorm { groups, eps: 1e-3, silu };
        let want = group_norm(&wide(&x), &wide(&weight), &wide(&bias), &norm).unwrap();
        agree(&group_norm(&x, &weight, &bias, &norm).unwrap(), &want, 2e-4);
        let (weight, bias) = (noise(&[width], !seed), noise(&[width], seed ^ 3));
        let want = layer_norm(&wide(&x), &wide(&weight), &wide(&bias), 1e-3).unwrap();
        agree(&layer_norm(&x, &weight, &bias, 1e-3).unwrap(), &want, 2e-4);
    }

    #[test]
    fn a_linear_layer_is_candles_for_few_rows_and_many(
        (batch, rows, n_in, n_out) in (1usize..3, 1usize..300, 1usize..40, 1usize..70),
        (biased, strided, seed) in any::<(bool, bool, u64)>(),
        act in activations(),
    ) {
        let x = laid_out(&noise(&[batch, rows, n_in], seed), strided);
        let weight = laid_out(&noise(&[n_out, n_in], !seed), strided);
        let bias = biased.then(|| noise(&[n_out], seed ^ 5));
        let want = linear_act(&wide(&x), &wide(&weight), bias.as_ref().map(wide).as_ref(), act).unwrap();
        agree(&linear_act(&x, &weight, bias.as_ref(), act).unwrap(), &want, 2e-5);
    }

    #[test]
    fn pointwise_and_nearest_are_candles(
        (channels, height, width, up, across) in (1usize..4, 1usize..12, 1usize..40, 1usize..30, 1usize..90),
        (strided, seed) in any::<(bool, u64)>(),
        act in activations(),
    ) {
        let x = laid_out(&noise(&[2, channels, height, 2 * width], seed), strided);
        agree(&act.apply(&x).unwrap(), &act.apply(&wide(&x)).unwrap(), 2e-6);
        agree(&geglu(&x).unwrap(), &geglu(&wide(&x)).unwrap(), 2e-6);
        agree(&upsample_nearest(&x, up, across).unwrap(), &upsample_nearest(&wide(&x), up, across).unwrap(), 0.0);
    }
}

#[test]
fn windows_are_counted_as_torch_counts_them() {
    // torch.nn.functional.max_pool2d of a line, kernel 3, stride 2: padding and ceil_mode as given.
    let x = Tensor::new(&[5f32, 1.0, 2.0, 3.0, 4.0, 0.0], &Device::Cpu).unwrap();
    let x = x.reshape((1, 1, 1, 6)).unwrap().repeat((1, 1, 3, 1)).unwrap();
    for (padding, ceil, want) in [
        (0, false, vec![5f32, 4.0]),
        (0, true, vec![5.0, 4.0, 4.0]),
        (1, false, vec![5.0, 3.0, 4.0]),
        (1, true, vec![5.0, 3.0, 4.0, 0.0]),
    ] {
        let got = max_pool(&x, [3, 2, padding], ceil).unwrap();
        let row = got.get(0).unwrap().get(0).unwrap().get(0).unwrap();
        assert_eq!(row.to_vec1::<f32>().unwrap(), want, "padding {padding}, ceil {ceil}");
    }
}

#[test]
fn winograd_agrees_for_sizes_that_tiles_do_not_divide() {
    for (batch, height, width, padding, circular) in [
        (1, 47, 46, 1, false),
        (2, 33, 38, 0, false),
        (1, 49, 50, 2, false),
        (1, 48, 45, 1, true),
    ] {
        let (x, weight) = (noise(&[batch, 17, height, width], 1), noise(&[19, 17, 3, 3], 2));
        let conv = Conv {
            circular,
            ..Conv::padded(padding)
        };
        check_conv(&x, &weight, Some(&noise(&[19], 3)), &conv, (Activation::Silu, 1e-4));
        check_conv(&laid_out(&x, true), &weight, None, &conv, (Activation::None, 1e-4));
    }
}

/// Tiles side by side in whole vectors and not; kernels that are kept whole and that are not, in one pass of channels and two.
#[test]
fn winograd_agrees_for_many_tiles_whatever_the_channels() {
    for (c_in, c_out, height, width) in [
        (20, 12, 70, 192),
        (20, 12, 61, 201),
        (145, 140, 20, 384),
        (145, 140, 21, 203),
        (270, 80, 24, 192),
    ] {
        let (x, weight) = (noise(&[1, c_in, height, width], 1), noise(&[c_out, c_in, 3, 3], 2));
        let bias = noise(&[c_out], 3);
        check_conv(&x, &weight, Some(&bias), &Conv::padded(1), (Activation::Relu, 3e-4));
    }
}

#[test]
fn pixels_from_channels_lie_where_candles_own_operations_put_them() {
    for (factor, batch, height, width) in [(1, 1, 3, 5), (2, 2, 7, 9), (3, 1, 4, 5), (4, 2, 33, 40), (5, 1, 2, 3)] {
        let (x, low) = (
            noise(&[batch, 2 * factor * factor, height, width], 1),
            noise(&[batch, 2, height, width], 2),
        );
        agree(
            &pixel_shuffle(&x, factor).unwrap(),
            &pixel_shuffle(&wide(&x), factor).unwrap(),
            0.0,
        );
        let onto = pixel_shuffle_onto(&laid_out(&x, true), factor, &low).unwrap();
        agree(
            &onto,
            &pixel_shuffle_onto(&wide(&x), factor, &wide(&low)).unwrap(),
            1e-6,
        );
    }
    let (x, low) = (noise(&[1, 8, 4, 4], 1), noise(&[1, 2, 4, 4], 2));
    for (factor, onto) in [(0, &low), (3, &low), (2, &x), (usize::MAX, &low)] {
        assert!(
            pixel_shuffle_onto(&x, factor, onto).is_err(),
            "by {factor} onto {:?}",
            onto.shape()
        );
    }
}

#[test]
fn gelu_keeps_six_digits_in_its_tail() -> Result<()> {
    let values: Vec<f32> = (-3000..=3000).map(|i| i as f32 * 0.004).collect();
    let got = gelu_erf(&Tensor::new(values.as_slice(), &Device::Cpu)?)?.to_vec1::<f32>()?;
    for (x, got) in values.iter().zip(got) {
        let x = f64::from(*x);
        // Below -5 the error function in f64 has too few digits left of 1 + erf.
        let want = 0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x / std::f64::consts::SQRT_2));
        let limit = if x < -5.0 { 1e-6 } else { 1e-6 * want.abs() };
        assert!((f64::from(got) - want).abs() <= limit, "gelu({x}) is {got}, not {want}");
    }
    Ok(())
}

#[test]
fn not_a_number_stays_visible() -> Result<()> {
    let x = Tensor::new(&[[f32::NAN, 1.0, 2.0, 3.0]], &Device::Cpu)?;
    for act in [
        Activation::Silu,
        Activation::GeluErf,
        Activation::Relu,
        Activation::LeakyRelu(0.1),
    ] {
        assert!(act.apply(&x)?.flatten_all()?.to_vec1::<f32>()?[0].is_nan(), "{act:?}");
    }
    Ok(())
}

#[test]
fn numbers_beyond_any_picture_are_refused() {
    let (x, weight) = (noise(&[1, 1, 4, 4], 1), noise(&[1, 1, 3, 3], 2));
    for (padding, dilation) in [(usize::MAX, 1), (usize::MAX / 2, 1), (1 << 40, 1), (1, usize::MAX)] {
        let conv = Conv {
            padding,
            dilation,
            ..Conv::default()
        };
        assert!(conv2d_act(&x, &weight, None, &conv, Activation::None).is_err());
    }
    let short = noise(&[3], 1);
    assert!(linear_act(&x, &noise(&[5, 4], 1), Some(&short), Activation::None).is_err());
    assert!(layer_norm(&x, &short, &short, 1e-5).is_err());
}
