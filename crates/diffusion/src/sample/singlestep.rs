//! Two network calls per step.

use super::{Denoiser, Run, Steps, add, ancestral_f32, ancestral_flow, exp, ln, middle, mix, slope, tree};
use crate::Result;

pub(super) fn heun(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    for i in 0..run.sigmas.len() - 1 {
        let (from, to) = (run.sigmas[i], run.sigmas[i + 1]);
        let guess = denoiser.denoise(&x, from)?;
        (run.on_step)(i, &x, &guess)?;
        let mut direction = slope(&x, from, &guess);
        if to > 0.0 {
            let ahead = mix(1.0, &x, f64::from(to - from), &direction);
            let guess = denoiser.denoise(&ahead, to)?;
            direction = mix(0.5, &direction, 0.5, &slope(&ahead, to, &guess));
        }
        add(&mut x, f64::from(to - from), &direction);
    }
    Ok(x)
}

pub(super) fn dpm_2(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    for i in 0..run.sigmas.len() - 1 {
        let (from, to) = (run.sigmas[i], run.sigmas[i + 1]);
        let guess = denoiser.denoise(&x, from)?;
        (run.on_step)(i, &x, &guess)?;
        half_way(denoiser, &mut x, &guess, (from, to))?;
    }
    Ok(x)
}

pub(super) fn dpm_2_ancestral(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    let mut noise = Steps::new(run);
    for i in 0..run.sigmas.len() - 1 {
        let (from, to) = (run.sigmas[i], run.sigmas[i + 1]);
        let guess = denoiser.denoise(&x, from)?;
        (run.on_step)(i, &x, &guess)?;
        let (down, ratio, up) = if run.is_flow {
            ancestral_flow(from.into(), to.into())
        } else {
            let (down, up) = ancestral_f32(from, to);
            (down.into(), 1.0, up.into())
        };
        half_way(denoiser, &mut x, &guess, (from, down as f32))?;
        if down > 0.0 {
            let drawn = noise.draw(x.len());
            x = mix(ratio, &x, up, &drawn);
        }
    }
    Ok(x)
}

/// Moves `x` from `from` to `to` along the slope found half-way; straight where `to` is 0.
fn half_way(denoiser: &mut dyn Denoiser, x: &mut [f32], guess: &[f32], (from, to): (f32, f32)) -> Result<()> {
    let mut direction = slope(x, from, guess);
    if to > 0.0 {
        let half = middle(from, to);
        let ahead = mix(1.0, x, f64::from(half - from), &direction);
        let guess = denoiser.denoise(&ahead, half)?;
        direction = slope(&ahead, half, &guess);
    }
    add(x, f64::from(to - from), &direction);
    Ok(())
}

pub(super) fn dpmpp_2s_ancestral(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    let mut noise = Steps::new(run);
    for i in 0..run.sigmas.len() - 1 {
        let (from, to) = (run.sigmas[i], run.sigmas[i + 1]);
        let guess = denoiser.denoise(&x, from)?;
        (run.on_step)(i, &x, &guess)?;
        let start = f64::from(from);
        let (down, ratio, up) = if run.is_flow {
            ancestral_flow(start, to.into())
        } else {
            let (down, up) = ancestral_f32(from, to);
            (down.into(), 1.0, up.into())
        };
        if down <= 0.0 {
            let direction = slope(&x, from, &guess);
            add(&mut x, down - start, &direction);
            continue;
        }
        let half = match run.is_flow {
            true if from >= 1.0 => 0.9999,
            true => {
                let lambda = |sigma: f64| ((1.0 - sigma) / sigma).ln();
                (1.0 / (f64::midpoint(lambda(start), lambda(down)).exp() + 1.0)) as f32
            }
            false => {
                let (t, end) = (-ln(from), -ln(down as f32));
                exp(-(t + 0.5 * (end - t)))
            }
        };
        let part = f64::from(half) / start;
        let ahead = mix(part, &x, 1.0 - part, &guess);
        let guess = denoiser.denoise(&ahead, half)?;
        x = mix(down / start, &x, 1.0 - down / start, &guess);
        let drawn = noise.draw(x.len());
        x = mix(ratio, &x, up, &drawn);
    }
    Ok(x)
}

/// DPM-Solver++ (stochastic), r 1/2, eta 1. Half log-SNRs are kept in f32 so that the times asked of the tree are the
/// reference's to the last digit.
pub(super) fn dpmpp_sde(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    let tree = tree(run, x.len());
    let is_flow = run.is_flow;
    let lambda = |sigma: f32| -> f32 {
        if is_flow {
            -(sigma / (1.0 - sigma)).ln()
        } else {
            -(f64::from(sigma).ln() as f32)
        }
    };
    let sigma_of = |lambda: f32| -> f32 {
        if is_flow {
            1.0 / (1.0 + lambda.exp())
        } else {
            f64::from(-lambda).exp() as f32
        }
    };
    let mut sigmas = run.sigmas.to_vec();
    if is_flow && sigmas[0] >= 1.0 {
        sigmas[0] = 0.9999;
    }
    for i in 0..sigmas.len() - 1 {
        let (from, to) = (sigmas[i], sigmas[i + 1]);
        let guess = denoiser.denoise(&x, from)?;
        (run.on_step)(i, &x, &guess)?;
        if to <= 0.0 {
            x = guess;
            continue;
        }
        let (lambda_from, lambda_to) = (lambda(from), lambda(to));
        let lambda_half = lambda_from + 0.5 * (lambda_to - lambda_from);
        let half = sigma_of(lambda_half);
        // All in f32: near the end of a flow `end² - up²` cancels to a few digits, and the reference keeps those of f32.
        let step = |x: &[f32], guess: &[f32], (lambda_end, end): (f32, f32)| -> Vec<f32> {
            let (down, up) = ancestral_f32((-lambda_from).exp(), (-lambda_end).exp());
            let (alpha_from, alpha_end) = (from * lambda_from.exp(), end * lambda_end.exp());
            let h = -down.ln() - lambda_from;
            let (keep, turn) = (alpha_end / alpha_from * (-h).exp(), alpha_end * (-h).exp_m1());
            let mut next = mix(keep.into(), x, (-turn).into(), guess);
            add(&mut next, (alpha_end * up).into(), &tree.noise(from, end));
            next
        };
        let ahead = step(&x, &guess, (lambda_half, half));
        let guess = denoiser.denoise(&ahead, half)?;
        // With r = 1/2 the second guess counts alone: 1 - 1/(2r) is 0.
        x = step(&x, &guess, (lambda_to, to));
    }
    Ok(x)
}
