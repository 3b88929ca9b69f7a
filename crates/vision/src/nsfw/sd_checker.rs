//! Stable Diffusion's safety checker: CLIP's vision tower and twenty concepts with thresholds of their own.
//!
//! As in `CompVis/stable-diffusion-safety-checker`: three special-care concepts lower every threshold by 0.01 once one
//! of them fires; scores are rounded to three digits before they are judged.

use candle_core::Tensor;
use imaging::Picture;

use crate::clip::{ClipConfig, ClipVision, unit};
use crate::error::{Result, VisionError};
use crate::weights::Weights;

/// A loaded checker.
pub struct SdSafetyChecker {
    vision: ClipVision,
    special: Concepts,
    concepts: Concepts,
}

struct Concepts {
    /// (concepts, dimension), rows of length 1.
    places: Tensor,
    thresholds: Vec<f32>,
}

/// What the checker found.
#[derive(Clone, Debug, PartialEq)]
pub struct SdVerdict {
    /// Whether any concept passed its threshold.
    pub flagged: bool,
    /// Cosines to the special-care concepts.
    pub special: Vec<f32>,
    /// Cosines to the concepts.
    pub concepts: Vec<f32>,
}

impl SdSafetyChecker {
    /// Reads `vision_model.*`, `visual_projection`, the concepts and their thresholds.
    pub fn load(w: &Weights, config: &ClipConfig) -> Result<Self> {
        if !w.has("concept_embeds") {
            return Err(w.unknown("safety checker"));
        }
        let concepts = |places: &str, thresholds: &str| -> Result<Concepts> {
            let found = Concepts {
                places: unit(&w.get(places)?)?,
                thresholds: w.get(thresholds)?.to_vec1()?,
            };
            if found.places.dim(0)? != found.thresholds.len() {
                return Err(w.misshapen(thresholds, w.shape(thresholds)?, "one threshold per concept is needed"));
            }
            Ok(found)
        };
        Ok(Self {
            vision: ClipVision::load(w, config)?,
            special: concepts("special_care_embeds", "special_care_embeds_weights")?,
            concepts: concepts("concept_embeds", "concept_embeds_weights")?,
        })
    }

    /// Judges a picture.
    pub fn check(&self, picture: &Picture) -> Result<SdVerdict> {
        self.check_pixels(&self.vision.pixels(picture)?)
    }

    /// Judges prepared pixels, (1, 3, side, side).
    pub fn check_pixels(&self, pixels: &Tensor) -> Result<SdVerdict> {
        let place = self.vision.embed_pixels(pixels)?;
        let cosines =
            |c: &Concepts| -> Result<Vec<f32>> { Ok(c.places.matmul(&place.t()?)?.flatten_all()?.to_vec1::<f32>()?) };
        let (special, concepts) = (cosines(&self.special)?, cosines(&self.concepts)?);
        if special.iter().chain(&concepts).any(|c| !c.is_finite()) {
            return Err(VisionError::Misfit(
                "the safety checker gave values that are no numbers".into(),
            ));
        }
        let flagged = flagged(&special, &self.special.thresholds, &concepts, &self.concepts.thresholds);
        Ok(SdVerdict {
            flagged,
            special,
            concepts,
        })
    }
}

fn flagged(special: &[f32], special_thresholds: &[f32], concepts: &[f32], thresholds: &[f32]) -> bool {
    let passes = |cosine: f32, threshold: f32, lowered: f32| ((cosine - threshold + lowered) * 1000.0).round() > 0.0;
    let mut lowered = 0.0;
    for (cosine, threshold) in special.iter().zip(special_thresholds) {
        if passes(*cosine, *threshold, lowered) {
            lowered = 0.01;
        }
    }
    concepts
        .iter()
        .zip(thresholds)
        .any(|(cosine, threshold)| passes(*cosine, *threshold, lowered))
}

#[cfg(test)]
mod tests {
    use super::flagged;

    #[test]
    fn a_special_concept_lowers_the_bar_for_the_others() {
        assert!(!flagged(&[0.1], &[0.2], &[0.195], &[0.2]));
        assert!(flagged(&[0.21], &[0.2], &[0.195], &[0.2]));
        assert!(flagged(&[0.0], &[0.2], &[0.201], &[0.2]));
        // Rounded to three digits, a hair above the threshold does not count.
        assert!(!flagged(&[0.0], &[0.2], &[0.2004], &[0.2]));
    }
}
