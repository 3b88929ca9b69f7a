//! One network call per step, no memory.

use super::{Denoiser, Run, Steps, add, ancestral, ancestral_flow, mix, slope};
use crate::Result;

pub(super) fn euler(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    for i in 0..run.sigmas.len() - 1 {
        let (from, to) = (run.sigmas[i], run.sigmas[i + 1]);
        let guess = denoiser.denoise(&x, from)?;
        (run.on_step)(i, &x, &guess)?;
        let direction = slope(&x, from, &guess);
        add(&mut x, f64::from(to - from), &direction);
    }
    Ok(x)
}

pub(super) fn euler_ancestral(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    let mut noise = Steps::new(run);
    for i in 0..run.sigmas.len() - 1 {
        let (from, to) = (run.sigmas[i], run.sigmas[i + 1]);
        let guess = denoiser.denoise(&x, from)?;
        (run.on_step)(i, &x, &guess)?;
        if to <= 0.0 {
            x = guess;
        } else if run.is_flow {
            let (down, ratio, up) = ancestral_flow(from.into(), to.into());
            let keep = down / f64::from(from);
            x = mix(keep * ratio, &x, (1.0 - keep) * ratio, &guess);
            add(&mut x, up, &noise.draw(guess.len()));
        } else {
            let (down, up) = ancestral(from.into(), to.into());
            let direction = slope(&x, from, &guess);
            add(&mut x, down - f64::from(from), &direction);
            add(&mut x, up, &noise.draw(guess.len()));
        }
    }
    Ok(x)
}

pub(super) fn lcm(denoiser: &mut dyn Denoiser, mut x: Vec<f32>, run: &mut Run<'_>) -> Result<Vec<f32>> {
    let mut noise = Steps::new(run);
    for i in 0..run.sigmas.len() - 1 {
        let (from, to) = (run.sigmas[i], run.sigmas[i + 1]);
        let guess = denoiser.denoise(&x, from)?;
        (run.on_step)(i, &x, &guess)?;
        x = guess;
        if to > 0.0 {
            let keep = if run.is_flow { 1.0 - f64::from(to) } else { 1.0 };
            let drawn = noise.draw(x.len());
            x = mix(keep, &x, to.into(), &drawn);
        }
    }
    Ok(x)
}
