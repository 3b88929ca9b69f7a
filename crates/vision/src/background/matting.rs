//! Alpha matting: from a coarse mask to soft hair, and the colours of the thing in front without what shone through.
//!
//! Closed-form matting by Levin et al. 2007 and multi-level foreground estimation by Germer et al. 2020, with the
//! constants of pymatting (MIT), which is what the field's background remover calls.

use imaging::{Mask, Picture, blur};

use crate::error::{Result, VisionError};

/// How the mask is split into certain and uncertain parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MattingSettings {
    /// Mask values above this are in front for certain, once eroded.
    pub foreground: u8,
    /// Mask values below this are behind for certain, once eroded.
    pub background: u8,
    /// Side of the square that both certain parts are eroded by, in pixels.
    pub erode: usize,
    /// Most uncertain pixels that are solved for; above it the coarse mask is used as it is.
    pub max_unknown: usize,
}

impl Default for MattingSettings {
    /// 240, 10 and 10 as reGen; 1.5 million uncertain pixels need about 450 MB.
    fn default() -> Self {
        Self {
            foreground: 240,
            background: 10,
            erode: 10,
            max_unknown: 1_500_000,
        }
    }
}

/// The picture cut out along `mask`, its edge solved for. Falls back to [`cut_out_plain`] where nothing is certain or too
/// much is uncertain.
pub fn cut_out(picture: &Picture, mask: &Mask, settings: &MattingSettings) -> Result<Picture> {
    if (picture.width(), picture.height()) != (mask.width(), mask.height()) {
        return Err(VisionError::Input("the mask has another size than the picture".into()));
    }
    let trimap = trimap(mask, settings);
    let n_unknown = trimap.iter().filter(|t| **t == Part::Unknown).count();
    let certain = |part| trimap.contains(&part);
    if !certain(Part::Front) || !certain(Part::Behind) || n_unknown > settings.max_unknown {
        return Ok(cut_out_plain(picture, mask));
    }
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let channels = picture.channels();
    let image: Vec<[f32; 3]> = picture
        .data()
        .chunks_exact(channels)
        .map(|p| [p[0], p[1], p[2]].map(|v| f32::from(v) / 255.0))
        .collect();
    let alpha = solve_alpha(&image, (width, height), &trimap, mask.data());
    let front = front_colours(&image, &alpha, (width, height));
    let byte = |v: f32| (v * 255.0).clamp(0.0, 255.0) as u8;
    let data = front
        .iter()
        .zip(&alpha)
        .flat_map(|(c, a)| [byte(c[0]), byte(c[1]), byte(c[2]), byte(*a)])
        .collect();
    Ok(Picture::from_rgba(picture.width(), picture.height(), data)?)
}

/// The picture blended over nothing by the mask: colours fade to black with alpha (Pillow's `composite`).
pub fn cut_out_plain(picture: &Picture, mask: &Mask) -> Picture {
    let resized = mask.resized(picture.width(), picture.height(), imaging::Filter::Lanczos);
    let times = |value: u8, alpha: u8| {
        let product = u32::from(value) * u32::from(alpha) + 128;
        (((product >> 8) + product) >> 8) as u8
    };
    let data = picture
        .data()
        .chunks_exact(picture.channels())
        .zip(resized.data())
        .flat_map(|(p, a)| [times(p[0], *a), times(p[1], *a), times(p[2], *a), *a])
        .collect();
    Picture::from_rgba(picture.width(), picture.height(), data).expect("four values per pixel")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Behind,
    Unknown,
    Front,
}

