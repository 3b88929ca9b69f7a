//! ParseNet: which part of a face each pixel belongs to, so that a repaired face is laid back without hair and clothes.
//!
//! Structure: Chen et al. 2021 (arXiv 2009.08709), in the form that GFPGAN and CodeFormer load. Sizes are told by the file.

use candle_core::Tensor;
use imaging::{Planar, PlanarFilter, blur};

use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv, upsample_nearest};
use crate::weights::Weights;

/// A loaded parser of faces.
pub struct FaceParser {
    device: candle_core::Device,
    input: Conv,
    encoder: Vec<Residual>,
    body: Vec<Residual>,
    decoder: Vec<Residual>,
    classes: Conv,
}

struct Residual {
    shortcut: Option<Conv>,
    conv1: Conv,
    conv2: Conv,
    scale: Scale,
}

#[derive(Clone, Copy, PartialEq)]
enum Scale {
    None,
    Down,
    Up,
}

/// Side of the faces it was trained on.
const SIDE: usize = 512;
/// Classes that are no face: background, an ornament, hat, hair, cloth.
const NO_FACE: [u32; 5] = [0, 14, 16, 17, 18];
/// Pixels at the border that are never laid back.
const BORDER: usize = 10;

impl FaceParser {
    /// Recognises the keys and reads it.
    ///
    /// # Errors
    /// The keys are another network's, or a tensor has no fitting shape.
    pub fn load(weights: &Weights) -> Result<Self> {
        let w = &weights.unwrapped(&["params", "state_dict"]);
        if !w.has("encoder.0.conv2d.weight") || !w.has("out_mask_conv.conv2d.weight") {
            return Err(w.unknown("face parser"));
        }
        let part = |name: &str, from: usize, scale: Scale| -> Result<Vec<Residual>> {
            (from..w.count(name))
                .map(|n| Residual::load(&w.at(format!("{name}.{n}")), scale))
                .collect()
        };
        Ok(Self {
            device: w.device().clone(),
            input: conv(w, "encoder.0", 1)?,
            encoder: part("encoder", 1, Scale::Down)?,
            body: part("body", 0, Scale::None)?,
            decoder: part("decoder", 0, Scale::Up)?,
            classes: conv(w, "out_mask_conv", 1)?,
        })
    }

    /// (1, 3, h, w) RGB in -1..=1 to the scores of each class (1, classes, h, w).
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut seen = self.input.forward(&reflected(x)?)?;
        for block in &self.encoder {
            seen = block.forward(&seen)?;
        }
        let mut h = seen.clone();
        for block in &self.body {
            h = block.forward(&h)?;
        }
        h = (seen + h)?;
        for block in &self.decoder {
            h = block.forward(&h)?;
        }
        self.classes.forward(&reflected(&h)?)
    }

    /// The scores of each class for an upright face (three planes in -1..=1): (1, classes, 512, 512).
    ///
    /// # Errors
    /// The picture has another number of planes, or a tensor operation fails.
    pub fn scores(&self, face: &Planar) -> Result<Tensor> {
        if face.channels() != 3 {
            return Err(VisionError::Input("the face parser takes three planes".into()));
        }
        let sized = face.resized(SIDE as u32, SIDE as u32, PlanarFilter::Bilinear);
        let x = Tensor::from_slice(sized.data(), (1, 3, SIDE, SIDE), &self.device)?;
        self.forward(&x)
    }

    /// How much of each pixel of an upright face (three planes in -1..=1) is face, with soft edges, in 0..=1.
    ///
    /// # Errors
    /// As for [`Self::scores`].
    pub fn mask(&self, face: &Planar) -> Result<Planar> {
        let (width, height) = (face.width(), face.height());
        let classes = self.scores(face)?.argmax(1)?.flatten_all()?.to_vec1::<u32>()?;
        let hard = classes
            .iter()
            .map(|class| if NO_FACE.contains(class) { 0.0 } else { 1.0 });
        let mut mask = Planar::new(1, SIDE as u32, SIDE as u32, hard.collect())?;
        for _ in 0..2 {
            mask = blur::gaussian(&mask, 101, 11.0);
        }
        for (at, value) in mask.data_mut().iter_mut().enumerate() {
            let (x, y) = (at % SIDE, at / SIDE);
            let inside = BORDER..SIDE - BORDER;
            if !inside.contains(&x) || !inside.contains(&y) {
                *value = 0.0;
            }
        }
        Ok(mask.resized(width, height, PlanarFilter::Bilinear))
    }
}

/// A convolution without padding, as the edges are mirrored before it, with its batch norm folded in.
fn conv(w: &Weights, name: &str, stride: usize) -> Result<Conv> {
    let conv = Conv::load_with_norm(w, &format!("{name}.conv2d"), &format!("{name}.norm.norm"))?;
    Ok(conv.stride(stride).padding(0))
}

/// One pixel mirrored at each edge (torch's `ReflectionPad2d(1)`).
fn reflected(x: &Tensor) -> Result<Tensor> {
    let mut x = x.clone();
    for dim in [2, 3] {
        let size = x.dim(dim)?;
        if size < 2 {
            return Err(VisionError::Input("a picture too small to mirror its edges".into()));
        }
        let (first, last) = (x.narrow(dim, 1, 1)?, x.narrow(dim, size - 2, 1)?);
        x = Tensor::cat(&[&first, &x, &last], dim)?;
    }
    Ok(x)
}

impl Residual {
    fn load(w: &Weights, scale: Scale) -> Result<Self> {
        let down = if scale == Scale::Down { 2 } else { 1 };
        Ok(Self {
            shortcut: if w.has("shortcut_func.conv2d.weight") {
                Some(conv(w, "shortcut_func", down)?)
            } else {
                None
            },
            conv1: conv(w, "conv1", 1)?,
            conv2: conv(w, "conv2", down)?,
            scale,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = if self.scale == Scale::Up {
            upsample_nearest(x, 2)?
        } else {
            x.clone()
        };
        let h = self.conv1.forward_act(&reflected(&x)?, Act::Leaky(0.2))?;
        let h = self.conv2.forward(&reflected(&h)?)?;
        Ok(match &self.shortcut {
            Some(conv) => (conv.forward(&reflected(&x)?)? + h)?,
            None => (x + h)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::face::made_up::apart_from_reference;

    #[test]
    fn a_tiny_network_gives_the_references_numbers() {
        let most = apart_from_reference("faces/parsenet", |w, x| FaceParser::load(w)?.forward(x));
        assert!(most <= 2e-4, "differs by {most}");
    }

    #[test]
    fn edges_are_mirrored_without_the_edge_itself() {
        let device = candle_core::Device::Cpu;
        let x = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0], (1, 1, 2, 2), &device).unwrap();
        let y = reflected(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(
            y,
            [
                4.0, 3.0, 4.0, 3.0, 2.0, 1.0, 2.0, 1.0, 4.0, 3.0, 4.0, 3.0, 2.0, 1.0, 2.0, 1.0
            ]
        );
        assert!(reflected(&Tensor::zeros((1, 1, 1, 4), candle_core::DType::F32, &device).unwrap()).is_err());
    }
}
