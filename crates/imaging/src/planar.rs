//! Pictures as networks want them: planes of f32.

use crate::picture::check_size;
use crate::{Mask, Picture, SizeError};

/// `(channels, height, width)` f32, planes one after another, rows from top to bottom. Never empty.
#[derive(Clone, PartialEq)]
pub struct Planar {
    channels: usize,
    width: u32,
    height: u32,
    data: Vec<f32>,
}

/// How a float becomes a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// `floor(255 x)`, as the reference saves pictures.
    Truncate,
    /// `round(255 x)`, half to even, as the face restorers do.
    Nearest,
}

impl Planar {
    /// Wraps `channels * height * width` values.
    pub fn new(channels: usize, width: u32, height: u32, data: Vec<f32>) -> Result<Self, SizeError> {
        check_size(width, height, channels.try_into().unwrap_or(u32::MAX), data.len())?;
        Ok(Self {
            channels,
            width,
            height,
            data,
        })
    }

    /// Number of planes.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// All values, plane by plane.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// The values themselves.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// One plane; `None` beyond the last.
    pub fn plane(&self, channel: usize) -> Option<&[f32]> {
        let size = self.width as usize * self.height as usize;
        self.data.get(channel.checked_mul(size)?..)?.get(..size)
    }

    /// `(x - mean) / std` per channel; channels beyond the lists are left alone.
    pub fn normalised(mut self, mean: &[f32], std: &[f32]) -> Self {
        let size = self.width as usize * self.height as usize;
        for ((plane, mean), std) in self.data.chunks_exact_mut(size).zip(mean).zip(std) {
            plane.iter_mut().for_each(|v| *v = (*v - mean) / std);
        }
        self
    }

    /// A window, cut to what lies inside; `None` when nothing does.
    pub fn crop(&self, x: u32, y: u32, width: u32, height: u32) -> Option<Planar> {
        let width = width.min(self.width.checked_sub(x)?);
        let height = height.min(self.height.checked_sub(y)?);
        if width == 0 || height == 0 {
            return None;
        }
        let size = self.width as usize * self.height as usize;
        let mut data = Vec::with_capacity(self.channels * width as usize * height as usize);
        for plane in self.data.chunks_exact(size) {
            for row in y..y + height {
                let at = row as usize * self.width as usize + x as usize;
                data.extend_from_slice(&plane[at..at + width as usize]);
            }
        }
        Some(Self {
            channels: self.channels,
            width,
            height,
            data,
        })
    }

    /// The first three planes (one plane is repeated), 0..=1 clamped, NaN as 0, to 8 bits.
    pub fn to_picture(&self, rounding: Rounding) -> Picture {
        let size = self.width as usize * self.height as usize;
        let last = self.channels - 1;
        let planes = [0, 1.min(last), 2.min(last)].map(|c| &self.data[c * size..(c + 1) * size]);
        let data = (0..size)
            .flat_map(|i| planes.map(|p| to_byte(p[i], rounding)))
            .collect();
        Picture::from_rgb(self.width, self.height, data).expect("three values per pixel")
    }

    /// One plane, 0..=1 clamped, NaN as 0, to 8 bits; `None` beyond the last plane.
    pub fn to_mask(&self, channel: usize, rounding: Rounding) -> Option<Mask> {
        let data = self.plane(channel)?.iter().map(|v| to_byte(*v, rounding)).collect();
        Mask::new(self.width, self.height, data).ok()
    }
}

fn to_byte(value: f32, rounding: Rounding) -> u8 {
    let scaled = value.clamp(0.0, 1.0) * 255.0;
    // A cast saturates and turns NaN into 0.
    match rounding {
        Rounding::Truncate => scaled as u8,
        Rounding::Nearest => scaled.round_ties_even() as u8,
    }
}

impl Picture {
    /// Three planes (alpha is dropped) in `0.0..=1.0`.
    pub fn to_planar(&self) -> Planar {
        let channels = self.channels();
        let data = (0..3)
            .flat_map(|c| self.data().chunks_exact(channels).map(move |p| f32::from(p[c]) / 255.0))
            .collect();
        Planar::new(3, self.width(), self.height(), data).expect("three planes of one picture")
    }
}

impl Mask {
    /// One plane in `0.0..=1.0`.
    pub fn to_planar(&self) -> Planar {
        let data = self.data().iter().map(|v| f32::from(*v) / 255.0).collect();
        Planar::new(1, self.width(), self.height(), data).expect("one plane of one mask")
    }
}

impl std::fmt::Debug for Planar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Planar({}, {}x{})", self.channels, self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_the_way_to_floats_and_back() {
        let bytes: Vec<u8> = (0..=255).flat_map(|v| [v, 255 - v, v / 2]).collect();
        let picture = Picture::from_rgb(16, 16, bytes).unwrap();
        assert_eq!(picture.to_planar().to_picture(Rounding::Nearest), picture);
    }

    #[test]
    fn values_outside_the_range_and_nan_are_clamped() {
        let planar = Planar::new(1, 4, 1, vec![-1.0, f32::NAN, 2.0, f32::INFINITY]).unwrap();
        let mask = planar.to_mask(0, Rounding::Truncate).unwrap();
        assert_eq!(mask.data(), [0, 0, 255, 255]);
    }

    #[test]
    fn a_buffer_of_the_wrong_length_is_refused() {
        assert!(Planar::new(3, u32::MAX, u32::MAX, vec![0.0; 3]).is_err());
        assert!(Planar::new(0, 1, 1, vec![]).is_err());
    }
}