fn trimap(mask: &Mask, settings: &MattingSettings) -> Vec<Part> {
    let front = Mask::new(
        mask.width(),
        mask.height(),
        mask.data().iter().map(|v| u8::from(*v > settings.foreground)).collect(),
    );
    let behind = Mask::new(
        mask.width(),
        mask.height(),
        mask.data().iter().map(|v| u8::from(*v < settings.background)).collect(),
    );
    let (front, behind) = (
        front.expect("same size as the mask"),
        behind.expect("same size as the mask"),
    );
    let front = blur::erode(&front, settings.erode, 0);
    let behind = blur::erode(&behind, settings.erode, 1);
    front
        .data()
        .iter()
        .zip(behind.data())
        .map(|(f, b)| match (f, b) {
            (_, 1) => Part::Behind,
            (1, _) => Part::Front,
            _ => Part::Unknown,
        })
        .collect()
}

const EPSILON: f64 = 1e-7;
/// Relative residual at which the solver stops: far below one step of eight bits.
const TOLERANCE: f64 = 1e-6;
const MAX_ITERATIONS: usize = 2000;
/// The Laplacian couples a pixel with those at most two away.
const REACH: isize = 2;
const STENCIL: usize = 25;

/// Solves for the uncertain pixels with the certain ones held fixed.
fn solve_alpha(image: &[[f32; 3]], (width, height): (usize, usize), trimap: &[Part], guess: &[u8]) -> Vec<f32> {
    let mut alpha: Vec<f32> = trimap
        .iter()
        .zip(guess)
        .map(|(part, guess)| match part {
            Part::Behind => 0.0,
            Part::Front => 1.0,
            Part::Unknown => f32::from(*guess) / 255.0,
        })
        .collect();
    let mut index = vec![u32::MAX; trimap.len()];
    let unknown: Vec<usize> = (0..trimap.len()).filter(|i| trimap[*i] == Part::Unknown).collect();
    unknown.iter().enumerate().for_each(|(u, i)| index[*i] = u as u32);
    let laplacian = laplacian(image, (width, height), trimap, &index, unknown.len());

    // Neighbours of each uncertain pixel among the uncertain ones, and the pull of the certain ones.
    let mut neighbours = vec![u32::MAX; unknown.len() * STENCIL];
    let mut pull = vec![0f64; unknown.len()];
    for (u, i) in unknown.iter().enumerate() {
        let (x, y) = ((i % width) as isize, (i / width) as isize);
        for k in 0..STENCIL {
            let (nx, ny) = (x + k as isize % 5 - REACH, y + k as isize / 5 - REACH);
            if nx < 0 || ny < 0 || nx >= width as isize || ny >= height as isize {
                continue;
            }
            let j = ny as usize * width + nx as usize;
            match trimap[j] {
                Part::Unknown => neighbours[u * STENCIL + k] = index[j],
                Part::Front => pull[u] -= laplacian[u * STENCIL + k],
                Part::Behind => {}
            }
        }
    }
    let mut x: Vec<f64> = unknown.iter().map(|i| f64::from(alpha[*i])).collect();
    conjugate_gradients(&laplacian, &neighbours, &pull, &mut x);
    for (i, value) in unknown.iter().zip(&x) {
        alpha[*i] = if value.is_finite() {
            value.clamp(0.0, 1.0) as f32
        } else {
            f32::from(guess[*i]) / 255.0
        };
    }
    alpha
}

