//! The face pipeline: find, turn upright, repair, lay back.

use candle_core::Tensor;
use imaging::warp::{Affine, affine};
use imaging::{Mask, Picture, Planar, Rounding, blur};

use super::codeformer::{self, CodeFormer};
use super::gfpgan::{self, Gfpgan};
use super::parsenet::FaceParser;
use super::restoreformer::{self, RestoreFormer};
use super::{Face, FaceDetector};
use crate::error::{Result, VisionError};
use crate::weights::Weights;

/// A network that repairs one upright face.
pub(crate) trait Network: Send + Sync {
    /// Side of the square faces it takes.
    fn side(&self) -> usize;
    /// (1, 3, side, side) RGB in -1..=1 to the same.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;
}

/// A loaded face restorer of whatever architecture.
pub struct FaceRestorer {
    network: Box<dyn Network>,
    architecture: &'static str,
    device: candle_core::Device,
    parser: Option<FaceParser>,
}

/// How faces are repaired.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RestoreSettings {
    /// How much of the repaired face is laid over the old one: 0 nothing, 1 all.
    pub strength: f32,
    /// Least score of a face.
    pub threshold: f32,
    /// Longer side that faces are looked for at, in pixels.
    pub detect_side: u32,
}

impl Default for RestoreSettings {
    /// All of it, for faces that are certain.
    fn default() -> Self {
        Self {
            strength: 1.0,
            threshold: 0.9,
            detect_side: 1024,
        }
    }
}

/// Where eyes, nose and corners of the mouth stand in an upright face of 512×512 (FFHQ's mean face, as in facexlib).
const TEMPLATE: [(f64, f64); 5] = [
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
];
const TEMPLATE_SIDE: f64 = 512.0;
/// Grey that stands for what lies beyond the picture, red, green, blue.
const BEYOND: [f32; 3] = [132.0 / 255.0, 133.0 / 255.0, 135.0 / 255.0];

impl Network for Gfpgan {
    fn side(&self) -> usize {
        Gfpgan::side(self)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Gfpgan::forward(self, x)
    }
}

impl Network for CodeFormer {
    fn side(&self) -> usize {
        CodeFormer::side(self)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        CodeFormer::forward(self, x)
    }
}

impl Network for RestoreFormer {
    fn side(&self) -> usize {
        RESTOREFORMER_SIDE
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        RestoreFormer::forward(self, x)
    }
}

/// RestoreFormer is convolutional and takes any size; it was trained on this one.
const RESTOREFORMER_SIDE: usize = 512;

impl FaceRestorer {
    /// Finds the architecture by the keys and reads it.
    pub fn load(weights: &Weights) -> Result<Self> {
        let w = &weights.unwrapped(&["params_ema", "params", "state_dict"]);
        let (network, architecture): (Box<dyn Network>, _) = if gfpgan::fits(w) {
            (Box::new(Gfpgan::load(w)?), "GFPGAN")
        } else if codeformer::fits(w) {
            (Box::new(CodeFormer::load(w)?), "CodeFormer")
        } else if restoreformer::fits(w) {
            (Box::new(RestoreFormer::load(w)?), "RestoreFormer")
        } else {
            return Err(w.unknown("face restorer"));
        };
        Ok(Self {
            network,
            architecture,
            device: w.device().clone(),
            parser: None,
        })
    }

    /// Lays back only what `parser` takes for face; without one, the whole square with soft edges.
    pub fn with_parser(mut self, parser: FaceParser) -> Self {
        self.parser = Some(parser);
        self
    }

    /// Name of the architecture, for logs.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// Side of the upright faces it takes, in pixels.
    pub fn side(&self) -> usize {
        self.network.side()
    }

    /// An upright face in -1..=1 to the repaired one, unclamped.
    pub fn forward(&self, face: &Planar) -> Result<Planar> {
        let side = self.side();
        if (face.channels(), face.width() as usize, face.height() as usize) != (3, side, side) {
            return Err(VisionError::Input(format!(
                "the face restorer takes three planes of {side}x{side}"
            )));
        }
        let x = Tensor::from_slice(face.data(), (1, 3, side, side), &self.device)?;
        let data = self.network.forward(&x)?.flatten_all()?.to_vec1::<f32>()?;
        Ok(Planar::new(3, side as u32, side as u32, data)?)
    }

