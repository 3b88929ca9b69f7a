//! Resampling: anti-aliased on 8-bit pictures as Pillow does it, point-sampled on planar floats as torch does it.

use crate::resample::{premultiply, resample, resample_rows, unpremultiply};
use crate::{Mask, Picture, Planar};

/// Anti-aliased filters of 8-bit pictures (the support grows when shrinking). Alpha weights the colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Pixel whose centre is nearest.
    Nearest,
    /// Mean of the covered pixels.
    Box,
    /// Triangle, support 1.
    Bilinear,
    /// Cubic with a = -0.5, support 2.
    Bicubic,
    /// Windowed sinc, support 3.
    Lanczos,
}

/// Point-sampled filters of planar floats, pixel centres aligned (torch's `align_corners=False`, no anti-aliasing).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlanarFilter {
    /// `floor(x * scale)`, torch's `nearest`.
    Nearest,
    /// `floor((x + 0.5) * scale)`, torch's `nearest-exact`.
    NearestExact,
    /// Two taps each way.
    Bilinear,
    /// Four taps each way, a = -0.75.
    Bicubic,
    /// Mean of the covered area, torch's adaptive average pooling.
    Area,
}

impl Picture {
    /// Resampled to `width`×`height`; a side of 0 becomes 1.
    pub fn resized(&self, width: u32, height: u32, filter: Filter) -> Picture {
        let (width, height) = (width.max(1), height.max(1));
        if (width, height) == (self.width(), self.height()) {
            return self.clone();
        }
        let from = (self.width() as usize, self.height() as usize);
        let to = (width as usize, height as usize);
        let made = if !self.has_alpha() {
            Picture::from_rgb(width, height, resample::<3>(self.data(), from, to, filter))
        } else if filter == Filter::Nearest {
            Picture::from_rgba(width, height, resample::<4>(self.data(), from, to, filter))
        } else {
            let weighted = premultiply(self.data());
            Picture::from_rgba(width, height, unpremultiply(resample::<4>(&weighted, from, to, filter)))
        };
        made.expect("the resampler fills the buffer it was given")
    }

    /// CLIP's preparation: the shorter side becomes `side` (bicubic), then the middle square is cut out. Alpha is dropped.
    pub fn clip_square(&self, side: u32) -> Picture {
        let side = side.max(1);
        let rgb = self.to_rgb();
        let (short, long) = (self.width().min(self.height()), self.width().max(self.height()));
        let long = (u64::from(side) * u64::from(long) / u64::from(short)).min(u64::from(u32::MAX)) as u32;
        let (width, height) = if self.width() <= self.height() {
            (side, long)
        } else {
            (long, side)
        };
        rgb.resized(width, height, Filter::Bicubic)
            .crop((width - side) / 2, (height - side) / 2, side, side)
            .expect("both sides are at least `side` long")
    }
}

impl Mask {
    /// Resampled to `width`×`height`; a side of 0 becomes 1.
    pub fn resized(&self, width: u32, height: u32, filter: Filter) -> Mask {
        let (width, height) = (width.max(1), height.max(1));
        if (width, height) == (self.width(), self.height()) {
            return self.clone();
        }
        let from = (self.width() as usize, self.height() as usize);
        let data = resample::<1>(self.data(), from, (width as usize, height as usize), filter);
        Mask::new(width, height, data).expect("the resampler fills the buffer it was given")
    }

    /// Rows `rows` of what [`Self::resized`] gives for the same width and `height`; cut to what there is, at least one row.
    pub fn resized_rows(&self, height: u32, rows: std::ops::Range<u32>, filter: Filter) -> Mask {
        let height = height.max(1);
        let end = rows.end.clamp(1, height);
        let begin = rows.start.min(end - 1);
        let from = (self.width() as usize, self.height() as usize);
        let rows = begin as usize..end as usize;
        let data = resample_rows::<1>(self.data(), from, height as usize, rows, filter);
        Mask::new(self.width(), end - begin, data).expect("the resampler fills the buffer it was given")
    }
}