/// Rows of the matting Laplacian for the uncertain pixels: 25 values each, offsets (-2, -2) to (2, 2).
fn laplacian(
    image: &[[f32; 3]],
    (width, height): (usize, usize),
    trimap: &[Part],
    index: &[u32],
    n_unknown: usize,
) -> Vec<f64> {
    let mut values = vec![0f64; n_unknown * STENCIL];
    let area = 9.0;
    for y in 1..height.saturating_sub(1) {
        for x in 1..width.saturating_sub(1) {
            let window: [usize; 9] = std::array::from_fn(|n| (y + n / 3 - 1) * width + x + n % 3 - 1);
            if window.iter().all(|i| trimap[*i] != Part::Unknown) {
                continue;
            }
            let colours = window.map(|i| image[i].map(f64::from));
            let mean: [f64; 3] = std::array::from_fn(|c| colours.iter().map(|p| p[c]).sum::<f64>() / area);
            let centred = colours.map(|p| -> [f64; 3] { std::array::from_fn(|c| p[c] - mean[c]) });
            let inverse = inverse_covariance(&centred, area);
            for (n, i) in window.iter().enumerate() {
                if index[*i] == u32::MAX {
                    continue;
                }
                let row = &mut values[index[*i] as usize * STENCIL..][..STENCIL];
                let c: [f64; 3] = std::array::from_fn(|r| (0..3).map(|k| inverse[r][k] * centred[n][k]).sum());
                for (m, other) in centred.iter().enumerate() {
                    let same = f64::from(u8::from(m == n));
                    let alike = (0..3).map(|k| c[k] * other[k]).sum::<f64>();
                    let (dx, dy) = (m % 3 + 2 - n % 3, m / 3 + 2 - n / 3);
                    row[dy * 5 + dx] += same - (1.0 + alike) / area;
                }
            }
        }
    }
    values
}

fn inverse_covariance(centred: &[[f64; 3]; 9], area: f64) -> [[f64; 3]; 3] {
    let a = |r: usize, c: usize| {
        let sum: f64 = centred.iter().map(|p| p[r] * p[c]).sum();
        (sum + if r == c { EPSILON } else { 0.0 }) / area
    };
    let (a00, a01, a02, a11, a12, a22) = (a(0, 0), a(0, 1), a(0, 2), a(1, 1), a(1, 2), a(2, 2));
    let minor = [
        [a11 * a22 - a12 * a12, a02 * a12 - a01 * a22, a01 * a12 - a02 * a11],
        [0.0, a00 * a22 - a02 * a02, a01 * a02 - a00 * a12],
        [0.0, 0.0, a00 * a11 - a01 * a01],
    ];
    let det = a00 * minor[0][0] + a01 * minor[0][1] + a02 * minor[0][2];
    std::array::from_fn(|r| std::array::from_fn(|c| minor[r.min(c)][r.max(c)] / det))
}

