use std::path::PathBuf;

use imaging::{Filter, Limits, Mask, Picture, WebpOptions, decode, encode_png, encode_webp};

pub fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub fn picture(name: &str) -> Picture {
    decode(&fixture(name), &Limits::image_job()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Greatest and mean difference over all values; sizes and channels must agree.
pub fn difference(a: &Picture, b: &Picture) -> (u8, f64) {
    assert_eq!(
        (a.width(), a.height(), a.channels()),
        (b.width(), b.height(), b.channels())
    );
    let apart = a.data().iter().zip(b.data()).map(|(a, b)| a.abs_diff(*b));
    let sum: f64 = apart.clone().map(f64::from).sum();
    (
        apart.max().expect("a picture is never empty"),
        sum / a.data().len() as f64,
    )
}

fn check(name: &str, max_mean: f64) {
    let (max, mean) = difference(&picture(name), &picture(&format!("{name}.expected.png")));
    assert!(mean <= max_mean, "{name}: differs by at most {max}, on average {mean}");
}

#[test]
fn lossless_flavours_decode_to_the_very_bytes() {
    for name in [
        "rgb.png",
        "rgba.png",
        "grey.png",
        "grey_alpha.png",
        "palette.png",
        "palette_trns.png",
        "bilevel.png",
        "grey16.png",
        "interlaced_source.webp",
    ] {
        check(name, 0.0);
    }
}

#[test]
fn lossy_flavours_decode_as_pillow_does() {
    for name in [
        "lossy.webp",
        "lossy_alpha.webp",
        "rgb.jpg",
        "progressive.jpg",
        "grey.jpg",
        "cmyk.jpg",
        "cmyk_plain.jpg",
        "ycck.jpg",
        "passes.jpg",
        "restarts.jpg",
    ] {
        check(name, 1.0);
    }
}

#[test]
fn an_animation_is_its_first_frame() {
    check("animated.webp", 0.0);
    check("animated.png", 0.0);
    check("animated.gif", 0.0);
    let flat = picture("flat.gif");
    assert_eq!(flat.rgb_at(5, 5), Some([200, 80, 40]));
}

#[test]
fn exif_orientation_is_applied_once() {
    for n in 2..=8 {
        check(&format!("orientation_{n}.jpg"), 1.0);
    }
    check("orientation_6.png", 0.0);
    check("orientation_6.webp", 0.0);
}

#[test]
fn exif_orientation_one_leaves_the_picture_as_it_is_and_nonsense_too() {
    // The same file with another number under the tag 0x0112: 3 turns it by half.
    let of = |n: u8| {
        let mut bytes = fixture("orientation_3.jpg");
        let tag = bytes
            .windows(4)
            .position(|w| w == [1, 0x12, 0, 3] || w == [0x12, 1, 3, 0])
            .unwrap();
        let value = (tag + 8..tag + 12).find(|at| bytes[*at] == 3).unwrap();
        bytes[value] = n;
        decode(&bytes, &Limits::image_job()).unwrap()
    };
    let turned: Vec<u8> = of(3).data().chunks_exact(3).rev().flatten().copied().collect();
    for n in [0, 1, 9, 255] {
        assert_eq!(of(n).data(), turned, "orientation {n}");
    }
}

#[test]
fn sixteen_bits_of_colour_and_alpha_are_rounded_to_eight() {
    let values: Vec<u16> = (0..64u32).map(|n| (n * 1040 % 65_536) as u16).collect();
    let mut bytes = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut bytes);
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
    image::ImageEncoder::write_image(encoder, &raw, 4, 4, image::ExtendedColorType::Rgba16).unwrap();
    let decoded = decode(&bytes, &Limits::image_job()).unwrap();
    let expected: Vec<u8> = values.iter().map(|v| ((u32::from(*v) + 128) / 257) as u8).collect();
    assert_eq!(decoded.data(), expected);
}

#[test]
fn the_smallest_picture_is_one() {
    let bytes = encode_png(&Picture::filled(1, 1, [7, 8, 9])).unwrap();
    assert_eq!(decode(&bytes, &Limits::image_job()).unwrap().data(), [7, 8, 9]);
}

#[test]
fn webp_keeps_colours_and_alpha() {
    let source = picture("rgba.png").resized(96, 64, Filter::Bicubic);
    for method in 0..=6 {
        let bytes = encode_webp(&source, WebpOptions { quality: 95.0, method }).unwrap();
        let back = decode(&bytes, &Limits::image_job()).unwrap();
        assert_eq!(back.alpha(), source.alpha(), "alpha is lossless");
        let (_, mean) = difference(&back.over([255; 3]), &source.over([255; 3]));
        assert!(mean < 3.0, "method {method}: {mean}");
    }
    let opaque = encode_webp(&source.to_rgb(), WebpOptions::default()).unwrap();
    assert!(!decode(&opaque, &Limits::image_job()).unwrap().has_alpha());
}

#[test]
fn options_out_of_range_are_refused() {
    let picture = Picture::filled(4, 4, [1, 2, 3]);
    for (quality, method) in [(-1.0, 4), (101.0, 4), (f32::NAN, 4), (90.0, 7)] {
        assert!(
            encode_webp(&picture, WebpOptions { quality, method }).is_err(),
            "{quality} {method}"
        );
    }
    assert!(encode_webp(&Picture::filled(16384, 1, [0; 3]), WebpOptions::default()).is_err());
}

#[test]
fn png_gives_back_what_it_was_given() {
    for source in [picture("rgba.png"), picture("rgb.png")] {
        assert_eq!(
            decode(&encode_png(&source).unwrap(), &Limits::image_job()).unwrap(),
            source
        );
    }
}

#[test]
fn transparency_lies_over_a_colour() {
    let two = Picture::from_rgba(2, 1, vec![200, 100, 0, 255, 200, 100, 0, 51]).unwrap();
    assert_eq!(two.over([0, 0, 255]).data(), [200, 100, 0, 40, 20, 204]);
    let alpha = Mask::new(2, 1, vec![255, 51]).unwrap();
    assert_eq!(two.alpha(), Some(alpha.clone()));
    assert_eq!(two.to_rgb().with_alpha(&alpha), two);
    assert_eq!(two.to_rgb().alpha(), None);
}
