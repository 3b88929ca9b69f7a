//! Loops over slices that the compiler turns into vector code: AVX-512, or AVX2 and FMA, where the processor has them, plain Rust elsewhere.

use crate::Activation;

/// Defines `name` as the loop `body::<FMA>`, compiled for each kind of vector and chosen when it runs.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),*) $(-> $result:ty)? = $body:ident) => {
        $(#[$doc])*
        $vis fn $name($($arg: $kind),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
                fn widest($($arg: $kind),*) $(-> $result)? {
                    $body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $kind),*) $(-> $result)? {
                    $body::<true>($($arg),*)
                }
                match $crate::cpu::lanes::level() {
                    // SAFETY: the processor has just said that it has these features.
                    2 => return unsafe { widest($($arg),*) },
                    // SAFETY: as above.
                    1 => return unsafe { wide($($arg),*) },
                    _ => {}
                }
            }
            $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}

/// `a * b + c`, in one rounding where that is one instruction.
#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Horner's scheme, highest power first.
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[0];
    for c in &coefficients[1..] {
        sum = fma::<FMA>(sum, x, *c);
    }
    sum
}

/// `e^x` to about 2e-7 relative (the scheme of Cephes' expf); 0 below -87.3, held at `e^88` above 88; NaN stays NaN.
#[inline(always)]
fn exp<const FMA: bool>(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer that then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let small = x < -87.3;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if small { -87.3 } else { x };
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = polynomial::<FMA, 6>(
        r,
        [
            1.987_569_1e-4,
            1.398_2e-3,
            8.333_452e-3,
            4.166_579_6e-2,
            1.666_666_5e-1,
            0.5,
        ],
    );
    let y = fma::<FMA>(r * r, p, r) + 1.0;
    let exponent = (shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23;
    let y = y * f32::from_bits(exponent);
    if small { 0.0 } else { y }
}

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-x))
}

/// `x · (1 + erf(x / √2)) / 2`, relatively accurate in the tail too: there it is `x · erfc(|x| / √2) / 2`
/// (the polynomials of Cephes' ndtrf, S. Moshier).
#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> f32 {
    let z = x * std::f32::consts::FRAC_1_SQRT_2;
    let a = z.abs();
    let erf = z * polynomial::<FMA, 7>(
        z * z,
        [
            7.853_861_4e-5,
            -8.010_194e-4,
            5.188_327_7e-3,
            -2.685_381_2e-2,
            1.128_358_5e-1,
            -3.761_262_6e-1,
            std::f32::consts::FRAC_2_SQRT_PI,
        ],
    );
    let a_1 = if a > 1.0 { a } else { 1.0 };
    let q = 1.0 / a_1;
    let t = q * q;
    let near = polynomial::<FMA, 9>(
        t,
        [
            2.326_82e-2,
            -1.387_039_4e-1,
            3.687_424_7e-1,
            -5.824_733e-1,
            6.210_004_6e-1,
            -4.944_515_3e-1,
            3.404_88e-1,
            -2.741_127e-1,
            5.638_259_4e-1,
        ],
    );
    let far = polynomial::<FMA, 8>(
        t,
        [
            -10.477_664,
            12.977_2,
            -7.495_518_7,
            2.921_019,
            -1.015_265_3,
            4.218_463_4e-1,
            -2.820_767_4e-1,
            5.641_895e-1,
        ],
    );
    // x² / 2 in two parts, since rounding it would cost the tail three digits.
    let square = 0.5 * f64::from(x) * f64::from(x);
    let high = square as f32;
    let low = (square - f64::from(high)) as f32;
    let decay = exp::<FMA>(-high);
    let decay = fma::<FMA>(-low, decay, decay);
    let erfc = decay * q * if a < 2.0 { near } else { far };
    let outside = if x < 0.0 { erfc } else { 2.0 - erfc };
    0.5 * x * if a < 1.0 { 1.0 + erf } else { outside }
}

#[inline(always)]
fn each(x: &mut [f32], f: impl Fn(f32) -> f32) {
    for v in x {
        *v = f(*v);
    }
}

/// NaN stays NaN; so below.
#[inline(always)]
fn relu(v: f32) -> f32 {
    if v < 0.0 { 0.0 } else { v }
}