    /// An upright face as bytes, rounded as the reference rounds it.
    pub fn repair(&self, face: &Planar) -> Result<Picture> {
        let mut repaired = self.forward(face)?;
        if repaired.data().iter().any(|v| !v.is_finite()) {
            return Err(VisionError::Input(
                "the face restorer gave values that are no numbers".into(),
            ));
        }
        repaired
            .data_mut()
            .iter_mut()
            .for_each(|v| *v = (v.clamp(-1.0, 1.0) + 1.0) / 2.0);
        Ok(repaired.to_picture(Rounding::Nearest))
    }
}

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
    let faces = detector.detect(picture, settings.threshold, settings.detect_side)?;
    if faces.is_empty() {
        return Ok(picture.clone());
    }
    let strength = if settings.strength.is_finite() {
        settings.strength.clamp(0.0, 1.0)
    } else {
        1.0
    };
    let mut planar = picture.to_planar();
    for (n, face) in faces.iter().enumerate() {
        restore_one(&mut planar, face, restorer, strength)?;
        if !progress(n + 1, faces.len()) {
            return Err(VisionError::Cancelled);
        }
    }
    let restored = planar.to_picture(Rounding::Nearest);
    Ok(match picture.alpha() {
        Some(alpha) => restored.with_alpha(&alpha),
        None => restored,
    })
}

fn restore_one(planar: &mut Planar, face: &Face, restorer: &FaceRestorer, strength: f32) -> Result<()> {
    let side = restorer.side();
    let unit = side as f64 / TEMPLATE_SIDE;
    let template = TEMPLATE.map(|(x, y)| (x * unit, y * unit));
    let landmarks = face.landmarks.map(|(x, y)| (f64::from(x), f64::from(y)));
    // Landmarks in one place or at infinity are no face.
    let Some(upright) = Affine::similarity(&landmarks, &template) else {
        return Ok(());
    };
    let Some(back) = upright.inverse() else { return Ok(()) };

    let mut cut = affine(planar, &back, (side as u32, side as u32), &BEYOND);
    // The reference goes through bytes here.
    let bytes = cut.to_picture(Rounding::Nearest).to_planar();
    cut.data_mut()
        .iter_mut()
        .zip(bytes.data())
        .for_each(|(v, b)| *v = b * 2.0 - 1.0);
    let repaired = restorer.repair(&cut)?.to_planar();
    let parsed = match &restorer.parser {
        Some(parser) => {
            let mut signed = repaired.clone();
            signed.data_mut().iter_mut().for_each(|v| *v = *v * 2.0 - 1.0);
            Some(parser.mask(&signed)?)
        }
        None => None,
    };

    // Work inside the face's bounds only.
    let corners = [
        (0.0, 0.0),
        (side as f64, 0.0),
        (0.0, side as f64),
        (side as f64, side as f64),
    ]
    .map(|c| back.apply(c));
    let span = |values: [f64; 4], len: u32| {
        let low = values.iter().copied().fold(f64::MAX, f64::min).floor() - 2.0;
        let high = values.iter().copied().fold(f64::MIN, f64::max).ceil() + 2.0;
        let low = low.clamp(0.0, f64::from(len)) as u32;
        (low, (high.clamp(0.0, f64::from(len)) as u32).saturating_sub(low))
    };
    let (left, width) = span(corners.map(|c| c.0), planar.width());
    let (top, height) = span(corners.map(|c| c.1), planar.height());
    if width == 0 || height == 0 {
        return Ok(());
    }
    let shifted = Affine([
        upright.0[0],
        upright.0[1],
        upright.0[2] + upright.0[0] * f64::from(left) + upright.0[1] * f64::from(top),
        upright.0[3],
        upright.0[4],
        upright.0[5] + upright.0[3] * f64::from(left) + upright.0[4] * f64::from(top),
    ]);
    let laid = affine(&repaired, &shifted, (width, height), &[0.0]);
    let soft = if let Some(mask) = &parsed {
        affine(mask, &shifted, (width, height), &[0.0])
    } else {
        let whole = Planar::new(1, side as u32, side as u32, vec![1.0; side * side])?;
        soft_edge(&affine(&whole, &shifted, (width, height), &[0.0]))?
    };

    let (full, size) = (
        planar.width() as usize,
        planar.width() as usize * planar.height() as usize,
    );
    let area = width as usize * height as usize;
    for c in 0..3 {
        for y in 0..height as usize {
            for x in 0..width as usize {
                let share = soft.data()[y * width as usize + x] * strength;
                let at = c * size + (y + top as usize) * full + x + left as usize;
                let new = laid.data()[c * area + y * width as usize + x];
                let value = &mut planar.data_mut()[at];
                *value += (new - *value) * share;
            }
        }
    }
    Ok(())
}

/// The covered area drawn in and blurred, by widths that follow the face's size (as facexlib pastes faces).
fn soft_edge(covered: &Planar) -> Result<Planar> {
    let hard: Vec<u8> = covered
        .data()
        .iter()
        .map(|v| if *v > 0.999 { 255 } else { 0 })
        .collect();
    let hard = blur::erode(&Mask::new(covered.width(), covered.height(), hard)?, 2, 0);
    let area = hard.data().iter().filter(|v| **v > 0).count();
    let edge = ((area as f64).sqrt() as usize / 20).max(1);
    let drawn_in = blur::erode(&hard, edge * 2, 0);
    Ok(blur::gaussian(&drawn_in.to_planar(), edge * 2 + 1, 0.0))
}
