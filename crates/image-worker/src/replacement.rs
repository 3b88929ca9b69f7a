//! The pictures that stand in for what is not handed out: drawn here, given to the public domain.

use imaging::Picture;

use crate::checked::Rating;

/// A barred circle on grey, of the size of what it replaces: amber for what is not safe for work, red for what nobody may
/// have.
pub fn replacement(rating: Rating, (width, height): (u32, u32)) -> Picture {
    let ink = if rating == Rating::Csam {
        [200, 40, 40]
    } else {
        [225, 150, 40]
    };
    let mut picture = Picture::filled(width, height, [48, 50, 54]);
    let (middle_x, middle_y) = (f64::from(width) / 2.0, f64::from(height) / 2.0);
    let radius = middle_x.min(middle_y) * 0.6;
    let stroke = radius * 0.16;
    let row = width as usize * 3;
    for (at, pixel) in picture.data_mut().chunks_exact_mut(3).enumerate() {
        let (x, y) = (
            (at * 3 % row / 3) as f64 + 0.5 - middle_x,
            (at * 3 / row) as f64 + 0.5 - middle_y,
        );
        let distance = x.hypot(y);
        let is_ring = (distance - radius).abs() <= stroke / 2.0;
        let is_bar = distance <= radius && (x - y).abs() <= stroke / std::f64::consts::SQRT_2;
        if is_ring || is_bar {
            pixel.copy_from_slice(&ink);
        }
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_size_of_what_it_replaces_and_is_no_flat_colour() {
        for size in [(64, 64), (3072, 64), (64, 3072), (1, 1)] {
            let picture = replacement(Rating::Csam, size);
            assert_eq!((picture.width(), picture.height()), size);
        }
        let picture = replacement(Rating::Nsfw, (128, 64));
        assert_eq!(picture.rgb_at(64, 32), Some([225, 150, 40]));
        assert_eq!(picture.rgb_at(0, 0), Some([48, 50, 54]));
    }
}