#[inline(always)]
fn leaky(v: f32, slope: f32) -> f32 {
    if v < 0.0 { v * slope } else { v }
}

#[inline(always)]
fn activate_loop<const FMA: bool>(x: &mut [f32], activation: Activation) {
    match activation {
        Activation::None => {}
        Activation::Silu => each(x, silu::<FMA>),
        Activation::GeluErf => each(x, gelu::<FMA>),
        Activation::QuickGelu => each(x, |v| v * sigmoid::<FMA>(1.702 * v)),
        Activation::Relu => each(x, relu),
        Activation::LeakyRelu(slope) => {
            let slope = slope as f32;
            each(x, |v| leaky(v, slope));
        }
        Activation::Sigmoid => each(x, sigmoid::<FMA>),
        Activation::Tanh => each(x, f32::tanh),
    }
}
vectorised! {
    /// Applies the activation in place.
    pub(super) fn activate(x: &mut [f32], activation: Activation) = activate_loop
}

#[inline(always)]
fn geglu_loop<const FMA: bool>(x: &[f32], out: &mut [f32]) {
    let (value, gate) = x.split_at(out.len());
    for ((out, value), gate) in out.iter_mut().zip(value).zip(gate) {
        *out = value * gelu::<FMA>(*gate);
    }
}
vectorised! {
    /// The first half of `x` times the gelu of its second.
    pub(super) fn geglu_row(x: &[f32], out: &mut [f32]) = geglu_loop
}

/// Sums in 16 lanes of at most 256 numbers each, the lanes' sums in f64.
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0f64;
    for block in x.chunks(4096) {
        let mut lanes = [0f32; 16];
        let parts = block.chunks_exact(16);
        total += parts.remainder().iter().map(|v| f64::from(f(*v))).sum::<f64>();
        for part in parts {
            for (lane, v) in lanes.iter_mut().zip(part) {
                *lane += f(*v);
            }
        }
        total += lanes.iter().map(|v| f64::from(*v)).sum::<f64>();
    }
    total
}

#[inline(always)]
fn moments_loop<const FMA: bool>(x: &[f32]) -> (f64, f64) {
    let n = x.len().max(1) as f64;
    let mean = sum_of(x, |v| v) / n;
    let centre = mean as f32;
    // Two passes: the mean of squares minus the squared mean loses all digits of a narrow group far from 0.
    let variance = sum_of(x, |v| (v - centre) * (v - centre)) / n;
    (mean, variance)
}
vectorised! {
    /// Mean and variance.
    pub(super) fn moments(x: &[f32]) -> (f64, f64) = moments_loop
}

#[inline(always)]
fn affine_loop<const FMA: bool>(x: &[f32], out: &mut [f32], centre: f32, scale: f32, shift: f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = fma::<FMA>(*x - centre, scale, shift);
    }
}
vectorised! {
    /// `(x - centre) * scale + shift`.
    pub(super) fn affine(x: &[f32], out: &mut [f32], centre: f32, scale: f32, shift: f32) = affine_loop
}

#[inline(always)]
fn norm_row_loop<const FMA: bool>(x: &[f32], out: &mut [f32], weight: &[f32], bias: &[f32], eps: f64) {
    let (mean, variance) = moments_loop::<FMA>(x);
    let (mean, scale) = (mean as f32, (1.0 / (variance + eps).sqrt()) as f32);
    for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = fma::<FMA>((x - mean) * scale, *weight, *bias);
    }
}
vectorised! {
    /// One row of a layer norm.
    pub(super) fn norm_row(x: &[f32], out: &mut [f32], weight: &[f32], bias: &[f32], eps: f64) = norm_row_loop
}

#[inline(always)]
fn add_and_activate_loop<const FMA: bool>(x: &mut [f32], bias: f32, activation: Activation) {
    match activation {
        Activation::None => each(x, |v| v + bias),
        Activation::Relu => each(x, |v| relu(v + bias)),
        Activation::LeakyRelu(slope) => {
            let slope = slope as f32;
            each(x, |v| leaky(v + bias, slope));
        }
        _ => {
            each(x, |v| v + bias);
            activate_loop::<FMA>(x, activation);
        }
    }
}
vectorised! {
    /// Adds one number to all and applies the activation to the sums.
    pub(super) fn add_and_activate(x: &mut [f32], bias: f32, activation: Activation) = add_and_activate_loop
}

