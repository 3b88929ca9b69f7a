//! `torch.randn` on the CPU, to the bit.
//!
//! Facts measured on torch 2.8.0 with AVX2: a Mersenne Twister seeded with the low 32 bits; from 16 values on, a
//! Box-Muller transform whose logarithm, sine and cosine are the single-precision Cephes polynomials with fused
//! multiply-adds in fixed places; below 16 values a double-precision transform that keeps its second value.

/// A generator in the state `torch.Generator().manual_seed(seed)` gives.
#[derive(Clone)]
pub struct TorchCpu {
    state: [u32; N],
    next: usize,
    kept: Option<f64>,
}

const N: usize = 624;
const M: usize = 397;

impl TorchCpu {
    /// Only the low 32 bits of `seed` count, as in torch.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; N];
        state[0] = (seed & 0xffff_ffff) as u32;
        for i in 1..N {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(before ^ (before >> 30))
                .wrapping_add(i as u32);
        }
        Self {
            state,
            next: N,
            kept: None,
        }
    }

    /// The next 32 bits of the twister.
    pub fn next_u32(&mut self) -> u32 {
        if self.next >= N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `n` normal values, as one call of `torch.randn` with `n` elements.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < 16 {
            return (0..n).map(|_| self.scalar() as f32).collect();
        }
        let mut values: Vec<f32> = (0..n).map(|_| self.uniform()).collect();
        for block in values.chunks_exact_mut(16) {
            box_muller(block);
        }
        if !n.is_multiple_of(16) {
            let tail = &mut values[n - 16..];
            for value in tail.iter_mut() {
                *value = (self.next_u32() & 0x00ff_ffff) as f32 * TWO_POW_MINUS_24;
            }
            box_muller(tail);
        }
        values
    }

    fn uniform(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 * TWO_POW_MINUS_24
    }

    fn uniform_double(&mut self) -> f64 {
        let high = u64::from(self.next_u32());
        let low = u64::from(self.next_u32());
        (((high << 32) | low) & ((1 << 53) - 1)) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    fn scalar(&mut self) -> f64 {
        if let Some(kept) = self.kept.take() {
            return kept;
        }
        let angle = 2.0 * std::f64::consts::PI * self.uniform_double();
        let radius = (-2.0 * (-self.uniform_double()).ln_1p()).sqrt();
        self.kept = Some(radius * angle.sin());
        radius * angle.cos()
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

const TWO_POW_MINUS_24: f32 = 1.0 / 16_777_216.0;

/// Sixteen uniforms to sixteen normals, in place: radii from the first eight, angles from the last.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(8);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * ln(1.0 - *a)).sqrt();
        let (sin, cos) = sin_cos(std::f32::consts::TAU * *b);
        *a = radius * cos;
        *b = radius * sin;
    }
}

/// Cephes `logf` for positive normal numbers, as avx_mathfun evaluates it with fused multiply-adds.
#[expect(clippy::excessive_precision, reason = "the published coefficients, digit for digit")]
fn ln(x: f32) -> f32 {
    const P: [f32; 9] = [
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ];
    let bits = x.max(f32::MIN_POSITIVE).to_bits();
    let mut exponent = ((bits >> 23) as i32 - 0x7f) as f32 + 1.0;
    let mut x = f32::from_bits((bits & 0x007f_ffff) | 0x3f00_0000);
    if x < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        x = (x - 1.0) + x;
    } else {
        x -= 1.0;
    }
    let z = x * x;
    let mut y = P[0];
    for p in &P[1..] {
        y = y.mul_add(x, *p);
    }
    y *= x;
    y = y.mul_add(z, exponent * -2.12194440e-4);
    y = (-z).mul_add(0.5, y);
    exponent.mul_add(0.693359375, x + y)
}

/// Cephes `sinf` and `cosf` for non-negative arguments, as avx_mathfun evaluates them with fused multiply-adds.
#[expect(clippy::excessive_precision, reason = "the published coefficients, digit for digit")]
fn sin_cos(x: f32) -> (f32, f32) {
    let j = ((x * 1.27323954473516) as i32 + 1) & !1;
    let turns = j as f32;
    let mut x = turns.mul_add(-0.78515625, x);
    x = turns.mul_add(-2.4187564849853515625e-4, x);
    x = turns.mul_add(-3.77489497744594108e-8, x);
    let z = x * x;
    let c = 2.443315711809948e-5_f32
        .mul_add(z, -1.388731625493765e-3)
        .mul_add(z, 4.166664568298827e-2);
    let c = (c * z).mul_add(z, -(z * 0.5)) + 1.0;
    let s = (-1.9515295891e-4_f32)
        .mul_add(z, 8.3321608736e-3)
        .mul_add(z, -1.6666654611e-1);
    let s = (s * z).mul_add(x, x);
    let (sin, cos) = if j & 2 == 0 { (s, c) } else { (c, s) };
    let sin = if j & 4 != 0 { -sin } else { sin };
    let cos = if (j - 2) & 4 == 0 { -cos } else { cos };
    (sin, cos)
}
