use std::time::{Duration, Instant};

use imaging::{DecodeError, Limits, decode};
use proptest::prelude::*;

use crate::formats::{fixture, picture};

fn refused(bytes: &[u8]) -> DecodeError {
    let begin = Instant::now();
    let error = decode(bytes, &Limits::image_job()).expect_err("must be refused");
    // 250 ms is the promise; refusing from a header takes microseconds.
    assert!(
        begin.elapsed() < Duration::from_millis(250),
        "{error} took {:?}",
        begin.elapsed()
    );
    error
}

#[test]
fn bombs_are_refused_from_their_headers() {
    let mut png = fixture("rgb.png");
    png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    assert!(matches!(
        refused(&png),
        DecodeError::TooLarge {
            width: 65536,
            height: 65536,
            ..
        }
    ));

    // A lossless WebP of 12000×12000 in 40 bytes.
    let mut webp = b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f".to_vec();
    webp.extend((11999u32 | 11999 << 14).to_le_bytes());
    webp.resize(40, 0);
    assert!(matches!(
        refused(&webp),
        DecodeError::TooLarge {
            width: 12000,
            height: 12000,
            ..
        }
    ));

    let mut gif = fixture("flat.gif");
    gif[6..10].copy_from_slice(&[0xff; 4]);
    assert!(matches!(refused(&gif), DecodeError::TooLarge { .. }));

    let mut jpeg = fixture("rgb.jpg");
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    assert!(matches!(refused(&jpeg), DecodeError::TooLarge { .. }));
}

#[test]
fn a_gif_whose_first_frame_is_larger_than_its_canvas_is_refused_or_cut() {
    let mut gif = fixture("flat.gif");
    let descriptor = gif.iter().rposition(|b| *b == 0x2c).unwrap();
    gif[descriptor + 5..descriptor + 9].copy_from_slice(&[0xff; 4]);
    refused(&gif);
}

#[test]
fn narrow_and_empty_pictures_are_refused() {
    let mut png = fixture("rgb.png");
    png[16..24].copy_from_slice(&[0, 0, 0x3f, 0xff, 0, 0, 0, 1]);
    assert!(matches!(
        refused(&png),
        DecodeError::TooNarrow {
            width: 16383,
            height: 1,
            ..
        }
    ));
    png[16..24].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 1]);
    assert!(matches!(refused(&png), DecodeError::Empty { .. }));
}

#[test]
fn other_formats_are_refused_by_their_first_bytes() {
    for bytes in [
        &b"<html><body>rgb.png</body></html>"[..],
        b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>",
        b"PK\x03\x04zip",
        b"%PDF-1.7",
        b"\0\0\0\x20ftypavif",
        b"II*\0tiff",
        b"v/1\x01exr",
        b"BM6\0\0\0bmp",
        b"RIFF\0\0\0\0WAVE",
        b"",
        b"\xff",
    ] {
        assert!(matches!(refused(bytes), DecodeError::UnknownFormat), "{bytes:?}");
    }
}

#[test]
fn a_file_that_breaks_off_is_an_error_and_never_a_grey_picture() {
    for name in [
        "rgb.png",
        "palette_trns.png",
        "animated.png",
        "rgb.jpg",
        "progressive.jpg",
        "cmyk.jpg",
        "orientation_6.jpg",
        "lossy.webp",
        "lossy_alpha.webp",
        "interlaced_source.webp",
        "animated.webp",
        "flat.gif",
        "animated.gif",
    ] {
        let (bytes, whole) = (fixture(name), picture(name));
        for len in 0..bytes.len() {
            if let Ok(decoded) = decode(&bytes[..len], &Limits::image_job()) {
                assert_eq!(
                    decoded,
                    whole,
                    "{name} cut to {len} of {} bytes gave another picture",
                    bytes.len()
                );
            }
        }
    }
}

/// Long enough that a decoder could hand out the rows it has.
#[test]
fn a_webp_of_some_size_that_breaks_off_is_an_error() {
    let noise = (0..200 * 150 * 3u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8);
    let picture = imaging::Picture::from_rgb(200, 150, noise.collect()).unwrap();
    let bytes = imaging::encode_webp(&picture, imaging::WebpOptions::default()).unwrap();
    for len in (0..bytes.len() - 2).step_by(97).chain([bytes.len() - 2]) {
        assert!(
            decode(&bytes[..len], &Limits::image_job()).is_err(),
            "{len} of {}",
            bytes.len()
        );
    }
}

#[test]
fn endless_jpeg_passes_are_refused() {
    let bytes = fixture("progressive.jpg");
    let scan = bytes.windows(2).position(|w| w == [0xff, 0xda]).unwrap();
    let mut bomb = bytes[..bytes.len() - 2].to_vec();
    for _ in 0..100 {
        bomb.extend_from_slice(&bytes[scan..bytes.len() - 2]);
    }
    bomb.extend([0xff, 0xd9]);
    assert!(matches!(refused(&bomb), DecodeError::TooCostly { .. }));
}

#[test]
fn limits_follow_the_advertised_tiles() {
    let header = |width, height| imaging::Header {
        format: imaging::Format::Png,
        width,
        height,
    };
    assert!(Limits::tiles(16).check(&header(2048, 2048)).is_ok());
    assert!(Limits::tiles(4).check(&header(2048, 2048)).is_err());
    assert!(Limits::tiles(0).check(&header(512, 512)).is_ok());
    assert!(Limits::image_job().check(&header(3072, 3072)).is_ok());
    assert!(Limits::image_job().check(&header(3072, 3073)).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn flipped_bits_never_panic_and_never_grow(
        name in prop::sample::select(vec!["rgb.png", "progressive.jpg", "lossy_alpha.webp", "animated.gif", "animated.webp"]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6),
    ) {
        let mut bytes = fixture(name);
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Ok(decoded) = decode(&bytes, &Limits::image_job()) {
            prop_assert!(u64::from(decoded.width()) * u64::from(decoded.height()) <= Limits::image_job().max_pixels);
        }
    }
}
