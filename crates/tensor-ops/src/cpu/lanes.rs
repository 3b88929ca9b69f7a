//! Vectors of f32 under one trait: AVX-512, AVX2 with FMA, NEON and plain Rust, chosen when the program runs.

use super::matrix::Block;

/// One register of numbers. Nothing here checks anything: bounds are the business of [`super::matrix`] and of the transforms.
///
/// # Safety
/// Every function but on [`Plain`] may only run where the processor has the vectors; [`dispatched`] sees to it. Pointers
/// must be good for `COUNT` numbers; they need no alignment.
pub(super) trait Lanes: Copy {
    /// Numbers in a vector.
    const COUNT: usize;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + sum`.
    unsafe fn fma(self, factor: Self, sum: Self) -> Self;
    /// Number `4 i + j` of the `4 COUNT` numbers at `from` as number `i` of vector `j`.
    #[inline(always)]
    unsafe fn quads(from: *const f32) -> [Self; 4] {
        let mut rows = [[0f32; 16]; 4];
        // SAFETY: the pointer is good for so many numbers, and no vector is longer than a row.
        unsafe {
            for i in 0..Self::COUNT {
                for (j, row) in rows.iter_mut().enumerate() {
                    row[i] = *from.add(4 * i + j);
                }
            }
            rows.map(|row| Self::load(row.as_ptr()))
        }
    }
    /// Undoes [`Self::quads`]: number `i` of vector `j` to `to[4 i + j]`, `4 COUNT` numbers.
    #[inline(always)]
    unsafe fn store_quads(quads: [Self; 4], to: *mut f32) {
        let mut rows = [[0f32; 16]; 4];
        // SAFETY: the pointer is good for so many numbers, and no vector is longer than a row.
        unsafe {
            for (v, row) in quads.iter().zip(&mut rows) {
                v.store(row.as_mut_ptr());
            }
            for i in 0..Self::COUNT {
                for (j, row) in rows.iter().enumerate() {
                    *to.add(4 * i + j) = row[i];
                }
            }
        }
    }
    /// Numbers 1 and on, and `last` behind them.
    #[inline(always)]
    unsafe fn shifted(self, last: f32) -> Self {
        let mut row = [0f32; 17];
        // SAFETY: no vector is longer than the row.
        unsafe {
            self.store(row.as_mut_ptr());
            row[Self::COUNT] = last;
            Self::load(row.as_ptr().add(1))
        }
    }
    /// The product of a whole block, in the shape of registers that suits these vectors.
    unsafe fn multiply(block: &Block<'_>);
}

/// Defines `name` as `body::<vectors>`, compiled for each kind of vector and chosen when it runs.
macro_rules! dispatched {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        $vis fn $name($($arg: $kind),*) {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::cpu::lanes::{Avx2, Avx512};
                #[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
                fn widest($($arg: $kind),*) {
                    // SAFETY: this function runs only where the processor has these vectors.
                    unsafe { $body::<Avx512>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $kind),*) {
                    // SAFETY: as above.
                    unsafe { $body::<Avx2>($($arg),*) }
                }
                match $crate::cpu::lanes::level() {
                    // SAFETY: the processor has just said that it has these features.
                    2 => return unsafe { widest($($arg),*) },
                    // SAFETY: as above.
                    1 => return unsafe { wide($($arg),*) },
                    _ => {}
                }
            }
            #[cfg(target_arch = "aarch64")]
            {
                // SAFETY: every processor of this architecture has NEON.
                return unsafe { $body::<$crate::cpu::lanes::Neon>($($arg),*) };
            }
            #[cfg(not(target_arch = "aarch64"))]
            // SAFETY: plain numbers need no features.
            unsafe { $body::<$crate::cpu::lanes::Plain>($($arg),*) }
        }
    };
}
pub(super) use dispatched;

/// Numbers in the widest vector that is used on this machine.
pub(super) fn width() -> usize {
    #[cfg(target_arch = "x86_64")]
    return match level() {
        2 => Avx512::COUNT,
        1 => Avx2::COUNT,
        _ => Plain::COUNT,
    };
    #[cfg(target_arch = "aarch64")]
    return Neon::COUNT;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Plain::COUNT
}

/// 2 with AVX-512, 1 with AVX2 and FMA, else 0. `TENSOR_OPS_LEVEL` lowers it, for tests of the other paths.
#[cfg(target_arch = "x86_64")]
pub(super) fn level() -> usize {
    static LEVEL: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *LEVEL.get_or_init(|| {
        let has_avx2 = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma");
        let has_avx512 =
            std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512vl");
        let found = if has_avx2 && has_avx512 {
            2
        } else {
            usize::from(has_avx2)
        };
        let wanted = std::env::var("TENSOR_OPS_LEVEL")
            .ok()
            .and_then(|level| level.parse().ok());
        found.min(wanted.unwrap_or(found))
    })
}

/// Eight numbers in plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 8]);

impl Lanes for Plain {
    const COUNT: usize = 8;
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is good for eight numbers.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is good for eight numbers.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }
    #[inline(always)]
    unsafe fn add(mut self, other: Self) -> Self {
        for i in 0..8 {
            self.0[i] += other.0[i];
        }
        self
    }
    #[inline(always)]
    unsafe fn sub(mut self, other: Self) -> Self {
        for i in 0..8 {
            self.0[i] -= other.0[i];
        }
        self
    }
    #[inline(always)]
    unsafe fn mul(mut self, other: Self) -> Self {
        for i in 0..8 {
            self.0[i] *= other.0[i];
        }
        self
    }
    #[inline(always)]
    unsafe fn fma(mut self, factor: Self, sum: Self) -> Self {
        for i in 0..8 {
            self.0[i] = self.0[i] * factor.0[i] + sum.0[i];
        }
        self
    }
    #[inline(always)]
    unsafe fn multiply(block: &Block<'_>) {
        // SAFETY: the caller's block is checked.
        unsafe { block.run::<Self, 4>() }
    }
}

/// A kind of vector from its intrinsics and the rows of the product's register block.
macro_rules! vectors {
    ($name:ident, $inner:ident, $count:literal, $rows:literal, $doc:literal,
     $load:ident, $store:ident, $splat:ident, $add:ident, $sub:ident, $mul:ident, $fma:expr, { $($quads:tt)* }) => {
        #[doc = $doc]
        #[derive(Clone, Copy)]
        pub(super) struct $name($inner);

        impl Lanes for $name {
            const COUNT: usize = $count;
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: the caller's pointer is good, and the processor has these vectors; so below.
                Self(unsafe { $load(from) })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: see `load`.
                unsafe { $store(to, self.0) }
            }
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                // SAFETY: see `load`.
                Self(unsafe { $splat(value) })
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: see `load`.
                Self(unsafe { $add(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                // SAFETY: see `load`.
                Self(unsafe { $sub(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                // SAFETY: see `load`.
                Self(unsafe { $mul(self.0, other.0) })
            }
            #[inline(always)]
            unsafe fn fma(self, factor: Self, sum: Self) -> Self {
                // SAFETY: see `load`.
                Self(unsafe { $fma(self.0, factor.0, sum.0) })
            }
            #[inline(always)]
            unsafe fn multiply(block: &Block<'_>) {
                // SAFETY: the caller's block is checked.
                unsafe { block.run::<Self, $rows>() }
            }
            $($quads)*
        }
    };
}

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
#[cfg(target_arch = "x86_64")]
vectors!(
    Avx512,
    __m512,
    16,
    8,
    "Sixteen numbers; 32 registers hold a block of 8 rows by 3 vectors.",
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_set1_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    {
        #[inline(always)]
        unsafe fn quads(from: *const f32) -> [Self; 4] {
            // SAFETY: the caller's pointer is good for four vectors, and the processor has them.
            unsafe {
                let v = [0, 16, 32, 48].map(|at| _mm512_loadu_ps(from.add(at)));
                let ab = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
                let cd = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
                let first = [ab, cd].map(|pick| _mm512_permutex2var_ps(v[0], pick, v[1]));
                let second = [ab, cd].map(|pick| _mm512_permutex2var_ps(v[2], pick, v[3]));
                [
                    Self(_mm512_shuffle_f32x4::<0x44>(first[0], second[0])),
                    Self(_mm512_shuffle_f32x4::<0xEE>(first[0], second[0])),
                    Self(_mm512_shuffle_f32x4::<0x44>(first[1], second[1])),
                    Self(_mm512_shuffle_f32x4::<0xEE>(first[1], second[1])),
                ]
            }
        }
        #[inline(always)]
        unsafe fn store_quads([a, b, c, d]: [Self; 4], to: *mut f32) {
            // SAFETY: as above.
            unsafe {
                let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                let first = _mm512_setr_epi32(0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
                let second = _mm512_setr_epi32(8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31);
                for (half, pick) in [low, high].into_iter().enumerate() {
                    let ab = _mm512_permutex2var_ps(a.0, pick, b.0);
                    let cd = _mm512_permutex2var_ps(c.0, pick, d.0);
                    let to = to.add(32 * half);
                    _mm512_storeu_ps(to, _mm512_permutex2var_ps(ab, first, cd));
                    _mm512_storeu_ps(to.add(16), _mm512_permutex2var_ps(ab, second, cd));
                }
            }
        }
        #[inline(always)]
        unsafe fn shifted(self, last: f32) -> Self {
            // SAFETY: as above.
            unsafe {
                let (whole, last) = (_mm512_castps_si512(self.0), _mm512_castps_si512(_mm512_set1_ps(last)));
                Self(_mm512_castsi512_ps(_mm512_alignr_epi32::<1>(last, whole)))
            }
        }
    }
);
#[cfg(target_arch = "x86_64")]
vectors!(
    Avx2,
    __m256,
    8,
    4,
    "Eight numbers; 16 registers hold a block of 4 rows by 3 vectors.",
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_set1_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    {
        #[inline(always)]
        unsafe fn store_quads([a, b, c, d]: [Self; 4], to: *mut f32) {
            // SAFETY: the caller's pointer is good for four vectors, and the processor has them.
            unsafe {
                let (ab, ab_high) = (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpackhi_ps(a.0, b.0));
                let (cd, cd_high) = (_mm256_unpacklo_ps(c.0, d.0), _mm256_unpackhi_ps(c.0, d.0));
                // Number `i` of each of the four in the lower half, number `i + 4` in the upper.
                let zero = _mm256_shuffle_ps::<0x44>(ab, cd);
                let one = _mm256_shuffle_ps::<0xEE>(ab, cd);
                let two = _mm256_shuffle_ps::<0x44>(ab_high, cd_high);
                let three = _mm256_shuffle_ps::<0xEE>(ab_high, cd_high);
                _mm256_storeu_ps(to, _mm256_permute2f128_ps::<0x20>(zero, one));
                _mm256_storeu_ps(to.add(8), _mm256_permute2f128_ps::<0x20>(two, three));
                _mm256_storeu_ps(to.add(16), _mm256_permute2f128_ps::<0x31>(zero, one));
                _mm256_storeu_ps(to.add(24), _mm256_permute2f128_ps::<0x31>(two, three));
            }
        }
        #[inline(always)]
        unsafe fn shifted(self, last: f32) -> Self {
            // SAFETY: as above.
            unsafe {
                let turned = _mm256_permutevar8x32_ps(self.0, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
                Self(_mm256_blend_ps::<0x80>(turned, _mm256_set1_ps(last)))
            }
        }
        #[inline(always)]
        unsafe fn quads(from: *const f32) -> [Self; 4] {
            // SAFETY: as above.
            unsafe {
                let v = [0, 8, 16, 24].map(|at| _mm256_loadu_ps(from.add(at)));
                // Tiles i and i + 4 in the halves of one vector, then four rows to four columns in each half.
                let (zero, two) = (
                    _mm256_permute2f128_ps::<0x20>(v[0], v[2]),
                    _mm256_permute2f128_ps::<0x20>(v[1], v[3]),
                );
                let (one, three) = (
                    _mm256_permute2f128_ps::<0x31>(v[0], v[2]),
                    _mm256_permute2f128_ps::<0x31>(v[1], v[3]),
                );
                let (low, high) = (_mm256_unpacklo_ps(zero, one), _mm256_unpackhi_ps(zero, one));
                let (low_2, high_2) = (_mm256_unpacklo_ps(two, three), _mm256_unpackhi_ps(two, three));
                [
                    Self(_mm256_shuffle_ps::<0x44>(low, low_2)),
                    Self(_mm256_shuffle_ps::<0xEE>(low, low_2)),
                    Self(_mm256_shuffle_ps::<0x44>(high, high_2)),
                    Self(_mm256_shuffle_ps::<0xEE>(high, high_2)),
                ]
            }
        }
    }
);
#[cfg(target_arch = "aarch64")]
use std::arch::aarch64::*;
#[cfg(target_arch = "aarch64")]
vectors!(
    Neon,
    float32x4_t,
    4,
    8,
    "Four numbers; 32 registers hold a block of 8 rows by 3 vectors.",
    vld1q_f32,
    vst1q_f32,
    vdupq_n_f32,
    vaddq_f32,
    vsubq_f32,
    vmulq_f32,
    |a, b, c| vfmaq_f32(c, a, b),
    {
        #[inline(always)]
        unsafe fn quads(from: *const f32) -> [Self; 4] {
            // SAFETY: the caller's pointer is good for four vectors.
            let v = unsafe { vld4q_f32(from) };
            [Self(v.0), Self(v.1), Self(v.2), Self(v.3)]
        }
        #[inline(always)]
        unsafe fn store_quads([a, b, c, d]: [Self; 4], to: *mut f32) {
            // SAFETY: as above.
            unsafe { vst4q_f32(to, float32x4x4_t(a.0, b.0, c.0, d.0)) }
        }
        #[inline(always)]
        unsafe fn shifted(self, last: f32) -> Self {
            // SAFETY: as above.
            Self(unsafe { vextq_f32::<1>(self.0, vdupq_n_f32(last)) })
        }
    }
);
