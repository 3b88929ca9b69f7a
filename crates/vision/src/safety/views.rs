//! What of a picture is looked at. CLIP sees a small square; the rest of a long picture must not be a place to hide.

use std::borrow::Cow;

use imaging::{Filter, Picture};

/// Most squares along the longer side; in longer pictures they become strips, which are squeezed.
const MAX_ALONG: u32 = 8;

/// The views of a picture, at least one: the whole, of which CLIP takes the middle square; where the sides differ by more
/// than a tenth also squares that cover it from end to end. A picture with transparent parts is looked at over white, and
/// again with the colours that are hidden below.
pub fn views(picture: &Picture) -> Vec<Cow<'_, Picture>> {
    if picture.alpha().is_none() {
        let flat = if picture.has_alpha() {
            Cow::Owned(picture.to_rgb())
        } else {
            Cow::Borrowed(picture)
        };
        return along(flat);
    }
    let mut all = along(Cow::Owned(picture.over([255; 3])));
    all.extend(along(Cow::Owned(picture.to_rgb())));
    all
}

fn along(flat: Cow<'_, Picture>) -> Vec<Cow<'_, Picture>> {
    let (width, height) = (flat.width(), flat.height());
    let (short, long) = (width.min(height), width.max(height));
    let mut squares = Vec::new();
    if u64::from(long) * 10 > u64::from(short) * 11 {
        let n = long.div_ceil(short).min(MAX_ALONG);
        let length = short.max(long.div_ceil(n));
        for i in 0..n {
            let at = (u64::from(long - length) * u64::from(i) / u64::from(n - 1)) as u32;
            let cut = if width < height {
                flat.crop(0, at, width, length)
            } else {
                flat.crop(at, 0, length, height)
            };
            squares.extend(cut.map(|view| {
                if length > short {
                    Cow::Owned(view.resized(short, short, Filter::Bicubic))
                } else {
                    Cow::Owned(view)
                }
            }));
        }
    }
    squares.insert(0, flat);
    squares
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(width: u32, height: u32) -> usize {
        views(&Picture::filled(width, height, [7; 3])).len()
    }

    #[test]
    fn a_square_is_one_view_and_a_long_picture_a_bounded_number() {
        assert_eq!(count(512, 512), 1);
        assert_eq!(count(512, 560), 1);
        assert_eq!(count(512, 768), 3);
        assert_eq!(count(3072, 1024), 4);
        assert_eq!(count(3072, 64), 9);
        assert_eq!(count(1, 16383), 9);
        assert_eq!(count(1, 1), 1);
        assert_eq!(count(1, 2), 3);
    }

    #[test]
    fn every_pixel_is_in_some_view() {
        for (width, height) in [(300, 100), (100, 250), (97, 1000), (12, 11)] {
            for i in 0..width.max(height) {
                let mut picture = Picture::filled(width, height, [0; 3]);
                let at = if width > height { i } else { i * width } as usize * 3;
                picture.data_mut()[at..at + 3].copy_from_slice(&[255; 3]);
                let is_seen = views(&picture)
                    .iter()
                    // The middle square is all that CLIP takes of the first.
                    .skip(usize::from(width.max(height) > 110))
                    .any(|view| view.data().iter().any(|v| *v > 20));
                assert!(is_seen, "{width}x{height} at {i}");
            }
        }
    }

    #[test]
    fn colours_below_transparent_pixels_are_looked_at() {
        let hidden = Picture::from_rgba(2, 2, [200, 10, 10, 0].repeat(4)).unwrap();
        let views = views(&hidden);
        assert_eq!(views.len(), 2);
        assert_eq!(views[0].rgb_at(0, 0), Some([255; 3]));
        assert_eq!(views[1].rgb_at(0, 0), Some([200, 10, 10]));
        let opaque = Picture::from_rgba(2, 2, [200, 10, 10, 255].repeat(4)).unwrap();
        assert_eq!(super::views(&opaque).len(), 1);
    }
}
