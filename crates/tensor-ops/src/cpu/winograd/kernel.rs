//! Kernels of 3x3 taps to 6x6 points.

use super::POINTS;
use crate::cpu::lanes::{Lanes, dispatched};

#[inline(always)]
unsafe fn kernel_line<L: Lanes>([a, b, c]: [L; 3]) -> [L; 6] {
    // SAFETY: passed on from `dispatched`.
    unsafe {
        let sum = a.add(c);
        let far = c.fma(L::splat(1.0 / 6.0), a.mul(L::splat(1.0 / 24.0)));
        let twelfth = L::splat(1.0 / 12.0);
        [
            a.mul(L::splat(0.25)),
            sum.add(b).mul(L::splat(-1.0 / 6.0)),
            b.sub(sum).mul(L::splat(1.0 / 6.0)),
            b.fma(twelfth, far),
            b.fma(L::splat(-1.0 / 12.0), far),
            c,
        ]
    }
}

/// Kernels that are transformed side by side.
const KERNELS: usize = 16;

/// Transforms the 3x3 kernels that lie one after another in `weight`; point `p` of kernel `i` goes to `p * stride + i`.
#[inline(always)]
unsafe fn kernel_points_any<L: Lanes>(weight: &[f32], points: &mut [f32], stride: usize) {
    let n = weight.len() / 9;
    assert!(
        (POINTS - 1) * stride + n <= points.len(),
        "all transformed kernels have a place"
    );
    let mut taps = [[0f32; KERNELS]; 9];
    for (first, kernels) in (0..n).step_by(KERNELS).zip(weight.chunks(9 * KERNELS)) {
        for (i, kernel) in kernels.as_chunks::<9>().0.iter().enumerate() {
            for (tap, v) in taps.iter_mut().zip(kernel) {
                tap[i] = *v;
            }
        }
        let count = kernels.len() / 9;
        for at in (0..count).step_by(L::COUNT) {
            // SAFETY: the vectors lie within the taps, KERNELS being a multiple of their size; a vector is stored whole
            // only where all its kernels exist (the assertion above bounds the last).
            unsafe {
                let mut rows = [[L::splat(0.0); 3]; 6];
                for x in 0..3 {
                    let tap = |y: usize| L::load(taps[y * 3 + x].as_ptr().add(at));
                    let column = kernel_line([tap(0), tap(1), tap(2)]);
                    for (row, v) in rows.iter_mut().zip(column) {
                        row[x] = v;
                    }
                }
                for (y, row) in rows.iter().enumerate() {
                    for (x, v) in kernel_line(*row).iter().enumerate() {
                        let to = (y * 6 + x) * stride + first + at;
                        if at + L::COUNT <= count {
                            v.store(points.as_mut_ptr().add(to));
                        } else {
                            let mut edge = [0f32; KERNELS];
                            v.store(edge.as_mut_ptr());
                            points[to..to + count - at].copy_from_slice(&edge[..count - at]);
                        }
                    }
                }
            }
        }
    }
}
dispatched! {
    pub(super) fn kernel_points(weight: &[f32], points: &mut [f32], stride: usize) = kernel_points_any
}
