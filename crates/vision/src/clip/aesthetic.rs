//! How much people would like a picture, from its place in CLIP's space.
//!
//! Two published heads are read, both trained on places of length 1: one layer (LAION-AI/aesthetic-predictor, keys `weight`
//! and `bias`) and five layers without anything between them (christophschuhmann/improved-aesthetic-predictor at 6934dd8,
//! keys `layers.N.*`, whose numbers skip what only training needs).

use candle_core::Tensor;
use imaging::Picture;

use super::ClipVision;
use crate::error::{Result, VisionError};
use crate::layers::Linear;
use crate::weights::Weights;

/// A picture's score.
pub struct AestheticScorer {
    vision: ClipVision,
    head: AestheticHead,
}

/// From a place to a score.
pub struct AestheticHead {
    layers: Vec<Linear>,
    /// Numbers of a place.
    dimension: usize,
}

impl AestheticHead {
    /// Reads either layout; each layer must take what the one before gives, and the last give one number.
    pub fn load(w: &Weights) -> Result<Self> {
        let names = if w.has("weight") {
            vec![String::new()]
        } else {
            let mut numbers: Vec<u32> = w.at("layers").keys().filter_map(layer_number).collect();
            numbers.sort_unstable();
            numbers.dedup();
            numbers.into_iter().map(|number| format!("layers.{number}.")).collect()
        };
        if names.is_empty() {
            return Err(w.unknown("aesthetic head"));
        }
        let mut layers = Vec::with_capacity(names.len());
        let (mut dimension, mut width) = (0, None);
        for name in &names {
            let [weight, bias] = ["weight", "bias"].map(|part| format!("{name}{part}"));
            let [outputs, inputs] = w.dims(&weight)?;
            if width.is_some_and(|width| width != inputs) {
                return Err(w.misshapen(&weight, vec![outputs, inputs], "the layer before gives another width"));
            }
            if width.is_none() {
                dimension = inputs;
            }
            width = Some(outputs);
            layers.push(Linear::from_parts(
                w.get(&weight)?,
                Some(w.get_shaped(&bias, &[outputs])?),
            )?);
        }
        match (width, names.last()) {
            (Some(1), _) => Ok(Self { layers, dimension }),
            (width, last) => Err(w.misshapen(
                &format!("{}weight", last.map_or("", String::as_str)),
                vec![width.unwrap_or(0)],
                "a score is one number",
            )),
        }
    }

    /// (b, dimension), rows of length 1, to (b, 1).
    pub fn forward(&self, places: &Tensor) -> Result<Tensor> {
        let mut x = places.clone();
        for layer in &self.layers {
            x = layer.forward(&x)?;
        }
        Ok(x)
    }
}

impl AestheticScorer {
    /// A head on the CLIP it was made for; another CLIP's places have another width.
    pub fn new(vision: ClipVision, head: AestheticHead) -> Self {
        Self { vision, head }
    }

    /// About 0 (bad) to 10 (good); what the head gives beyond is brought back.
    ///
    /// # Errors
    /// The head is none for this CLIP, or gives no number.
    pub fn score(&self, picture: &Picture) -> Result<f32> {
        let place = self.vision.embed_pixels(&self.vision.pixels(picture)?)?; // (1, dimension)
        let (_, dimension) = place.dims2()?;
        if dimension != self.head.dimension {
            return Err(VisionError::Side {
                what: "aesthetic head".into(),
                reason: format!(
                    "it was made for another CLIP: it takes {} numbers and this one gives {dimension}",
                    self.head.dimension
                ),
            });
        }
        let score = self.head.forward(&place)?.flatten_all()?.to_vec1::<f32>()?;
        match score.as_slice() {
            [score] if score.is_finite() => Ok(score.clamp(0.0, 10.0)),
            _ => Err(VisionError::Misfit("the aesthetic head gave no number".into())),
        }
    }
}

/// The number of `N.weight`.
fn layer_number(key: &str) -> Option<u32> {
    key.strip_suffix(".weight")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use candle_core::Device;

    use super::*;

    fn weights(tensors: &[(&str, &[f32], &[usize])]) -> Weights {
        let tensors = tensors.iter().map(|(key, values, shape)| {
            let tensor = Tensor::from_vec(values.to_vec(), *shape, &Device::Cpu).unwrap();
            ((*key).to_owned(), tensor)
        });
        Weights::from_tensors(tensors.collect::<BTreeMap<_, _>>(), &Device::Cpu)
    }

    fn scored(head: &AestheticHead, place: &[f32]) -> f32 {
        let place = Tensor::from_vec(place.to_vec(), (1, place.len()), &Device::Cpu).unwrap();
        head.forward(&place)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()[0]
    }

    #[test]
    fn both_published_layouts_are_read_by_their_keys() {
        let one = weights(&[("weight", &[2.0, -1.0], &[1, 2]), ("bias", &[0.5], &[1])]);
        let near = |head: &Weights, expected: f32| {
            let score = scored(&AestheticHead::load(head).unwrap(), &[0.6, 0.8]);
            assert!((score - expected).abs() < 1e-5, "{score} and not {expected}");
        };
        near(&one, 0.9);
        // Numbers as dropouts leave them, of which ten comes after nine.
        let several = weights(&[
            ("layers.10.weight", &[1.0, 10.0], &[1, 2]),
            ("layers.10.bias", &[1.0], &[1]),
            ("layers.2.weight", &[1.0, 0.0, 0.0, 1.0], &[2, 2]),
            ("layers.2.bias", &[0.0, -2.0], &[2]),
        ]);
        // No activation between them: what is below zero counts.
        near(&several, 0.6 - 12.0 + 1.0);
    }

    #[test]
    fn what_is_no_head_is_refused_by_its_header() {
        let broken = [
            weights(&[("something.weight", &[1.0], &[1, 1])]),
            weights(&[("weight", &[1.0, 2.0], &[2, 1]), ("bias", &[0.0, 0.0], &[2])]),
            weights(&[("weight", &[1.0, 2.0], &[1, 2])]),
            weights(&[
                ("layers.0.weight", &[1.0, 1.0], &[2, 1]),
                ("layers.0.bias", &[0.0, 0.0], &[2]),
                ("layers.1.weight", &[1.0, 1.0, 1.0], &[1, 3]),
                ("layers.1.bias", &[0.0], &[1]),
            ]),
        ];
        for broken in broken {
            assert!(AestheticHead::load(&broken).is_err());
        }
    }
}
