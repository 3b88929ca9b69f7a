//! CLIP as the checker uses it, for making sets.

use std::path::Path;

use candle_core::Device;
use imaging::Picture;

use crate::clip::{Clip, ClipTokenizer};
use crate::error::{Result, VisionError};
use crate::safety::Lists;
use crate::safety::checker::open_clip;
use crate::safety::places::{cache_file, has_length_one, places, sha256_of_file};
use crate::safety::self_test::self_test;

/// Turns pictures and phrases into vectors of length 1.
pub struct Embedder {
    clip: Clip,
    tokenizer: ClipTokenizer,
    sha256: String,
}

impl Embedder {
    /// Reads and tries the weights.
    pub fn open(weights: &Path, device: &Device) -> Result<Self> {
        let clip = open_clip(weights, device)?;
        let tokenizer = ClipTokenizer::openai()?;
        self_test(&clip, &tokenizer)?;
        Ok(Self {
            clip,
            tokenizer,
            sha256: sha256_of_file(weights)?,
        })
    }

    /// Sum of the weights' file; sets of one CLIP are not for another.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The vector of the middle square of a picture, over white.
    pub fn picture(&self, picture: &Picture) -> Result<Vec<f32>> {
        let place = self.clip.vision.embed(picture)?;
        if has_length_one(&place) {
            Ok(place)
        } else {
            Err(VisionError::Input("CLIP gave no direction for the picture".into()))
        }
    }

    /// The vectors of all phrases in the order of [`Lists::texts`], kept in `cache`.
    pub fn phrases(&self, lists: &Lists, cache: &Path) -> Result<Vec<Vec<f32>>> {
        let texts = lists.texts();
        let made = places(
            &self.clip,
            &self.tokenizer,
            &texts,
            &cache_file(cache, &self.sha256, &texts),
        )?;
        match made.iter().find(|place| place.len() != lists.dimension) {
            Some(place) => Err(VisionError::Input(format!(
                "CLIP has a space of {} dimensions, but the phrase lists are for {} with {}",
                place.len(),
                lists.made_for,
                lists.dimension
            ))),
            None => Ok(made),
        }
    }
}