#[inline(always)]
fn scale_onto_loop<const FMA: bool>(x: &mut [f32], factor: f32, onto: &[f32], then_relu: bool) {
    for (x, onto) in x.iter_mut().zip(onto) {
        let sum = fma::<FMA>(*x, factor, *onto);
        *x = if then_relu { relu(sum) } else { sum };
    }
}
vectorised! {
    /// `x * factor + onto`, element by element, and what is negative of it 0 if `then_relu`.
    pub(super) fn scale_onto(x: &mut [f32], factor: f32, onto: &[f32], then_relu: bool) = scale_onto_loop
}

#[inline(always)]
fn greatest_loop<const FMA: bool>(x: &mut [f32], other: &[f32]) {
    for (x, v) in x.iter_mut().zip(other) {
        *x = if *v > *x { *v } else { *x };
    }
}
vectorised! {
    /// The greater of both, element by element.
    pub(super) fn greatest(x: &mut [f32], other: &[f32]) = greatest_loop
}

#[inline(always)]
fn add_row_loop<const FMA: bool>(x: &mut [f32], bias: &[f32]) {
    for (x, bias) in x.iter_mut().zip(bias) {
        *x += bias;
    }
}
vectorised! {
    /// Adds element by element.
    pub(super) fn add_row(x: &mut [f32], bias: &[f32]) = add_row_loop
}

/// One block of scores `(keys, room)` of a softmax over all keys, one query to a column: `state` holds maxima, sums and
/// factors, `room` of each.
#[inline(always)]
fn softmax_block_loop<const FMA: bool>(scores: &mut [f32], room: usize, state: &mut [f32]) {
    let (tops, rest) = state.split_at_mut(room);
    let (sums, factors) = rest.split_at_mut(room);
    if room.is_multiple_of(16) {
        softmax_columns::<FMA, 16>(scores, room, (tops, sums, factors));
    } else {
        softmax_columns::<FMA, 4>(scores, room, (tops, sums, factors));
    }
}
vectorised! {
    /// Replaces scores by their exponentials over that of the greatest score so far of their column, adds them to the
    /// column's sum, and gives the factor that brings what was made before to the new greatest.
    pub(super) fn softmax_block(scores: &mut [f32], room: usize, state: &mut [f32]) = softmax_block_loop
}

#[inline(always)]
fn softmax_columns<const FMA: bool, const LANES: usize>(
    scores: &mut [f32],
    room: usize,
    (tops, sums, factors): (&mut [f32], &mut [f32], &mut [f32]),
) {
    for at in (0..room).step_by(LANES) {
        let mut top = [0f32; LANES];
        top.copy_from_slice(&tops[at..at + LANES]);
        let old = top;
        for row in scores.chunks_exact(room) {
            for (top, v) in top.iter_mut().zip(&row[at..at + LANES]) {
                *top = if *v > *top { *v } else { *top };
            }
        }
        let mut sum = [0f32; LANES];
        for row in scores.chunks_exact_mut(room) {
            for ((v, top), sum) in row[at..at + LANES].iter_mut().zip(&top).zip(&mut sum) {
                *v = exp::<FMA>(*v - *top);
                *sum += *v;
            }
        }
        for lane in 0..LANES {
            let factor = exp::<FMA>(old[lane] - top[lane]);
            factors[at + lane] = factor;
            sums[at + lane] = fma::<FMA>(sums[at + lane], factor, sum[lane]);
            tops[at + lane] = top[lane];
        }
    }
}

#[inline(always)]
fn scale_rows_loop<const FMA: bool>(x: &mut [f32], factors: &[f32]) {
    for row in x.chunks_exact_mut(factors.len()) {
        for (v, factor) in row.iter_mut().zip(factors) {
            *v *= factor;
        }
    }
}
vectorised! {
    /// Multiplies each row by the factors, element by element.
    pub(super) fn scale_rows(x: &mut [f32], factors: &[f32]) = scale_rows_loop
}
