//! Pictures as vector graphics: areas of like colour become filled curves, stacked from the largest to the smallest.
//!
//! Clustering and curves are those of visioncortex (the library under VTracer); the settings follow VTracer's defaults.

use std::fmt::Write as _;

use imaging::{Filter, Picture};
use visioncortex::color_clusters::{Clusters, HIERARCHICAL_MAX, KeyingAction, Runner, RunnerConfig};
use visioncortex::{Color, ColorImage, PathSimplifyMode, PointF64};

use crate::error::{Result, VisionError};

/// Longer side at which a picture is traced; larger ones are made smaller first, the drawing keeps their size.
const TRACED_SIDE: u32 = 1536;
/// Longest drawing that is handed out, in bytes. More detailed pictures are traced again more coarsely.
const MAX_BYTES: usize = 2 << 20;
/// Pixels more transparent than this are left out.
const OPAQUE: u8 = 128;

/// How coarsely: areas below so many pixels a side vanish, colours are told apart by so many bits and layers by such a
/// difference.
#[derive(Clone, Copy)]
struct Detail {
    speckle: usize,
    colour_bits: i32,
    layer_difference: i32,
}

const DETAILS: [Detail; 4] = [
    Detail {
        speckle: 4,
        colour_bits: 6,
        layer_difference: 16,
    },
    Detail {
        speckle: 8,
        colour_bits: 5,
        layer_difference: 24,
    },
    Detail {
        speckle: 16,
        colour_bits: 4,
        layer_difference: 40,
    },
    Detail {
        speckle: 32,
        colour_bits: 3,
        layer_difference: 64,
    },
];

/// Degrees from which a bend is a corner, pixels of the shortest segment, rounds of smoothing, degrees at which curves are cut.
const CORNER: f64 = 60.0;
const SEGMENT: f64 = 4.0;
const ROUNDS: usize = 10;
const SPLICE: f64 = 45.0;

/// An SVG of the picture's size. `progress(done, total)` is asked now and then whether to go on.
///
/// # Errors
/// [`VisionError::Cancelled`]; [`VisionError::Input`] for a picture that stays too detailed for a drawing.
pub fn vectorize(picture: &Picture, progress: &mut dyn FnMut(usize, usize) -> bool) -> Result<String> {
    let (width, height) = (picture.width(), picture.height());
    let longer = width.max(height).max(1);
    let traced = if longer > TRACED_SIDE {
        let side = |n: u32| ((u64::from(n) * u64::from(TRACED_SIDE) / u64::from(longer)) as u32).max(1);
        picture.resized(side(width), side(height), Filter::Lanczos)
    } else {
        picture.clone()
    };
    for detail in DETAILS {
        let clusters = clusters(&traced, detail, progress)?;
        if let Some(drawing) = drawn(&clusters, (width, height), (traced.width(), traced.height()), progress)? {
            return Ok(drawing);
        }
    }
    Err(VisionError::Input(
        "the picture is too detailed for a drawing of 2 MB".into(),
    ))
}

fn clusters(picture: &Picture, detail: Detail, progress: &mut dyn FnMut(usize, usize) -> bool) -> Result<Clusters> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let mut pixels = Vec::with_capacity(width * height * 4);
    for pixel in picture.data().chunks_exact(picture.channels()) {
        let colour = [pixel[0], pixel[1], pixel[2], 255];
        pixels.extend(colour);
    }
    let alpha = picture.alpha();
    let key = match &alpha {
        Some(alpha) => {
            let key = unused(&pixels)?;
            for (pixel, alpha) in pixels.chunks_exact_mut(4).zip(alpha.data()) {
                if *alpha < OPAQUE {
                    pixel.copy_from_slice(&[key.r, key.g, key.b, 255]);
                }
            }
            Some(key)
        }
        None => None,
    };
    let config = RunnerConfig {
        diagonal: detail.layer_difference == 0,
        hierarchical: HIERARCHICAL_MAX,
        batch_size: 25_600,
        good_min_area: detail.speckle * detail.speckle,
        good_max_area: width * height,
        is_same_color_a: 8 - detail.colour_bits,
        is_same_color_b: 1,
        deepen_diff: detail.layer_difference,
        hollow_neighbours: 1,
        key_color: key.unwrap_or_default(),
        keying_action: if key.is_some() {
            KeyingAction::Discard
        } else {
            KeyingAction::Keep
        },
    };
    let image = ColorImage { pixels, width, height };
    let mut work = Runner::new(config, image).start();
    while !work.tick() {
        if !progress(work.progress() as usize / 2, 100) {
            return Err(VisionError::Cancelled);
        }
    }
    Ok(work.result())
}

/// A colour that no pixel has.
fn unused(pixels: &[u8]) -> Result<Color> {
    let tries = [
        (255, 0, 255),
        (0, 255, 0),
        (0, 255, 255),
        (255, 255, 0),
        (0, 0, 255),
        (255, 0, 0),
    ];
    let mixed = (0..=255u8).map(|n| (n, 255 - n, n ^ 0x5a));
    tries
        .into_iter()
        .chain(mixed)
        .find(|(r, g, b)| !pixels.chunks_exact(4).any(|p| (p[0], p[1], p[2]) == (*r, *g, *b)))
        .map(|(r, g, b)| Color::new(r, g, b))
        .ok_or_else(|| VisionError::Input("the picture has every colour there is".into()))
}

