use imaging::Filter;

use crate::formats::{difference, picture};

#[test]
fn resampling_is_pillows_to_the_bit() {
    let source = picture("resize.png");
    for (name, filter) in [
        ("lanczos", Filter::Lanczos),
        ("bicubic", Filter::Bicubic),
        ("bilinear", Filter::Bilinear),
        ("box", Filter::Box),
    ] {
        let (max, _) = difference(
            &source.resized(17, 23, filter),
            &picture(&format!("resize_{name}_17x23.png")),
        );
        assert_eq!(max, 0, "{name} differs by {max}");
    }
    let nearest = source.resized(17, 23, Filter::Nearest);
    assert_eq!(nearest, picture("resize_nearest_17x23.png"));
}

#[test]
fn transparent_pixels_do_not_bleed_into_a_smaller_picture() {
    let (max, _) = difference(
        &picture("rgba.png").resized(11, 9, Filter::Bicubic),
        &picture("rgba_bicubic_11x9.png"),
    );
    assert_eq!(max, 0, "differs by {max}");
}

#[test]
fn the_clip_square_is_the_middle_of_the_shrunk_picture() {
    let (max, _) = difference(&picture("resize.png").clip_square(64), &picture("clip_square_64.png"));
    assert_eq!(max, 0, "differs by {max}");
}

#[test]
fn extreme_sizes_are_resampled_without_panic() {
    let source = picture("rgb.png");
    for (width, height) in [(0, 0), (1, 1), (1, 4000), (4000, 1)] {
        let resized = source.resized(width, height, Filter::Lanczos);
        assert_eq!((resized.width(), resized.height()), (width.max(1), height.max(1)));
    }
    assert_eq!(source.resized(1, 1, Filter::Box).clip_square(8).width(), 8);
}