/// Jacobi-preconditioned conjugate gradients on the stencil matrix.
fn conjugate_gradients(values: &[f64], neighbours: &[u32], b: &[f64], x: &mut [f64]) {
    use rayon::prelude::*;
    let n = b.len();
    let diagonal: Vec<f64> = (0..n).map(|u| values[u * STENCIL + STENCIL / 2].max(1e-12)).collect();
    let times = |v: &[f64], out: &mut [f64]| {
        out.par_chunks_mut(4096).enumerate().for_each(|(chunk, out)| {
            for (k, value) in out.iter_mut().enumerate() {
                let at = (chunk * 4096 + k) * STENCIL;
                *value = neighbours[at..at + STENCIL]
                    .iter()
                    .zip(&values[at..at + STENCIL])
                    .filter(|(j, _)| **j != u32::MAX)
                    .map(|(j, a)| a * v[*j as usize])
                    .sum();
            }
        });
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut product = vec![0.0; n];
    times(x, &mut product);
    let mut residual: Vec<f64> = b.iter().zip(&product).map(|(b, p)| b - p).collect();
    let precondition = |r: &[f64]| -> Vec<f64> { r.iter().zip(&diagonal).map(|(r, d)| r / d).collect() };
    let mut z = precondition(&residual);
    let mut direction = z.clone();
    let mut rz = dot(&residual, &z);
    let goal = TOLERANCE * dot(b, b).sqrt();
    for _ in 0..MAX_ITERATIONS {
        if dot(&residual, &residual).sqrt() <= goal || rz == 0.0 {
            return;
        }
        times(&direction, &mut product);
        let step = rz / dot(&direction, &product);
        if !step.is_finite() {
            return;
        }
        x.iter_mut().zip(&direction).for_each(|(x, d)| *x += step * d);
        residual.iter_mut().zip(&product).for_each(|(r, p)| *r -= step * p);
        z = precondition(&residual);
        let next = dot(&residual, &z);
        let keep = next / rz;
        direction.iter_mut().zip(&z).for_each(|(d, z)| *d = z + keep * *d);
        rz = next;
    }
}

/// The colours of the thing in front, coarse to fine, so that the background does not shine through soft edges.
fn front_colours(image: &[[f32; 3]], alpha: &[f32], (w0, h0): (usize, usize)) -> Vec<[f32; 3]> {
    let mean = |wanted: &dyn Fn(f32) -> bool| {
        let mut sum = [0f32; 3];
        let mut n = 1e-5;
        for (p, _) in image.iter().zip(alpha).filter(|(_, a)| wanted(**a)) {
            (0..3).for_each(|c| sum[c] += p[c]);
            n += 1.0;
        }
        sum.map(|s| s / n)
    };
    let mut level = Level {
        size: (1, 1),
        front: vec![mean(&|a| a > 0.9)],
        behind: vec![mean(&|a| a < 0.1)],
    };
    let n_levels = (w0.max(h0) as f64).log2().ceil().max(1.0);
    for n in 0..=n_levels as usize {
        let side = |len: usize| ((len as f64).powf(n as f64 / n_levels).round() as usize).clamp(1, len);
        let size = (side(w0), side(h0));
        level = Level {
            front: nearest(&level.front, level.size, size),
            behind: nearest(&level.behind, level.size, size),
            size,
        };
        let n_iterations = if size.0 <= 32 && size.1 <= 32 { 10 } else { 2 };
        let image = nearest(image, (w0, h0), size);
        let alpha = nearest(alpha, (w0, h0), size);
        (0..n_iterations).for_each(|_| level.relax(&image, &alpha));
    }
    level.front
}

struct Level {
    size: (usize, usize),
    front: Vec<[f32; 3]>,
    behind: Vec<[f32; 3]>,
}

impl Level {
    /// One sweep in reading order, each pixel made to agree with the picture and with its four neighbours.
    fn relax(&mut self, image: &[[f32; 3]], alpha: &[f32]) {
        const REGULARISATION: f32 = 1e-5;
        let (w, h) = self.size;
        for y in 0..h {
            for x in 0..w {
                let i = y * w + x;
                let (a0, a1) = (alpha[i], 1.0 - alpha[i]);
                let (mut a00, mut a11, a01) = (a0 * a0, a1 * a1, a0 * a1);
                let mut b0 = image[i].map(|v| a0 * v);
                let mut b1 = image[i].map(|v| a1 * v);
                let around = [
                    y * w + x.saturating_sub(1),
                    y * w + (x + 1).min(w - 1),
                    y.saturating_sub(1) * w + x,
                    (y + 1).min(h - 1) * w + x,
                ];
                for j in around {
                    let weight = REGULARISATION + (a0 - alpha[j]).abs();
                    a00 += weight;
                    a11 += weight;
                    for c in 0..3 {
                        b0[c] += weight * self.front[j][c];
                        b1[c] += weight * self.behind[j][c];
                    }
                }
                let inverse = 1.0 / (a00 * a11 - a01 * a01);
                for c in 0..3 {
                    self.front[i][c] = (inverse * (a11 * b0[c] - a01 * b1[c])).clamp(0.0, 1.0);
                    self.behind[i][c] = (inverse * (a00 * b1[c] - a01 * b0[c])).clamp(0.0, 1.0);
                }
            }
        }
    }
}

fn nearest<T: Copy>(values: &[T], from: (usize, usize), to: (usize, usize)) -> Vec<T> {
    (0..to.1)
        .flat_map(|y| {
            let row = (y * from.1 / to.1) * from.0;
            (0..to.0).map(move |x| row + x * from.0 / to.0)
        })
        .map(|i| values[i])
        .collect()
}
