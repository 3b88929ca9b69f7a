//! Bytes of a stranger become a picture, or an error; nothing in between.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use crate::{DecodeError, Format, Header, Picture, header, jpeg, probe};

/// What a picture may cost before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels (width × height).
    pub max_pixels: u64,
    /// Most times the longer side may exceed the shorter one.
    pub max_aspect: u32,
    /// Most bytes the decoder may hold at once, the decoded picture included.
    pub max_alloc_bytes: u64,
}

impl Limits {
    /// Bounds for a source of an image job: the Horde's largest picture, 3072×3072.
    pub fn image_job() -> Self {
        Self::of_pixels(3072 * 3072)
    }

    /// Bounds for a source of an alchemy form, for a worker that advertises `max_tiles` tiles of 512×512.
    pub fn tiles(max_tiles: u32) -> Self {
        Self::of_pixels(u64::from(max_tiles.clamp(1, 256)) * 512 * 512)
    }

    fn of_pixels(max_pixels: u64) -> Self {
        Self {
            max_pixels,
            max_aspect: 20,
            max_alloc_bytes: 256 << 20,
        }
    }

    /// Whether a picture of this header may be decoded. Costs nothing.
    pub fn check(&self, header: &Header) -> Result<(), DecodeError> {
        let Header { width, height, .. } = *header;
        if u64::from(width) * u64::from(height) > self.max_pixels {
            let max_pixels = self.max_pixels;
            return Err(DecodeError::TooLarge {
                width,
                height,
                max_pixels,
            });
        }
        if u64::from(width.max(height)) > u64::from(width.min(height)) * u64::from(self.max_aspect) {
            let max_aspect = self.max_aspect;
            return Err(DecodeError::TooNarrow {
                width,
                height,
                max_aspect,
            });
        }
        Ok(())
    }
}

/// Decodes the first frame, upright, as 8-bit RGB, or RGBA where any pixel is not opaque.
///
/// Colour profiles are not applied (as Pillow, which the field uses, does not); 16-bit samples are rounded to 8.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, DecodeError> {
    let header = probe(bytes)?;
    limits.check(&header)?;
    header::check_structure(bytes, header.format)?;
    let (mut decoded, orientation) = match header.format {
        Format::Jpeg => jpeg::decode(bytes, limits)?,
        format => with_image(bytes, format, limits)?,
    };
    decoded.apply_orientation(orientation);
    Ok(Picture::from_dynamic(decoded))
}

/// What an image of this format decodes to, as stored, and how it is to be turned.
fn with_image(bytes: &[u8], format: Format, limits: &Limits) -> Result<(DynamicImage, Orientation), DecodeError> {
    let damaged = |source| match source {
        image::ImageError::Limits(_) => DecodeError::of_memory(format),
        image::ImageError::IoError(ref e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
            DecodeError::Truncated { format }
        }
        source => DecodeError::Damaged { format, source },
    };

    let mut reader = ImageReader::with_format(Cursor::new(bytes), image_format(format));
    let mut decoder_limits = image::Limits::default();
    decoder_limits.max_alloc = Some(limits.max_alloc_bytes);
    reader.limits(decoder_limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    // Damaged EXIF is no reason to refuse a picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    Ok((decoded, orientation))
}

fn image_format(format: Format) -> ImageFormat {
    match format {
        Format::Png => ImageFormat::Png,
        Format::Jpeg => ImageFormat::Jpeg,
        Format::WebP => ImageFormat::WebP,
        Format::Gif => ImageFormat::Gif,
    }
}
