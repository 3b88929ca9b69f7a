//! UniPC (Zhao et al. 2023) with the B(h) solvers, on the guess of the clean sample.

use super::{Denoiser, Run, add, mix};
use crate::Result;

/// Which B(h).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// `h`.
    Bh1,
    /// `e^h - 1`.
    Bh2,
}

/// A level in the variance-preserving form: alpha, sigma and half log-SNR.
#[derive(Clone, Copy)]
struct Level {
    sigma: f64,
    alpha: f64,
    std: f64,
    lambda: f64,
}

impl Level {
    /// In f32 as the reference: near 0 its rounding of `sigma² + 1` decides the last step.
    fn new(sigma: f64) -> Self {
        let sigma = sigma as f32;
        let log_alpha = 0.5 * (1.0 / (sigma * sigma + 1.0)).ln();
        let variance = 1.0 - (2.0 * log_alpha).exp();
        Self {
            sigma: sigma.into(),
            alpha: log_alpha.exp().into(),
            std: variance.sqrt().into(),
            lambda: (log_alpha - 0.5 * variance.ln()).into(),
        }
    }
}

/// Earlier guesses, oldest first.
type History = Vec<(Level, Vec<f32>)>;

pub(super) fn uni_pc(
    denoiser: &mut dyn Denoiser,
    x: Vec<f32>,
    run: &mut Run<'_>,
    variant: Variant,
) -> Result<Vec<f32>> {
    let mut levels: Vec<Level> = run.sigmas.iter().map(|sigma| Level::new(f64::from(*sigma))).collect();
    let steps = levels.len() - 1;
    if run.sigmas[steps] <= 0.0 {
        levels[steps] = Level::new(0.001);
    }
    let order = steps.saturating_sub(1).min(3);
    let mut x: Vec<f32> = x.iter().map(|x| (f64::from(*x) * levels[0].alpha) as f32).collect();
    let mut history: History = Vec::new();
    let guess = |denoiser: &mut dyn Denoiser, x: &[f32], level: Level| -> Result<Vec<f32>> {
        let scale = (level.sigma * level.sigma + 1.0).sqrt() as f32;
        let scaled: Vec<f32> = x.iter().map(|x| x * scale).collect();
        denoiser.denoise(&scaled, level.sigma as f32)
    };
    let first = guess(denoiser, &x, levels[0])?;
    (run.on_step)(0, &x, &first)?;
    history.push((levels[0], first));
    if order > 0 {
        for (i, level) in levels.iter().copied().enumerate().skip(1) {
            let now = if i < order { i } else { order.min(steps + 1 - i) };
            let plan = Plan::new(&history, level, now, variant);
            let base = mix(
                level.std / plan.last.std,
                &x,
                -level.alpha * plan.phi,
                &history[history.len() - 1].1,
            );
            let mut ahead = base.clone();
            for (rho, difference) in plan.predictor().iter().zip(&plan.differences) {
                add(&mut ahead, -level.alpha * plan.b_h * rho, difference);
            }
            if i == steps {
                x = ahead;
                break;
            }
            let next = guess(denoiser, &ahead, level)?;
            (run.on_step)(i, &ahead, &next)?;
            x = base;
            let rhos = plan.corrector();
            for (rho, difference) in rhos.iter().zip(&plan.differences) {
                add(&mut x, -level.alpha * plan.b_h * rho, difference);
            }
            let change = mix(1.0, &next, -1.0, &history[history.len() - 1].1);
            add(&mut x, -level.alpha * plan.b_h * rhos[rhos.len() - 1], &change);
            history.push((level, next));
            if history.len() > order {
                history.remove(0);
            }
        }
    }
    let alpha = levels[steps].alpha;
    Ok(x.into_iter().map(|x| (f64::from(x) / alpha) as f32).collect())
}

/// The numbers of one step.
struct Plan {
    last: Level,
    phi: f64,
    b_h: f64,
    matrix: Vec<Vec<f64>>,
    target: Vec<f64>,
    differences: Vec<Vec<f32>>,
}

impl Plan {
    fn new(history: &History, to: Level, order: usize, variant: Variant) -> Self {
        let (last, newest) = &history[history.len() - 1];
        let h = to.lambda - last.lambda;
        let mut rks = Vec::new();
        let mut differences = Vec::new();
        for back in 1..order.min(history.len()) {
            let (level, guess) = &history[history.len() - 1 - back];
            let rk = (level.lambda - last.lambda) / h;
            rks.push(rk);
            differences.push(mix(1.0 / rk, guess, -1.0 / rk, newest));
        }
        rks.push(1.0);
        let hh = -h;
        let phi = hh.exp_m1();
        let b_h = if variant == Variant::Bh1 { hh } else { phi };
        let (mut phi_k, mut factorial) = (phi / hh - 1.0, 1.0);
        let (mut matrix, mut target) = (Vec::new(), Vec::new());
        for i in 1..=rks.len() {
            matrix.push(rks.iter().map(|rk| rk.powi(i as i32 - 1)).collect());
            target.push(phi_k * factorial / b_h);
            factorial *= (i + 1) as f64;
            phi_k = phi_k / hh - 1.0 / factorial;
        }
        Self {
            last: *last,
            phi,
            b_h,
            matrix,
            target,
            differences,
        }
    }

    fn predictor(&self) -> Vec<f64> {
        match self.differences.len() {
            0 => Vec::new(),
            1 => vec![0.5],
            n => {
                let matrix = self.matrix[..n].iter().map(|row| row[..n].to_vec()).collect();
                solve(matrix, self.target[..n].to_vec())
            }
        }
    }

    fn corrector(&self) -> Vec<f64> {
        if self.differences.is_empty() {
            vec![0.5]
        } else {
            solve(self.matrix.clone(), self.target.clone())
        }
    }
}

/// Gaussian elimination with pivoting; at most 3 unknowns.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = (i..n)
            .max_by(|p, q| a[*p][i].abs().total_cmp(&a[*q][i].abs()))
            .unwrap_or(i);
        a.swap(i, pivot);
        b.swap(i, pivot);
        for row in i + 1..n {
            let factor = a[row][i] / a[i][i];
            let (above, below) = a.split_at_mut(row);
            for (value, pivot) in below[0].iter_mut().zip(&above[i]).skip(i) {
                *value -= factor * pivot;
            }
            b[row] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|column| a[i][column] * b[column]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    b
}
