//! JPEG without mercy for damaged pixels: the decoder behind the `image` crate is asked for the same pictures, but where the
//! coded data ends early or makes no sense it says so instead of painting the rest grey.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use crate::{DecodeError, Format, Limits};

/// The picture as stored and how it is to be turned. Grey stays grey, everything else becomes RGB.
pub(crate) fn decode(bytes: &[u8], limits: &Limits) -> Result<(DynamicImage, Orientation), DecodeError> {
    let format = Format::Jpeg;
    // Sizes were looked at before; bytes astray between the headers harm nobody, so only the pixels are read strictly.
    let options = DecoderOptions::default()
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .set_strict_mode(false);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(damaged)?;
    let colours = match decoder.input_colorspace() {
        Some(ColorSpace::Luma) => ColorSpace::Luma,
        _ => ColorSpace::RGB,
    };
    decoder.set_options(options.jpeg_set_out_colorspace(colours).set_strict_mode(true));
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let size = decoder.dimensions().zip(decoder.output_buffer_size());
    let ((width, height), len) = size.ok_or(DecodeError::Truncated { format })?;
    if len as u64 > limits.max_alloc_bytes {
        return Err(DecodeError::of_memory(format));
    }
    let mut data = vec![0; len];
    decoder.decode_into(&mut data).map_err(damaged)?;
    let (width, height) = (width as u32, height as u32);
    let decoded = match colours {
        ColorSpace::Luma => GrayImage::from_raw(width, height, data).map(DynamicImage::ImageLuma8),
        _ => RgbImage::from_raw(width, height, data).map(DynamicImage::ImageRgb8),
    };
    let decoded = decoded.ok_or(DecodeError::Truncated { format })?;
    Ok((decoded, orientation.unwrap_or(Orientation::NoTransforms)))
}

fn damaged(error: DecodeErrors) -> DecodeError {
    let source = image::error::DecodingError::new(ImageFormat::Jpeg.into(), error);
    DecodeError::Damaged {
        format: Format::Jpeg,
        source: image::ImageError::Decoding(source),
    }
}
