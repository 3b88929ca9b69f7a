//! The colours that make up a picture.
//!
//! The shape is unconfirmed: no document of the Horde gives it, and a public client reads it as `{"colors": [{"hex":
//! "#rrggbb", "proportion": 0..=1}]}`, which is what is made here, the commonest first.

use imaging::{Filter, Picture};
use serde_json::{Value, json};

/// Most colours told.
const COLOURS: usize = 8;
/// Longer side that is looked at, in pixels.
const LOOKED_AT: u32 = 96;
/// Rounds of k-means; it settles within a dozen.
const ROUNDS: usize = 12;
/// Colours nearer than this in CIE 1976 Lab look alike and are told as one.
const ALIKE: f32 = 10.0;
/// A colour of less than this share of the picture is noise.
const LEAST: f64 = 0.005;

/// L 0..=100, a and b about -128..=127 (CIE 1976, D65).
type Lab = [f32; 3];

/// Dominant colours of what is opaque.
pub(super) fn palette(picture: &Picture) -> Value {
    let longer = picture.width().max(picture.height()).max(1);
    let side = |pixels: u32| {
        let small = u64::from(pixels) * u64::from(LOOKED_AT) / u64::from(longer);
        (small as u32).clamp(1, LOOKED_AT)
    };
    let small = if longer > LOOKED_AT {
        picture.resized(side(picture.width()), side(picture.height()), Filter::Box)
    } else {
        picture.clone()
    };
    let seen: Vec<[f32; 3]> = small
        .data()
        .chunks_exact(small.channels())
        .filter(|pixel| pixel.get(3).is_none_or(|alpha| *alpha >= 128))
        .map(|pixel| [0, 1, 2].map(|at| f32::from(pixel.get(at).copied().unwrap_or(0))))
        .collect();
    let colours: Vec<Value> = clusters(&seen)
        .into_iter()
        .map(|([r, g, b], share)| json!({ "hex": format!("#{r:02x}{g:02x}{b:02x}"), "proportion": share }))
        .collect();
    json!({ "colors": colours })
}

/// Mean colours of the clusters with their shares of all pixels, the commonest first.
fn clusters(pixels: &[[f32; 3]]) -> Vec<([u8; 3], f64)> {
    let places: Vec<Lab> = pixels.iter().map(|pixel| lab(*pixel)).collect();
    let mut centres = far_apart(&places);
    let mut member = vec![0usize; places.len()];
    for _ in 0..ROUNDS {
        for (member, place) in member.iter_mut().zip(&places) {
            *member = nearest(place, &centres).0;
        }
        for (at, centre) in centres.iter_mut().enumerate() {
            if let Some(mean) = mean(places.iter().zip(&member).filter(|(_, m)| **m == at).map(|(p, _)| p)) {
                *centre = mean;
            }
        }
    }
    let total = places.len().max(1) as f64;
    let mut found: Vec<([u8; 3], f64)> = Vec::new();
    for at in 0..centres.len() {
        let of = || pixels.iter().zip(&member).filter(|(_, m)| **m == at).map(|(p, _)| p);
        let Some(colour) = mean(of()) else { continue };
        found.push((colour.map(|value| value.round() as u8), of().count() as f64 / total));
    }
    found.retain(|(_, share)| *share >= LEAST);
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found
}

/// Centres to begin with: the mean's nearest pixel, then always the pixel farthest from all before, while it looks unlike
/// them. Nothing is left to chance, so the same picture has the same palette.
fn far_apart(places: &[Lab]) -> Vec<Lab> {
    let Some(mean) = mean(places.iter()) else {
        return Vec::new();
    };
    let start = places.iter().min_by(|a, b| apart(a, &mean).total_cmp(&apart(b, &mean)));
    let mut centres: Vec<Lab> = start.copied().into_iter().collect();
    while centres.len() < COLOURS {
        let farthest = places
            .iter()
            .map(|place| (nearest(place, &centres).1, place))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        match farthest {
            Some((distance, place)) if distance >= ALIKE * ALIKE => centres.push(*place),
            _ => break,
        }
    }
    centres
}

fn nearest(place: &Lab, centres: &[Lab]) -> (usize, f32) {
    let distances = centres.iter().map(|centre| apart(place, centre)).enumerate();
    distances
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or((0, f32::INFINITY))
}

/// Squared distance.
fn apart(a: &Lab, b: &Lab) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

fn mean<'a>(places: impl Iterator<Item = &'a [f32; 3]>) -> Option<[f32; 3]> {
    let (mut sum, mut count) = ([0f64; 3], 0u32);
    for place in places {
        for (sum, value) in sum.iter_mut().zip(place) {
            *sum += f64::from(*value);
        }
        count += 1;
    }
    (count > 0).then(|| sum.map(|sum| (sum / f64::from(count)) as f32))
}

/// sRGB in 0..=255 to Lab (IEC 61966-2-1, then CIE 15:2004 with white D65).
fn lab(rgb: [f32; 3]) -> Lab {
    let [r, g, b] = rgb.map(|value| {
        let value = value / 255.0;
        if value <= 0.040_45 {
            value / 12.92
        } else {
            ((value + 0.055) / 1.055).powf(2.4)
        }
    });
    let x = (0.412_456 * r + 0.357_576 * g + 0.180_438 * b) / 0.950_47;
    let y = 0.212_673 * r + 0.715_152 * g + 0.072_175 * b;
    let z = (0.019_334 * r + 0.119_192 * g + 0.950_304 * b) / 1.088_83;
    let [x, y, z] = [x, y, z].map(|value| {
        if value > 0.008_856 {
            value.cbrt()
        } else {
            7.787 * value + 16.0 / 116.0
        }
    });
    [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lab_of_known_colours() {
        for (rgb, wanted) in [
            ([255.0, 255.0, 255.0], [100.0, 0.0, 0.0]),
            ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
            ([255.0, 0.0, 0.0], [53.24, 80.09, 67.20]),
        ] {
            let got = lab(rgb);
            assert!(
                got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.1),
                "{rgb:?}: {got:?}"
            );
        }
    }

    #[test]
    fn colours_come_with_their_shares_the_commonest_first() {
        let mut picture = Picture::filled(200, 100, [250, 250, 250]);
        for pixel in picture.data_mut().chunks_exact_mut(3).take(200 * 25) {
            pixel.copy_from_slice(&[200, 30, 20]);
        }
        let told = palette(&picture);
        let colours = told["colors"].as_array().unwrap();
        assert_eq!(colours[0]["hex"], "#fafafa");
        assert_eq!(colours[1]["hex"], "#c81e14");
        let share = |at: usize| colours[at]["proportion"].as_f64().unwrap();
        assert!(
            (share(0) - 0.75).abs() < 0.02 && (share(1) - 0.25).abs() < 0.02,
            "{told}"
        );
    }

    #[test]
    fn what_cannot_be_seen_does_not_count() {
        let mut data = vec![0u8; 4 * 4 * 4];
        data.chunks_exact_mut(4)
            .take(8)
            .for_each(|pixel| pixel.copy_from_slice(&[0, 0, 255, 255]));
        let told = palette(&Picture::from_rgba(4, 4, data).unwrap());
        assert_eq!(told, json!({ "colors": [{ "hex": "#0000ff", "proportion": 1.0 }] }));
        let nothing = Picture::from_rgba(1, 1, vec![1, 2, 3, 0]).unwrap();
        assert_eq!(palette(&nothing), json!({ "colors": [] }));
    }
}
