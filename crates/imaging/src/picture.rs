//! The two kinds of 8-bit picture: colour (with or without alpha) and grey.

use image::DynamicImage;

use crate::SizeError;

/// Interleaved 8-bit RGB or RGBA (alpha not premultiplied), rows from top to bottom. Never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    has_alpha: bool,
    data: Vec<u8>,
}

/// 8-bit grey, rows from top to bottom. Never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Mask {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

/// `width * height * channels`, checked, and equal to `len`.
pub(crate) fn check_size(width: u32, height: u32, channels: u32, len: usize) -> Result<(), SizeError> {
    let wanted = (width as usize)
        .checked_mul(height as usize)
        .and_then(|n| n.checked_mul(channels as usize));
    if wanted != Some(len) || len == 0 {
        return Err(SizeError {
            width,
            height,
            channels,
            len,
        });
    }
    Ok(())
}

impl Picture {
    /// Wraps `width * height * 3` bytes.
    pub fn from_rgb(width: u32, height: u32, data: Vec<u8>) -> Result<Self, SizeError> {
        check_size(width, height, 3, data.len())?;
        Ok(Self {
            width,
            height,
            has_alpha: false,
            data,
        })
    }

    /// Wraps `width * height * 4` bytes.
    pub fn from_rgba(width: u32, height: u32, data: Vec<u8>) -> Result<Self, SizeError> {
        check_size(width, height, 4, data.len())?;
        Ok(Self {
            width,
            height,
            has_alpha: true,
            data,
        })
    }

    /// One colour all over; a side of 0 becomes 1.
    pub fn filled(width: u32, height: u32, rgb: [u8; 3]) -> Self {
        let (width, height) = (width.max(1), height.max(1));
        let data = rgb.repeat(width as usize * height as usize);
        Self {
            width,
            height,
            has_alpha: false,
            data,
        }
    }

    pub(crate) fn from_dynamic(image: DynamicImage) -> Self {
        let (width, height) = (image.width(), image.height());
        // Many files carry an alpha channel that says nothing.
        if image.color().has_alpha() {
            let rgba = image.to_rgba8().into_raw();
            if rgba.chunks_exact(4).any(|p| p[3] != 255) {
                return Self {
                    width,
                    height,
                    has_alpha: true,
                    data: rgba,
                };
            }
        }
        let data = image.into_rgb8().into_raw();
        Self {
            width,
            height,
            has_alpha: false,
            data,
        }
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// 3 or 4.
    pub fn channels(&self) -> usize {
        if self.has_alpha { 4 } else { 3 }
    }

    /// Whether each pixel has a fourth value.
    pub fn has_alpha(&self) -> bool {
        self.has_alpha
    }

    /// The bytes: `height` rows of `width` pixels of [`Self::channels`] values.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The bytes, to be changed in place.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// Red, green, blue of a pixel; `None` outside.
    pub fn rgb_at(&self, x: u32, y: u32) -> Option<[u8; 3]> {
        if x >= self.width || y >= self.height {
            return None;
        }
        let at = (y as usize * self.width as usize + x as usize) * self.channels();
        Some([self.data[at], self.data[at + 1], self.data[at + 2]])
    }

    /// The alpha channel, if there is one that is not 255 all over.
    pub fn alpha(&self) -> Option<Mask> {
        if !self.has_alpha {
            return None;
        }
        let data: Vec<u8> = self.data.chunks_exact(4).map(|p| p[3]).collect();
        if data.iter().all(|a| *a == 255) {
            return None;
        }
        Some(Mask {
            width: self.width,
            height: self.height,
            data,
        })
    }

    /// The colours without alpha, as stored (nothing is blended).
    pub fn to_rgb(&self) -> Picture {
        if !self.has_alpha {
            return self.clone();
        }
        let data = self.data.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect();
        Self {
            width: self.width,
            height: self.height,
            has_alpha: false,
            data,
        }
    }

    /// Laid over one colour: the transparent parts show `rgb`.
    pub fn over(&self, rgb: [u8; 3]) -> Picture {
        if !self.has_alpha {
            return self.clone();
        }
        let blend = |value: u8, below: u8, alpha: u8| {
            let sum = u32::from(value) * u32::from(alpha) + u32::from(below) * (255 - u32::from(alpha));
            ((sum + 127) / 255) as u8
        };
        let data = self
            .data
            .chunks_exact(4)
            .flat_map(|p| {
                [
                    blend(p[0], rgb[0], p[3]),
                    blend(p[1], rgb[1], p[3]),
                    blend(p[2], rgb[2], p[3]),
                ]
            })
            .collect();
        Self {
            width: self.width,
            height: self.height,
            has_alpha: false,
            data,
        }
    }

    /// The same colours with `alpha` as transparency; an alpha of another size is resampled first.
    pub fn with_alpha(&self, alpha: &Mask) -> Picture {
        let resized;
        let alpha = if (alpha.width, alpha.height) == (self.width, self.height) {
            alpha
        } else {
            resized = alpha.resized(self.width, self.height, crate::Filter::Bilinear);
            &resized
        };
        let data = self
            .data
            .chunks_exact(self.channels())
            .zip(&alpha.data)
            .flat_map(|(p, a)| [p[0], p[1], p[2], *a])
            .collect();
        Self {
            width: self.width,
            height: self.height,
            has_alpha: true,
            data,
        }
    }

    /// A window of the picture, cut to what lies inside; `None` when nothing does.
    pub fn crop(&self, x: u32, y: u32, width: u32, height: u32) -> Option<Picture> {
        let width = width.min(self.width.checked_sub(x)?);
        let height = height.min(self.height.checked_sub(y)?);
        if width == 0 || height == 0 {
            return None;
        }
        let channels = self.channels();
        let data = (y..y + height)
            .flat_map(|row| {
                let at = (row as usize * self.width as usize + x as usize) * channels;
                self.data[at..at + width as usize * channels].iter().copied()
            })
            .collect();
        Some(Self {
            width,
            height,
            has_alpha: self.has_alpha,
            data,
        })
    }

    /// Luma by ITU-R 601 as Pillow computes it.
    pub fn to_grey(&self) -> Mask {
        let data = self
            .data
            .chunks_exact(self.channels())
            .map(|p| {
                let sum = u32::from(p[0]) * 19595 + u32::from(p[1]) * 38470 + u32::from(p[2]) * 7471;
                ((sum + 0x8000) >> 16) as u8
            })
            .collect();
        Mask {
            width: self.width,
            height: self.height,
            data,
        }
    }
}

impl Mask {
    /// Wraps `width * height` bytes.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Result<Self, SizeError> {
        check_size(width, height, 1, data.len())?;
        Ok(Self { width, height, data })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The bytes: `height` rows of `width` values.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// White becomes black and the other way round.
    pub fn inverted(&self) -> Mask {
        Self {
            data: self.data.iter().map(|v| 255 - v).collect(),
            ..*self
        }
    }

    /// 255 where the value is at least `at`, else 0.
    pub fn thresholded(&self, at: u8) -> Mask {
        Self {
            data: self.data.iter().map(|v| if *v >= at { 255 } else { 0 }).collect(),
            ..*self
        }
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = if self.has_alpha { "RGBA" } else { "RGB" };
        write!(f, "Picture({}x{} {kind})", self.width, self.height)
    }
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mask({}x{})", self.width, self.height)
    }
}
