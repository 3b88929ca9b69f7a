//! One network call per step, with memory of earlier ones.

use super::{Denoiser, Run, add, mix, slope};
use crate::Result;

/// Linear multistep of order 4 (Adams-Bashforth on uneven steps).
pub(super) fn lms(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    const ORDER: usize = 4;
    let mut slopes: Vec<Vec<f32>> = Vec::new(); // newest first
    for i in 0..run.sigmas.len() - 1 {
        let guess = denoiser.denoise(&x, run.sigmas[i])?;
        (run.on_step)(i, &x, &guess)?;
        slopes.insert(0, slope(&x, run.sigmas[i], &guess));
        slopes.truncate(ORDER);
        if run.sigmas[i + 1] <= 0.0 {
            x = guess;
            continue;
        }
        for (j, slope) in slopes.iter().enumerate() {
            add(&mut x, coefficient(run.sigmas, i, slopes.len(), j), slope);
        }
    }
    Ok(x)
}

/// The integral over the step `i` of the Lagrange polynomial that is 1 at sigma `i - j` and 0 at the other `order - 1`.
/// Two-point Gauss-Legendre, exact for the cubics that occur.
fn coefficient(sigmas: &[f32], i: usize, order: usize, j: usize) -> f64 {
    let at = |k: usize| f64::from(sigmas[i - k]);
    let basis = |tau: f64| {
        (0..order)
            .filter(|k| *k != j)
            .map(|k| (tau - at(k)) / (at(j) - at(k)))
            .product::<f64>()
    };
    let (from, to) = (f64::from(sigmas[i]), f64::from(sigmas[i + 1]));
    let (centre, half) = (f64::midpoint(from, to), (to - from) / 2.0);
    let offset = half / 3f64.sqrt();
    half * (basis(centre - offset) + basis(centre + offset))
}

/// DPM-Solver++(2M).
pub(super) fn dpmpp_2m(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    let mut before: Option<Vec<f32>> = None;
    for i in 0..run.sigmas.len() - 1 {
        let (from, to) = (f64::from(run.sigmas[i]), f64::from(run.sigmas[i + 1]));
        let guess = denoiser.denoise(&x, run.sigmas[i])?;
        (run.on_step)(i, &x, &guess)?;
        let target = match &before {
            Some(before) if to > 0.0 => {
                let h = (from / to).ln();
                let h_before = (f64::from(run.sigmas[i - 1]) / from).ln();
                let weight = h / (2.0 * h_before);
                mix(1.0 + weight, &guess, -weight, before)
            }
            _ => guess.clone(),
        };
        // sigma_to / sigma_from is exp(-h), and -expm1(-h) is the rest to 1.
        x = mix(to / from, &x, 1.0 - to / from, &target);
        before = Some(guess);
    }
    Ok(x)
}
