//! What hostile pictures cost: at most 250 ms and 300 MiB, whatever their headers say. A binary of its own, because it counts
//! every byte that is allocated.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::io::Write;
use std::time::{Duration, Instant};

use imaging::{DecodeError, Limits, Picture, decode};
use proptest::prelude::*;
use test_support::{Counting, alone, longer_animation, most_during, png_chunk, png_head};

#[global_allocator]
static COUNTING: Counting = Counting;

/// What reliability asks for of anything that is refused.
const MOST_BYTES: usize = 300 << 20;
const MOST_TIME: Duration = Duration::from_millis(250);

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A picture or its refusal, the bytes held on the way and the time.
fn cost(bytes: &[u8]) -> (Result<Picture, DecodeError>, usize, Duration) {
    let begin = Instant::now();
    let (most, decoded) = most_during(|| decode(bytes, &Limits::image_job()));
    (decoded, most, begin.elapsed())
}

/// The first bytes of `rgb.png`, up to its pixels, and the rest.
fn png_parts() -> (Vec<u8>, Vec<u8>) {
    let png = fixture("rgb.png");
    let pixels = png.windows(4).position(|w| w == b"IDAT").unwrap() - 4;
    (png[..pixels].to_vec(), png[pixels..].to_vec())
}

fn zeros_deflated(n_bytes: usize) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    let block = vec![0; 1 << 20];
    (0..n_bytes >> 20).for_each(|_| encoder.write_all(&block).unwrap());
    encoder.finish().unwrap()
}

#[test]
fn what_its_header_refuses_costs_nothing() {
    let _alone = alone();
    let mut webp = b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f".to_vec();
    webp.extend((16382u32 | 16382 << 14).to_le_bytes());
    webp.resize(40, 0);
    let mut png = fixture("rgb.png");
    png[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
    let mut jpeg = fixture("progressive.jpg");
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc2]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    let html = [b"<!doctype html>".to_vec(), vec![b' '; 8 << 20]].concat();
    for bytes in [webp, png, jpeg, html, b"<svg width='99999'/>".to_vec()] {
        let (decoded, most, took) = cost(&bytes);
        assert!(decoded.is_err() && most <= 4096, "{decoded:?} held {most} bytes");
        assert!(took <= MOST_TIME, "{took:?}");
    }
}

#[test]
fn bombs_beside_the_pixels_are_not_set_off() {
    let _alone = alone();
    let (head, rest) = png_parts();
    let bomb = zeros_deflated(320 << 20);
    let plain = decode(&fixture("rgb.png"), &Limits::image_job()).unwrap();
    let profile = png_chunk(b"iCCP", &[b"p\0\0", &bomb[..]].concat());
    let text = png_chunk(b"zTXt", &[b"Comment\0\0", &bomb[..]].concat());
    let itext = png_chunk(b"iTXt", &[b"Comment\0\x01\0\0\0", &bomb[..]].concat());
    for extra in [profile, text, itext] {
        let (decoded, most, took) = cost(&[&head[..], &extra, &rest].concat());
        assert!(most <= MOST_BYTES, "held {most} bytes");
        assert!(took <= 4 * MOST_TIME, "{took:?}");
        if let Ok(picture) = decoded {
            assert_eq!(picture, plain);
        }
    }
    // Pixels that inflate to more than the header says are those that the header says.
    let pixels = png_chunk(b"IDAT", &bomb);
    let (decoded, most, took) = cost(&[&head[..], &pixels, &png_chunk(b"IEND", b"")].concat());
    assert!(most <= 8 << 20 && took <= MOST_TIME, "held {most} bytes, {took:?}");
    assert!(decoded.is_err() || decoded.is_ok_and(|p| (p.width(), p.height()) == (24, 16)));
}

#[test]
fn ten_thousand_frames_cost_no_more_than_the_first() {
    let _alone = alone();
    for name in ["animated.gif", "animated.png", "animated.webp"] {
        let long = longer_animation(&fixture(name), 10_000);
        let (decoded, most, took) = cost(&long);
        let first = decode(&fixture(name), &Limits::image_job()).unwrap();
        assert_eq!(decoded.unwrap(), first, "{name}");
        assert!(
            took <= MOST_TIME && most <= 4 * long.len() + (4 << 20),
            "{name}: {took:?}, {most} bytes"
        );
    }
}

#[test]
fn the_largest_picture_that_is_taken_stays_within_the_bound() {
    let _alone = alone();
    let large = Picture::filled(3072, 3072, [90, 120, 200]);
    let files = [
        imaging::encode_png(&large).unwrap(),
        imaging::encode_webp(&large, imaging::WebpOptions::default()).unwrap(),
    ];
    drop(large);
    for bytes in files {
        let (decoded, most, _) = cost(&bytes);
        assert_eq!(decoded.map(|p| p.width()).unwrap(), 3072);
        assert!(most <= MOST_BYTES, "held {most} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Every byte of the first ones may be anything: sizes, depths, colour types, lengths of chunks and tables.
    #[test]
    fn changed_headers_never_panic_and_stay_within_the_bounds(
        name in prop::sample::select(vec![
            "rgb.png", "palette_trns.png", "animated.png", "rgb.jpg", "progressive.jpg", "cmyk.jpg", "orientation_6.jpg", "lossy.webp",
            "lossy_alpha.webp", "interlaced_source.webp", "animated.webp", "flat.gif", "animated.gif", "orientation_6.webp",
        ]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(1)]), 1..5),
        // PNG's decoder looks at the sums first.
        keep_sums in any::<bool>(),
    ) {
        let _alone = alone();
        let mut bytes = fixture(name);
        let head = bytes.len().min(if name.ends_with("jpg") { 700 } else { 120 });
        for (at, value) in changes {
            let at = at.index(head);
            bytes[at] = value;
        }
        if keep_sums && name.ends_with("png") && bytes[12..16] == *b"IHDR" {
            let [width, height] = [16, 20].map(|at| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()));
            let head = png_head(width, height, bytes[24..29].try_into().unwrap());
            bytes[29..33].copy_from_slice(&head[29..]);
        }
        let (decoded, most, took) = cost(&bytes);
        prop_assert!(most <= MOST_BYTES, "{name} held {most} bytes");
        match decoded {
            Ok(picture) => {
                let limits = Limits::image_job();
                prop_assert!(u64::from(picture.width()) * u64::from(picture.height()) <= limits.max_pixels);
            }
            Err(error) => prop_assert!(took <= 4 * MOST_TIME, "{name}: {error} after {took:?}"),
        }
    }
}
