//! The networks that repair one upright face, and the parser beside them.

use candle_core::Tensor;
use imaging::{Picture, Planar, Rounding};

use super::codeformer::{self, CodeFormer};
use super::gfpgan::{self, Gfpgan};
use super::parsenet::FaceParser;
use super::restoreformer::{self, RestoreFormer};
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
    pub(super) parser: Option<FaceParser>,
}

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

/// Longest side of faces in pixels that is believed; published networks take 512.
const MAX_SIDE: usize = 2048;

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
        if !(1..=MAX_SIDE).contains(&network.side()) {
            return Err(VisionError::Misfit(format!(
                "a {architecture} for faces of {} pixels; at most {MAX_SIDE} are believed",
                network.side()
            )));
        }
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
            return Err(VisionError::Misfit(
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
