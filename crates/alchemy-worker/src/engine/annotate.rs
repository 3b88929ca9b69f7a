//! Control pictures of a source: what `annotation` makes, newer than the server the rest was written against.
//!
//! Only annotators without a network are here; the pop names them, so no other is asked for.

use imaging::{Mask, Picture};
use worker_runtime::backend::Fault;

/// Gradients from which an edge may go on, and from which it begins: the usual ones of control networks (8-bit, |x| + |y|
/// of Sobel's 3×3).
const GOES_ON: i32 = 100;
const BEGINS: i32 = 200;
/// Lighter than this is paper.
const PAPER: u8 = 128;

/// White lines on black.
pub(super) fn annotate(picture: &Picture, kind: Option<&str>) -> Result<Picture, Fault> {
    let grey = picture.over([255; 3]).to_grey();
    let lines = match kind.unwrap_or("canny") {
        "canny" => canny(&grey),
        "scribble" => grey.thresholded(PAPER).inverted(),
        other => {
            let name: String = other.chars().take(40).collect();
            return Err(Fault::of_job(format!(
                "no annotator is called `{}`",
                name.escape_debug()
            )));
        }
    };
    let data = lines.data().iter().flat_map(|value| [*value; 3]).collect();
    Picture::from_rgb(lines.width(), lines.height(), data).map_err(|e| Fault::of_job(e.to_string()))
}

/// Canny 1986 without smoothing: gradient, thinning across it, and weak edges kept where they hang on strong ones.
fn canny(grey: &Mask) -> Mask {
    let (width, height) = (grey.width() as i64, grey.height() as i64);
    let at = |x: i64, y: i64| {
        let (x, y) = (x.clamp(0, width - 1), y.clamp(0, height - 1));
        grey.data()
            .get((y * width + x) as usize)
            .map_or(0, |value| i32::from(*value))
    };
    let gradient = |x: i64, y: i64| {
        let across = at(x + 1, y - 1) + 2 * at(x + 1, y) + at(x + 1, y + 1);
        let across = across - at(x - 1, y - 1) - 2 * at(x - 1, y) - at(x - 1, y + 1);
        let down = at(x - 1, y + 1) + 2 * at(x, y + 1) + at(x + 1, y + 1);
        (across, down - at(x - 1, y - 1) - 2 * at(x, y - 1) - at(x + 1, y - 1))
    };
    let places = || (0..height).flat_map(move |y| (0..width).map(move |x| (x, y)));
    let slopes: Vec<(i32, i32)> = places().map(|(x, y)| gradient(x, y)).collect();
    let strength = |x: i64, y: i64| {
        if x < 0 || y < 0 || x >= width || y >= height {
            return 0;
        }
        slopes
            .get((y * width + x) as usize)
            .map_or(0, |(across, down)| across.abs() + down.abs())
    };
    let mut edges = vec![0u8; slopes.len()];
    let mut begun = Vec::new();
    for ((x, y), (across, down)) in places().zip(&slopes) {
        let here = strength(x, y);
        if here <= GOES_ON {
            continue;
        }
        // tan 22.5° and tan 67.5°: the neighbours along the gradient.
        let (a, d) = (f64::from(across.abs()), f64::from(down.abs()));
        let (dx, dy) = if d < a * 0.414_213_562 {
            (1, 0)
        } else if d > a * 2.414_213_562 {
            (0, 1)
        } else if (*across > 0) == (*down > 0) {
            (1, 1)
        } else {
            (1, -1)
        };
        let (before, behind) = (strength(x - dx, y - dy), strength(x + dx, y + dy));
        if here > before && here >= behind {
            let place = (y * width + x) as usize;
            edges[place] = if here > BEGINS { 255 } else { 1 };
            if here > BEGINS {
                begun.push((x, y));
            }
        }
    }
    while let Some((x, y)) = begun.pop() {
        for (nx, ny) in (-1..=1).flat_map(|dy| (-1..=1).map(move |dx| (x + dx, y + dy))) {
            if nx < 0 || ny < 0 || nx >= width || ny >= height {
                continue;
            }
            if let Some(edge) = edges.get_mut((ny * width + nx) as usize).filter(|edge| **edge == 1) {
                *edge = 255;
                begun.push((nx, ny));
            }
        }
    }
    edges.iter_mut().filter(|edge| **edge == 1).for_each(|edge| *edge = 0);
    // The size is the source's, so the data fits it.
    Mask::new(grey.width(), grey.height(), edges).unwrap_or_else(|_| grey.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canny_draws_one_thin_line_along_an_edge_and_none_on_flat_ground() {
        let mut picture = Picture::filled(40, 30, [20, 20, 20]);
        for pixel in picture.data_mut().chunks_exact_mut(40 * 3) {
            pixel[20 * 3..].fill(220);
        }
        let drawn = annotate(&picture, Some("canny")).unwrap();
        for row in drawn.data().chunks_exact(40 * 3) {
            let lit: Vec<usize> = (0..40).filter(|x| row[x * 3] == 255).collect();
            assert_eq!(lit.len(), 1, "{lit:?}");
            assert!((19..=20).contains(&lit[0]));
        }
        let flat = annotate(&Picture::filled(9, 9, [7, 90, 200]), None).unwrap();
        assert!(flat.data().iter().all(|value| *value == 0));
        let scribble = annotate(&picture, Some("scribble")).unwrap();
        assert_eq!(
            (scribble.rgb_at(0, 0), scribble.rgb_at(39, 0)),
            (Some([255; 3]), Some([0; 3]))
        );
        assert!(annotate(&picture, Some("openpose\n")).is_err());
    }
}
