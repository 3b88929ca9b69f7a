//! DPM-Solver in the half log-SNR `t = -ln sigma`: a fixed budget of calls, or steps as long as the error allows.

use super::{Denoiser, Run, add, exp, ln, mix};
use crate::{Error, Result, sigma::linspace};

/// Network calls an adaptive run may take; none was seen to need more than 150.
const MAX_CALLS: usize = 1500;

struct Solver<'a> {
    denoiser: &'a mut dyn Denoiser,
}

/// Times and levels are rounded to f32 as in the reference, since timesteps are chosen by the nearest level.
fn sigma(t: f64) -> f64 {
    f64::from(exp(-(t as f32)))
}

impl Solver<'_> {
    /// The noise in `x` at time `t`.
    fn eps(&mut self, x: &[f32], t: f64) -> Result<Vec<f32>> {
        let sigma = sigma(t) as f32;
        let guess = self.denoiser.denoise(x, sigma)?;
        Ok(super::slope(x, sigma, &guess))
    }

    /// `x` carried by the fraction `r` of the way, along `eps`.
    fn first(x: &[f32], eps: &[f32], t: f64, h: f64) -> Vec<f32> {
        mix(1.0, x, -sigma(t + h) * h.exp_m1(), eps)
    }

    /// The second-order step, given the noise at `t + r1·h`.
    fn second(x: &[f32], (eps, eps_1): (&[f32], &[f32]), t: f64, (h, r1): (f64, f64)) -> Vec<f32> {
        let scale = sigma(t + h) * h.exp_m1();
        let mut next = mix(1.0, x, -scale, eps);
        add(&mut next, -scale / (2.0 * r1), &mix(1.0, eps_1, -1.0, eps));
        next
    }

    /// The third-order step at r1 1/3, r2 2/3, given the noise at `t + h/3`.
    fn third(&mut self, x: &[f32], (eps, eps_1): (&[f32], &[f32]), t: f64, h: f64) -> Result<Vec<f32>> {
        let (r1, r2) = (1.0 / 3.0, 2.0 / 3.0);
        let s = sigma(t + r2 * h);
        let mut ahead = mix(1.0, x, -s * (r2 * h).exp_m1(), eps);
        let curve = s * (r2 / r1) * ((r2 * h).exp_m1() / (r2 * h) - 1.0);
        add(&mut ahead, -curve, &mix(1.0, eps_1, -1.0, eps));
        let eps_2 = self.eps(&ahead, t + r2 * h)?;
        let s = sigma(t + h);
        let mut next = mix(1.0, x, -s * h.exp_m1(), eps);
        add(
            &mut next,
            -s / r2 * (h.exp_m1() / h - 1.0),
            &mix(1.0, &eps_2, -1.0, eps),
        );
        Ok(next)
    }
}

/// `a - b` in f32.
fn difference(a: f64, b: f64) -> f64 {
    f64::from(a as f32 - b as f32)
}

/// The first sigma and the last positive one, as times.
fn ends(sigmas: &[f32]) -> (f64, f64) {
    let last = match sigmas {
        [.., before, last] if *last <= 0.0 => *before,
        [.., last] => *last,
        [] => 1.0,
    };
    let time = |sigma: f32| f64::from(-ln(sigma));
    (time(sigmas.first().copied().unwrap_or(1.0)), time(last))
}

pub(super) fn fast(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    let calls = run.sigmas.len() - 1;
    let (start, end) = ends(run.sigmas);
    let steps = calls / 3 + 1;
    let mut orders = vec![3; steps];
    if calls.is_multiple_of(3) {
        orders.truncate(steps.saturating_sub(2));
        orders.extend([2, 1]);
    } else {
        orders[steps - 1] = calls % 3;
    }
    let times: Vec<f64> = linspace(start, end, steps + 1).map(f64::from).collect();
    let mut solver = Solver { denoiser };
    let mut done = 0;
    for (i, order) in orders.into_iter().enumerate() {
        let (t, h) = (times[i], difference(times[i + 1], times[i]));
        let eps = solver.eps(&x, t)?;
        (run.on_step)(done, &x, &mix(1.0, &x, -sigma(t), &eps))?;
        done += order;
        x = match order {
            1 => Solver::first(&x, &eps, t, h),
            2 => {
                let eps_1 = solver.eps(&Solver::first(&x, &eps, t, h / 2.0), t + h / 2.0)?;
                Solver::second(&x, (&eps, &eps_1), t, (h, 0.5))
            }
            _ => {
                let eps_1 = solver.eps(&Solver::first(&x, &eps, t, h / 3.0), t + h / 3.0)?;
                solver.third(&x, (&eps, &eps_1), t, h)?
            }
        };
    }
    Ok(x)
}

/// Orders 2 and 3 beside each other, their difference steering the step; k-diffusion's constants.
pub(super) fn adaptive(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    const RTOL: f32 = 0.05;
    const ATOL: f32 = 0.0078;
    const SAFETY: f64 = 0.81;
    let (start, end) = ends(run.sigmas);
    let mut solver = Solver { denoiser };
    let mut before = x.clone();
    let (mut s, mut step, mut calls) = (start, 0.05, 0);
    let total = run.sigmas.len() - 1;
    while s < end - 1e-5 {
        if calls > MAX_CALLS {
            return Err(Error::Request("the adaptive sampler does not come to an end".into()));
        }
        let t = f64::from((end.min(s + step)) as f32);
        let h = difference(t, s);
        let eps = solver.eps(&x, s)?;
        let progress = ((s - start) / (end - start) * total as f64) as usize;
        (run.on_step)(progress, &x, &mix(1.0, &x, -sigma(s), &eps))?;
        let eps_1 = solver.eps(&Solver::first(&x, &eps, s, h / 3.0), s + h / 3.0)?;
        let low = Solver::second(&x, (&eps, &eps_1), s, (h, 1.0 / 3.0));
        let high = solver.third(&x, (&eps, &eps_1), s, h)?;
        calls += 3;
        let squares: f64 = low
            .iter()
            .zip(&high)
            .zip(&before)
            .map(|((low, high), before)| {
                let scale = ATOL.max(RTOL * low.abs().max(before.abs()));
                let part = f64::from((low - high) / scale);
                part * part
            })
            .sum();
        let error = (squares / x.len().max(1) as f64).sqrt();
        if !error.is_finite() {
            return Err(Error::NoPicture("not-a-number"));
        }
        // A pure integral controller of order 3: (1 / error)^(1/3), softly limited.
        let factor = 1.0 + ((1.0 / (error + 1e-8)).powf(1.0 / 3.0) - 1.0).atan();
        if factor >= SAFETY {
            before = low;
            x = high;
            s = t;
        }
        step *= factor;
    }
    Ok(x)
}