/// `None` where it would be too long.
fn drawn(
    clusters: &Clusters,
    (width, height): (u32, u32),
    (from_width, from_height): (u32, u32),
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Option<String>> {
    let view = clusters.view();
    let (corner, splice) = (CORNER.to_radians(), SPLICE.to_radians());
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {from_width} {from_height}\">"
    );
    let total = view.clusters_output.len().max(1);
    for (n, index) in view.clusters_output.iter().rev().enumerate() {
        if n % 64 == 0 && !progress(50 + n * 50 / total, 100) {
            return Err(VisionError::Cancelled);
        }
        let cluster = view.get_cluster(*index);
        let paths = cluster.to_compound_path(&view, false, PathSimplifyMode::Spline, corner, SEGMENT, ROUNDS, splice);
        if paths.paths.is_empty() {
            continue;
        }
        let (path, offset) = paths.to_svg_string(true, PointF64::default(), Some(2));
        // Writing to a `String` cannot fail.
        let _ = write!(
            svg,
            "<path d=\"{}\" fill=\"{}\" transform=\"translate({},{})\"/>",
            path.trim(),
            cluster.residue_color().to_hex_string(),
            offset.x,
            offset.y
        );
        if svg.len() > MAX_BYTES {
            return Ok(None);
        }
    }
    svg.push_str("</svg>");
    Ok(Some(svg))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go_on(_: usize, _: usize) -> bool {
        true
    }

    /// Numbers of the drawing's `n`th path, with its offset added.
    fn points(svg: &str, n: usize) -> Vec<(f64, f64)> {
        let path = svg.split("<path ").nth(n + 1).unwrap();
        let text = |key: &str| {
            path.split_once(&format!("{key}=\""))
                .unwrap()
                .1
                .split('"')
                .next()
                .unwrap()
                .to_owned()
        };
        let numbers = |text: &str| -> Vec<f64> {
            text.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'))
                .filter_map(|number| number.parse().ok())
                .collect()
        };
        let offset = numbers(&text("transform"));
        numbers(&text("d"))
            .chunks_exact(2)
            .map(|p| (p[0] + offset[0], p[1] + offset[1]))
            .collect()
    }

    #[test]
    fn a_square_on_white_becomes_a_square_on_white() {
        let mut picture = Picture::filled(96, 64, [255; 3]);
        for y in 16..48 {
            for x in 20..60 {
                let at = (y * 96 + x) * 3;
                picture.data_mut()[at..at + 3].copy_from_slice(&[200, 20, 30]);
            }
        }
        let svg = vectorize(&picture, &mut go_on).unwrap();
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>") && svg.contains("width=\"96\" height=\"64\""));
        assert_eq!(svg.matches("<path").count(), 2, "{svg}");
        let last = svg.rsplit("<path").next().unwrap();
        assert!(last.contains("#C8141E"), "{last}");
        let square = points(&svg, 1);
        let edge = |of: fn(&(f64, f64)) -> f64, least: bool| {
            let values = square.iter().map(of);
            if least {
                values.fold(f64::MAX, f64::min)
            } else {
                values.fold(f64::MIN, f64::max)
            }
        };
        for (got, wanted) in [
            (edge(|p| p.0, true), 20.0),
            (edge(|p| p.0, false), 60.0),
            (edge(|p| p.1, true), 16.0),
            (edge(|p| p.1, false), 48.0),
        ] {
            assert!((got - wanted).abs() <= 1.5, "{got} is not {wanted}");
        }
    }

    #[test]
    fn what_is_transparent_is_left_out() {
        let mut data = [10, 120, 40, 255].repeat(64 * 64);
        data.chunks_exact_mut(4).take(64 * 32).for_each(|pixel| pixel[3] = 0);
        let svg = vectorize(&Picture::from_rgba(64, 64, data).unwrap(), &mut go_on).unwrap();
        assert_eq!(svg.matches("<path").count(), 1, "{svg}");
        assert!(points(&svg, 0).iter().all(|point| point.1 >= 31.0), "{svg}");
    }

    #[test]
    fn noise_and_large_pictures_stay_bounded_and_can_be_given_up() {
        let noise = |side: u32| {
            let mut state = 7u32;
            let data = (0..side * side * 3).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            });
            Picture::from_rgb(side, side, data.collect()).unwrap()
        };
        let picture = noise(512);
        match vectorize(&picture, &mut go_on) {
            Ok(svg) => assert!(svg.len() <= MAX_BYTES + 32),
            Err(error) => assert!(error.to_string().contains("too detailed"), "{error}"),
        }
        assert!(matches!(
            vectorize(&picture, &mut |_, _| false),
            Err(VisionError::Cancelled)
        ));
        let svg = vectorize(&Picture::filled(4000, 10, [1, 2, 3]), &mut go_on).unwrap();
        assert!(
            svg.contains("width=\"4000\" height=\"10\" viewBox=\"0 0 1536 3\""),
            "{svg}"
        );
        assert!(vectorize(&Picture::filled(1, 1, [9; 3]), &mut go_on).is_ok());
    }
}
