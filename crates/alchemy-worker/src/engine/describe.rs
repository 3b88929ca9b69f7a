//! What a picture is, without a network: size, format, fingerprints.
//!
//! The shape is unconfirmed: no document of the Horde gives it; a public client shows the keys made here. `dhash` and
//! `phash` are 64 bits as 16 hexadecimal digits, row by row, the first pixel in the highest bit, as Python's `imagehash`
//! prints them; resampling differs by a rounding, so single bits of flat areas may too.

use imaging::{Filter, Mask, Picture};
use serde_json::{Value, json};

/// Blocks of a BlurHash across and down; 4×3 is what its authors recommend.
const BLUR: (u32, u32) = (4, 3);
/// Longer side a BlurHash is made of, in pixels.
const BLUR_SIDE: u32 = 64;
/// Side of the picture whose slow waves a `phash` compares.
const WAVES: usize = 32;

/// `format` as the file said.
pub(super) fn describe(picture: &Picture, format: &str) -> Value {
    let (width, height) = (picture.width(), picture.height());
    let visible = picture.over([255; 3]);
    json!({
        "format": format,
        "width": width,
        "height": height,
        "aspect_ratio": f64::from(width) / f64::from(height),
        "has_alpha": picture.has_alpha(),
        "dhash": format!("{:016x}", dhash(&visible.to_grey())),
        "phash": format!("{:016x}", phash(&visible.to_grey())),
        "blurhash": blurhash(&visible),
    })
}

/// One bit per pair of neighbours in 9×8: whether it gets lighter to the right.
fn dhash(grey: &Mask) -> u64 {
    let small = grey.resized(9, 8, Filter::Lanczos);
    let rows = small.data().chunks_exact(9);
    let bits = rows.flat_map(|row| row.windows(2).map(|pair| matches!(pair, [left, right] if right > left)));
    bits.fold(0, |hash, bit| hash << 1 | u64::from(bit))
}

/// One bit per slow wave of 32×32: whether it is above the median of all 64 (Zauner 2010, as `imagehash` does it).
fn phash(grey: &Mask) -> u64 {
    let small = grey.resized(WAVES as u32, WAVES as u32, Filter::Lanczos);
    let pixels: Vec<f64> = small.data().iter().map(|value| f64::from(*value)).collect();
    let wave = |frequency: usize, at: usize| {
        (std::f64::consts::PI * frequency as f64 * (2 * at + 1) as f64 / (2 * WAVES) as f64).cos()
    };
    let mut strengths = Vec::with_capacity(64);
    for down in 0..8 {
        for across in 0..8 {
            let sum: f64 = pixels
                .iter()
                .enumerate()
                .map(|(at, value)| value * wave(down, at / WAVES) * wave(across, at % WAVES))
                .sum();
            strengths.push(sum);
        }
    }
    let mut sorted = strengths.clone();
    sorted.sort_by(f64::total_cmp);
    let median = (sorted[31] + sorted[32]) / 2.0;
    strengths
        .iter()
        .fold(0, |hash, strength| hash << 1 | u64::from(*strength > median))
}

fn blurhash(picture: &Picture) -> Value {
    let longer = picture.width().max(picture.height()).max(1);
    let side = |pixels: u32| (u64::from(pixels) * u64::from(BLUR_SIDE) / u64::from(longer)).clamp(1, 64) as u32;
    let small = picture.resized(side(picture.width()), side(picture.height()), Filter::Box);
    let rgba: Vec<u8> = small
        .data()
        .chunks_exact(3)
        .flat_map(|p| [p[0], p[1], p[2], 255])
        .collect();
    match blurhash::encode(BLUR.0, BLUR.1, small.width(), small.height(), &rgba) {
        Ok(hash) => json!(hash),
        Err(_) => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slope(width: u32, height: u32, rising: bool) -> Picture {
        let mut picture = Picture::filled(width, height, [0, 0, 0]);
        for (at, pixel) in picture.data_mut().chunks_exact_mut(3).enumerate() {
            let x = at as u32 % width;
            let x = if rising { x } else { width - 1 - x };
            pixel.fill((x * 255 / (width - 1)) as u8);
        }
        picture
    }

    /// Every slow wave once, as strong as `seed` has it; the same in every size.
    fn waves(width: u32, height: u32, seed: u32) -> Picture {
        let mut picture = Picture::filled(width, height, [0, 0, 0]);
        let wave = |frequency: u32, at: u32, of: u32| {
            (std::f64::consts::PI * f64::from(frequency) * (f64::from(at) + 0.5) / f64::from(of)).cos()
        };
        for (at, pixel) in picture.data_mut().chunks_exact_mut(3).enumerate() {
            let (x, y) = (at as u32 % width, at as u32 / width);
            let strength = |n: u32| f64::from((n + seed).wrapping_mul(2_654_435_761) >> 24) / 255.0 - 0.5;
            let sum: f64 = (0..64)
                .map(|n| strength(n) * wave(n / 8, y, height) * wave(n % 8, x, width))
                .sum();
            pixel.fill((128.0 + 20.0 * sum).clamp(0.0, 255.0) as u8);
        }
        picture
    }

    #[test]
    fn fingerprints_are_alike_for_the_same_picture_in_another_size_and_unlike_for_others() {
        let [a, b, c] = [slope(90, 60, true), slope(180, 120, true), slope(90, 60, false)];
        let of = |picture: &Picture| describe(picture, "PNG");
        assert_eq!(of(&a)["dhash"], "ffffffffffffffff");
        assert_eq!(of(&c)["dhash"], "0000000000000000");
        let bits = |value: &Value| u64::from_str_radix(value.as_str().unwrap(), 16).unwrap();
        let apart = |a: &Picture, b: &Picture| (bits(&of(a)["phash"]) ^ bits(&of(b)["phash"])).count_ones();
        let [small, large, other] = [waves(90, 60, 1), waves(180, 120, 1), waves(90, 60, 99)];
        assert!(apart(&small, &large) <= 6, "{}", apart(&small, &large));
        assert!(apart(&small, &other) >= 16, "{}", apart(&small, &other));
        assert_eq!(of(&b)["aspect_ratio"], 1.5);
        assert_eq!((&of(&b)["width"], &of(&b)["has_alpha"]), (&json!(180), &json!(false)));
        assert!(of(&a)["blurhash"].as_str().unwrap().len() == 28);
    }
}
