//! What is damaged in the middle: a picture that the decoder could follow to the end, or an error; never one painted grey.

use image::ExtendedColorType::Rgb8;
use image::codecs::jpeg::JpegEncoder;
use imaging::{Limits, Picture, decode};

use crate::formats::{fixture, picture};

fn taken(bytes: &[u8]) -> Picture {
    decode(bytes, &Limits::image_job()).unwrap_or_else(|e| panic!("{e}"))
}

/// Baseline, all colours in full size.
fn jpeg(shown: &Picture, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    encoder
        .encode(shown.data(), shown.width(), shown.height(), Rgb8)
        .expect("a buffer takes anything");
    bytes
}

/// Where the coded pixels of the first scan begin.
fn pixels_begin(bytes: &[u8]) -> usize {
    let scan = bytes.windows(2).position(|w| w == [0xff, 0xda]).expect("a scan");
    scan + 2 + usize::from(bytes[scan + 3])
}

#[test]
fn no_flipped_bit_of_a_jpeg_paints_a_part_of_it_grey() {
    // Pictures of 96×64 pixels without a grey one.
    let shown = picture("passes.jpg.expected.png");
    for (name, bytes) in [
        ("baseline", jpeg(&shown, 85)),
        ("passes", fixture("passes.jpg")),
        ("restarts", fixture("restarts.jpg")),
    ] {
        let mut n_refused = 0;
        for bit in pixels_begin(&bytes) * 8..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 0x80 >> (bit % 8);
            let Ok(decoded) = decode(&flipped, &Limits::image_job()) else {
                n_refused += 1;
                continue;
            };
            let grey = decoded.data().chunks_exact(3).filter(|pixel| *pixel == [128; 3]);
            assert!(grey.count() < 64, "{name}: bit {bit} hides a block or more");
        }
        assert!(n_refused > 0, "{name}");
    }
}

#[test]
fn a_sound_jpeg_is_taken_in_every_size_however_few_bytes_its_rows_take() {
    for side in 1..=33 {
        let flat = Picture::filled(side, 34 - side, [9, 200, 70]);
        let mut noisy = flat.clone();
        let noise = |at: usize| ((at as u32).wrapping_mul(2_654_435_761) >> 24) as u8;
        noisy
            .data_mut()
            .iter_mut()
            .enumerate()
            .for_each(|(at, v)| *v = noise(at));
        for (shown, quality) in [(&flat, 1), (&flat, 100), (&noisy, 1), (&noisy, 100)] {
            let Ok(decoded) = decode(&jpeg(shown, quality), &Limits::tiles(1)) else {
                assert!(side.max(34 - side) > 20 * side.min(34 - side), "{side} at {quality}");
                continue;
            };
            assert_eq!((decoded.width(), decoded.height()), (shown.width(), shown.height()));
        }
    }
}

#[test]
fn bytes_astray_around_the_headers_and_behind_the_end_change_nothing() {
    let bytes = fixture("rgb.jpg");
    let whole = taken(&bytes);
    let second = jpeg(&Picture::filled(300, 200, [1, 2, 3]), 50);
    let tables = bytes.windows(2).position(|w| w == [0xff, 0xdb]).unwrap();
    let with = |extra: &[u8]| [&bytes[..tables], extra, &bytes[tables..]].concat();
    for (name, odd) in [
        ("filled markers", with(&[0xff; 9])),
        ("stray bytes", with(&[0; 9])),
        ("a comment", with(b"\xff\xfe\0\x06abcd")),
        ("a second picture", [&bytes[..], &second].concat()),
        ("an archive", [&bytes[..], b"PK\x03\x04picture"].concat()),
    ] {
        assert_eq!(taken(&odd), whole, "{name}");
    }
}
