//! Affine warps: cut an upright face out of a picture and lay it back.

use crate::Planar;

/// `x' = m[0] x + m[1] y + m[2]`, `y' = m[3] x + m[4] y + m[5]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine(pub [f64; 6]);

impl Affine {
    /// The same point under the map.
    pub fn apply(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let m = &self.0;
        (m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5])
    }

    /// The way back; `None` for a map that flattens the plane.
    pub fn inverse(&self) -> Option<Affine> {
        let [a, b, c, d, e, f] = self.0;
        let det = a * e - b * d;
        if !det.is_finite() || det.abs() < 1e-12 {
            return None;
        }
        Some(Affine([
            e / det,
            -b / det,
            (b * f - c * e) / det,
            -d / det,
            a / det,
            (c * d - a * f) / det,
        ]))
    }

    /// Rotation, uniform scale and shift that best map `from` onto `to` in the least-squares sense (Umeyama without
    /// reflection). `None` when the points coincide or are not finite.
    pub fn similarity(from: &[(f64, f64)], to: &[(f64, f64)]) -> Option<Affine> {
        let n = from.len().min(to.len());
        if n < 2 {
            return None;
        }
        let mean = |points: &[(f64, f64)]| {
            let (x, y) = points[..n].iter().fold((0.0, 0.0), |(x, y), p| (x + p.0, y + p.1));
            (x / n as f64, y / n as f64)
        };
        let (from_mean, to_mean) = (mean(from), mean(to));
        let (mut dot, mut cross, mut norm) = (0.0, 0.0, 0.0);
        for (p, q) in from.iter().zip(to) {
            let (px, py) = (p.0 - from_mean.0, p.1 - from_mean.1);
            let (qx, qy) = (q.0 - to_mean.0, q.1 - to_mean.1);
            dot += px * qx + py * qy;
            cross += px * qy - py * qx;
            norm += px * px + py * py;
        }
        let (a, b) = (dot / norm, cross / norm);
        if norm <= 1e-12 || !a.is_finite() || !b.is_finite() || a.hypot(b) <= 1e-12 {
            return None;
        }
        Some(Affine([
            a,
            -b,
            to_mean.0 - a * from_mean.0 + b * from_mean.1,
            b,
            a,
            to_mean.1 - b * from_mean.0 - a * from_mean.1,
        ]))
    }
}

/// Warps every plane to `width`×`height` by bilinear sampling. `back` maps target pixel centres to source pixels;
/// `border[c]` is the value beyond the edges of plane `c` (the last entry stands for the planes after it, none means 0).
pub fn affine(planar: &Planar, back: &Affine, (width, height): (u32, u32), border: &[f32]) -> Planar {
    let (width, height) = (width.max(1), height.max(1));
    let (from_w, from_h) = (i64::from(planar.width()), i64::from(planar.height()));
    let size = from_w as usize * from_h as usize;
    let mut out = Vec::with_capacity(planar.channels() * width as usize * height as usize);
    for (channel, plane) in planar.data().chunks_exact(size).enumerate() {
        let outside = border.get(channel).or(border.last()).copied().unwrap_or(0.0);
        let at = |x: i64, y: i64| {
            if (0..from_w).contains(&x) && (0..from_h).contains(&y) {
                plane[(y * from_w + x) as usize]
            } else {
                outside
            }
        };
        for y in 0..height {
            for x in 0..width {
                let (sx, sy) = back.apply((f64::from(x), f64::from(y)));
                let (x0, y0) = (sx.floor(), sy.floor());
                let (tx, ty) = ((sx - x0) as f32, (sy - y0) as f32);
                // Far outside, casts saturate and every tap is border.
                let (x0, y0) = ((x0 as i64).clamp(-2, from_w + 1), (y0 as i64).clamp(-2, from_h + 1));
                let top = at(x0, y0) * (1.0 - tx) + at(x0 + 1, y0) * tx;
                let bottom = at(x0, y0 + 1) * (1.0 - tx) + at(x0 + 1, y0 + 1) * tx;
                out.push(top * (1.0 - ty) + bottom * ty);
            }
        }
    }
    Planar::new(planar.channels(), width, height, out).expect("one value per pixel and plane")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_similarity_is_found_again_and_undone() {
        let truth = Affine([0.8, -0.3, 5.0, 0.3, 0.8, -2.0]);
        let from = [(0.0, 0.0), (10.0, 1.0), (3.0, 8.0), (7.0, 7.0)];
        let to = from.map(|p| truth.apply(p));
        let found = Affine::similarity(&from, &to).unwrap();
        for (a, b) in found.0.iter().zip(truth.0) {
            assert!((a - b).abs() < 1e-9);
        }
        let back = found.inverse().unwrap().apply(to[2]);
        assert!((back.0 - 3.0).abs() < 1e-9 && (back.1 - 8.0).abs() < 1e-9);
    }

    #[test]
    fn points_in_one_place_have_no_similarity() {
        assert_eq!(Affine::similarity(&[(1.0, 1.0); 5], &[(2.0, 2.0); 5]), None);
        assert_eq!(
            Affine::similarity(&[(f64::NAN, 1.0), (2.0, 2.0)], &[(2.0, 2.0), (3.0, 3.0)]),
            None
        );
    }

    #[test]
    fn a_shift_moves_pixels_and_shows_the_border() {
        let source = Planar::new(1, 3, 1, vec![1.0, 2.0, 3.0]).unwrap();
        let moved = affine(&source, &Affine([1.0, 0.0, 1.0, 0.0, 1.0, 0.0]), (3, 1), &[9.0]);
        assert_eq!(moved.data(), [2.0, 3.0, 9.0]);
    }
}
