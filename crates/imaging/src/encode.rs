//! Pictures become bytes: WebP for the Horde, PNG for tools.

use std::io::Cursor;

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

use crate::{EncodeError, Mask, Picture};

/// How to write a lossy WebP.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WebpOptions {
    /// 0 (smallest) to 100 (best). The Horde's workers send 95.
    pub quality: f32,
    /// 0 (fastest) to 6 (smallest file).
    pub method: u8,
}

impl Default for WebpOptions {
    /// Quality 95. Method 4 costs half the time of 6 for files about two per cent larger.
    fn default() -> Self {
        Self {
            quality: 95.0,
            method: 4,
        }
    }
}

/// Longest side WebP can say.
const WEBP_MAX_SIDE: u32 = 16383;

/// Lossy WebP; alpha is kept, lossless.
pub fn encode_webp(picture: &Picture, options: WebpOptions) -> Result<Vec<u8>, EncodeError> {
    let (width, height) = (picture.width(), picture.height());
    if width > WEBP_MAX_SIDE || height > WEBP_MAX_SIDE {
        return Err(EncodeError::TooLarge { width, height });
    }
    let WebpOptions { quality, method } = options;
    if !(0.0..=100.0).contains(&quality) || method > 6 {
        return Err(EncodeError::Options { quality, method });
    }
    let layout = if picture.has_alpha() {
        webp::PixelLayout::Rgba
    } else {
        webp::PixelLayout::Rgb
    };
    let mut config = webp::WebPConfig::new()
        .map_err(|()| EncodeError::Failed("libwebp has another version than its headers".into()))?;
    config.quality = quality;
    config.method = i32::from(method);
    let encoded = webp::Encoder::new(picture.data(), layout, width, height)
        .encode_advanced(&config)
        .map_err(|e| EncodeError::Failed(format!("{e:?}")))?;
    Ok(encoded.to_vec())
}

/// Lossless PNG, RGB or RGBA.
pub fn encode_png(picture: &Picture) -> Result<Vec<u8>, EncodeError> {
    let color = if picture.has_alpha() {
        ExtendedColorType::Rgba8
    } else {
        ExtendedColorType::Rgb8
    };
    png(picture.data(), picture.width(), picture.height(), color)
}

/// Lossless grey PNG.
pub fn encode_png_mask(mask: &Mask) -> Result<Vec<u8>, EncodeError> {
    png(mask.data(), mask.width(), mask.height(), ExtendedColorType::L8)
}

fn png(data: &[u8], width: u32, height: u32, color: ExtendedColorType) -> Result<Vec<u8>, EncodeError> {
    let mut out = Cursor::new(Vec::new());
    PngEncoder::new(&mut out)
        .write_image(data, width, height, color)
        .map_err(|e| EncodeError::Failed(e.to_string()))?;
    Ok(out.into_inner())
}
