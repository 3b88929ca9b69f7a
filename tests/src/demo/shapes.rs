//! What a picture of the tiny shapes shows, told from its pixels alone.

use imaging::Picture;

/// The words of the tiny model with their colours.
const COLOURS: [(&str, [i32; 3]); 8] = [
    ("red", [220, 30, 30]),
    ("green", [30, 150, 50]),
    ("blue", [40, 70, 220]),
    ("yellow", [245, 215, 40]),
    ("black", [20, 20, 20]),
    ("white", [245, 245, 245]),
    ("orange", [245, 130, 20]),
    ("purple", [140, 50, 170]),
];

/// What is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Colour of the shape; `None` where there is none.
    pub subject: Option<&'static str>,
    /// Colour of the edge.
    pub background: &'static str,
}

/// The edge's median is the background; what differs most from it is the shape.
pub fn look(picture: &Picture) -> Seen {
    let picture = picture.over([255, 255, 255]);
    let (width, height) = (picture.width(), picture.height());
    let edge = (width.min(height) / 20).max(3);
    let mut ring = Vec::new();
    let mut all = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let pixel = picture.rgb_at(x, y).unwrap_or_default().map(i32::from);
            all.push(pixel);
            if x < edge || y < edge || x >= width - edge || y >= height - edge {
                ring.push(pixel);
            }
        }
    }
    let background = median(&ring);
    let mut distances: Vec<i32> = all.iter().map(|pixel| distance(*pixel, background)).collect();
    distances.sort_unstable();
    let high = distances[distances.len() * 985 / 1000];
    // A quarter of the range from -1 to 1, squared.
    let subject = (high > 32 * 32).then(|| {
        let core: Vec<[i32; 3]> = all
            .iter()
            .copied()
            .filter(|pixel| distance(*pixel, background) * 2 > high)
            .collect();
        named(median(&core))
    });
    Seen {
        subject,
        background: named(background),
    }
}

/// Mean difference of two pictures of one size, per channel, 0 to 255; `None` for two sizes.
pub fn difference(one: &Picture, other: &Picture, inside: impl Fn(u32, u32) -> bool) -> Option<f64> {
    if (one.width(), one.height()) != (other.width(), other.height()) {
        return None;
    }
    let (mut sum, mut count) = (0u64, 0u64);
    for (x, y) in (0..one.height()).flat_map(|y| (0..one.width()).map(move |x| (x, y))) {
        if inside(x, y) {
            let (a, b) = (one.rgb_at(x, y)?, other.rgb_at(x, y)?);
            sum += a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(b))).sum::<u64>();
            count += 3;
        }
    }
    Some(sum as f64 / count.max(1) as f64)
}

/// A disc in the middle, for jobs that start from a picture.
pub fn disc(side: u32, subject: [u8; 3], background: [u8; 3]) -> Picture {
    let mut picture = Picture::filled(side, side, background);
    let middle = f64::from(side) / 2.0;
    let row = side as usize;
    for (at, pixel) in picture.data_mut().chunks_exact_mut(3).enumerate() {
        let (x, y) = ((at % row) as f64 + 0.5 - middle, (at / row) as f64 + 0.5 - middle);
        if x.hypot(y) <= middle * 0.55 {
            pixel.copy_from_slice(&subject);
        }
    }
    picture
}

fn distance(a: [i32; 3], b: [i32; 3]) -> i32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

fn named(colour: [i32; 3]) -> &'static str {
    let nearest = COLOURS.iter().min_by_key(|(_, known)| distance(*known, colour));
    nearest.map_or("", |(name, _)| name)
}

fn median(pixels: &[[i32; 3]]) -> [i32; 3] {
    [0, 1, 2].map(|channel| {
        let mut values: Vec<i32> = pixels.iter().map(|pixel| pixel[channel]).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_disc_is_seen_and_an_empty_picture_is_empty() {
        let seen = look(&disc(64, [220, 30, 30], [245, 245, 245]));
        assert_eq!((seen.subject, seen.background), (Some("red"), "white"));
        let seen = look(&Picture::filled(64, 64, [40, 70, 220]));
        assert_eq!((seen.subject, seen.background), (None, "blue"));
    }

    #[test]
    fn differences_are_means_over_what_is_inside() {
        let (a, b) = (Picture::filled(4, 4, [0, 0, 0]), Picture::filled(4, 4, [10, 0, 20]));
        assert_eq!(difference(&a, &b, |_, _| true), Some(10.0));
        assert_eq!(difference(&a, &b, |_, _| false), Some(0.0));
        assert_eq!(difference(&a, &Picture::filled(2, 2, [0, 0, 0]), |_, _| true), None);
    }
}