impl Planar {
    /// Resampled to `width`×`height`; a side of 0 becomes 1. The filter works on rows, then on columns.
    pub fn resized(&self, width: u32, height: u32, filter: PlanarFilter) -> Planar {
        let (width, height) = (width.max(1) as usize, height.max(1) as usize);
        let (from_w, from_h) = (self.width() as usize, self.height() as usize);
        if (width, height) == (from_w, from_h) {
            return self.clone();
        }
        let columns = taps(from_w, width, filter);
        let rows = taps(from_h, height, filter);
        let mut out = Vec::with_capacity(self.channels() * width * height);
        for plane in self.data().chunks_exact(from_w * from_h) {
            let narrow: Vec<f32> = plane
                .chunks_exact(from_w)
                .flat_map(|row| columns.iter().map(|t| t.iter().map(|(i, w)| row[*i] * w).sum::<f32>()))
                .collect(); // (from_h, width)
            for t in &rows {
                out.extend((0..width).map(|x| t.iter().map(|(i, w)| narrow[i * width + x] * w).sum::<f32>()));
            }
        }
        Planar::new(self.channels(), width as u32, height as u32, out).expect("every tap list yields one value")
    }
}

/// For each target index the source indices and their weights.
fn taps(from: usize, to: usize, filter: PlanarFilter) -> Vec<Vec<(usize, f32)>> {
    let scale = from as f32 / to as f32;
    let last = from as isize - 1;
    let inside = |i: isize| i.clamp(0, last) as usize;
    (0..to)
        .map(|x| match filter {
            PlanarFilter::Nearest => vec![(inside((x as f32 * scale).floor() as isize), 1.0)],
            PlanarFilter::NearestExact => vec![(inside(((x as f32 + 0.5) * scale).floor() as isize), 1.0)],
            PlanarFilter::Bilinear => {
                let centre = ((x as f32 + 0.5) * scale - 0.5).max(0.0);
                let low = centre.floor();
                let part = centre - low;
                vec![(inside(low as isize), 1.0 - part), (inside(low as isize + 1), part)]
            }
            PlanarFilter::Bicubic => {
                let centre = (x as f32 + 0.5) * scale - 0.5;
                let low = centre.floor();
                let part = centre - low;
                cubic(part)
                    .iter()
                    .zip(-1..)
                    .map(|(w, step)| (inside(low as isize + step), *w))
                    .collect()
            }
            PlanarFilter::Area => {
                let begin = x * from / to;
                let end = ((x + 1) * from).div_ceil(to);
                let weight = 1.0 / (end - begin) as f32;
                (begin..end).map(|i| (i, weight)).collect()
            }
        })
        .collect()
}

/// Keys' cubic with a = -0.75 (torch, OpenCV) at distances `1 + t`, `t`, `1 - t`, `2 - t`.
fn cubic(t: f32) -> [f32; 4] {
    const A: f32 = -0.75;
    let near = |d: f32| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f32| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    [far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_by_themselves_are_those_of_the_whole() {
        let mask = Mask::new(7, 9, (0..63).map(|i| (i * 37 % 256) as u8).collect()).unwrap();
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos] {
            for height in [4, 9, 31] {
                let whole = mask.resized(7, height, filter);
                let parts = [0..2, 2..3, 3..height].map(|rows| mask.resized_rows(height, rows, filter));
                let joined: Vec<u8> = parts.iter().flat_map(|part| part.data().to_vec()).collect();
                assert_eq!(joined, whole.data(), "{filter:?} to {height} rows");
            }
        }
        assert_eq!(mask.resized_rows(0, 5..9, Filter::Bicubic).height(), 1);
    }

    #[test]
    fn planar_filters_agree_with_torch_interpolate() {
        // torch.nn.functional.interpolate(torch.tensor([[[0., 1., 4., 9.]]]) as (1, 1, 1, 4), size=(1, n), mode=…)
        let source = Planar::new(1, 4, 1, vec![0.0, 1.0, 4.0, 9.0]).unwrap();
        let check = |width, filter, expected: &[f32]| {
            let got = source.resized(width, 1, filter);
            for (g, e) in got.data().iter().zip(expected) {
                assert!((g - e).abs() < 1e-5, "{filter:?} {:?} against {expected:?}", got.data());
            }
            assert_eq!(got.data().len(), expected.len());
        };
        check(6, PlanarFilter::Nearest, &[0.0, 0.0, 1.0, 4.0, 4.0, 9.0]);
        check(6, PlanarFilter::NearestExact, &[0.0, 1.0, 1.0, 4.0, 9.0, 9.0]);
        check(
            8,
            PlanarFilter::Bilinear,
            &[0.0, 0.25, 0.75, 1.75, 3.25, 5.25, 7.75, 9.0],
        );
        check(2, PlanarFilter::Area, &[0.5, 6.5]);
        check(3, PlanarFilter::Area, &[0.5, 2.5, 6.5]);
        check(2, PlanarFilter::Bicubic, &[0.21875, 6.78125]);
    }
}
