//! Interrogation: which words of ranked lists fit a picture best.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use imaging::Picture;

use super::places::{self, PlaceCache};
use super::{Clip, ClipTokenizer};
use crate::error::{Result, VisionError};

/// Words of one kind: artists, mediums, flavors, …
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WordList {
    /// As the result names it.
    pub name: String,
    /// One entry each, in the file's order, blank lines left out.
    pub words: Vec<String>,
}

/// One word with its share of the list: 0..=100, all shares of a list add up to 100.
#[derive(Clone, Debug, PartialEq)]
pub struct Tag {
    /// The word.
    pub text: String,
    /// Softmax over the list, times 100.
    pub confidence: f32,
}

/// Word lists with their places in CLIP's space.
pub struct Interrogator {
    clip: Clip,
    lists: Vec<(WordList, Tensor)>,
}

/// Longest list that is believed.
const MAX_WORDS: usize = 200_000;

impl WordList {
    /// Reads every `NAME.txt` of a folder, one entry a line, in the order of their names.
    pub fn read_folder(folder: &Path) -> Result<Vec<Self>> {
        let broken = |path: &Path, e: std::io::Error| VisionError::Side {
            what: format!("word list `{}`", path.display()),
            reason: e.to_string(),
        };
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(|e| broken(folder, e))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "txt"))
            .collect();
        paths.sort();
        paths
            .iter()
            .map(|path| {
                let text = std::fs::read_to_string(path).map_err(|e| broken(path, e))?;
                let name = path
                    .file_stem()
                    .map(|s| s.to_string_lossy().into_owned())
                    .unwrap_or_default();
                Ok(Self::parse(&name, &text))
            })
            .collect()
    }

    /// One entry a line; blank lines are left out.
    pub fn parse(name: &str, text: &str) -> Self {
        let words = text
            .lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .take(MAX_WORDS)
            .map(str::to_owned)
            .collect();
        Self {
            name: name.to_owned(),
            words,
        }
    }
}

impl Interrogator {
    /// Places the words of all lists in CLIP's space. What `cache` has is read, what it has not is computed, kept piece by
    /// piece, and goes on there the next time. `progress(done, total)` counts words and ends the work with `false`
    /// ([`VisionError::Cancelled`]). A cache that cannot be written is no error.
    pub fn new(
        clip: Clip,
        tokenizer: &ClipTokenizer,
        lists: Vec<WordList>,
        cache: Option<&PlaceCache>,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Self> {
        let lists: Vec<WordList> = lists.into_iter().filter(|list| !list.words.is_empty()).collect();
        let total = lists.iter().map(|list| list.words.len()).sum();
        let mut done = 0;
        let mut placed = Vec::new();
        if let Some(cache) = cache {
            cache.forget_others(&lists);
        }
        for list in lists {
            let before = done;
            let mut step = |words: usize| progress(before + words, total);
            let places = places::of(&clip, tokenizer, &list, cache, &mut step)?;
            done += list.words.len();
            placed.push((list, places));
        }
        Ok(Self { clip, lists: placed })
    }

    /// For each list its `top` best words, best first.
    pub fn interrogate(&self, picture: &Picture, top: usize) -> Result<Vec<(String, Vec<Tag>)>> {
        let place = self.clip.vision.embed_pixels(&self.clip.vision.pixels(picture)?)?; // (1, dimension)
        self.lists
            .iter()
            .map(|(list, places)| {
                let cosines = places.matmul(&place.t()?)?.flatten_all()?.to_vec1::<f32>()?;
                let shares = shares(&cosines, self.clip.logit_scale);
                let mut order: Vec<usize> = (0..shares.len()).collect();
                order.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
                let tags = order
                    .into_iter()
                    .take(top)
                    .map(|i| Tag {
                        text: list.words[i].clone(),
                        confidence: shares[i],
                    })
                    .collect();
                Ok((list.name.clone(), tags))
            })
            .collect()
    }

    /// The halves themselves, for other uses of the same weights.
    pub fn clip(&self) -> &Clip {
        &self.clip
    }
}

/// 100 × softmax(scale × cosine).
fn shares(cosines: &[f32], scale: f32) -> Vec<f32> {
    let most = cosines.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let raised: Vec<f32> = cosines.iter().map(|c| (scale * (c - most)).exp()).collect();
    let sum: f32 = raised.iter().sum();
    raised.iter().map(|r| 100.0 * r / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_a_hundred_and_follow_the_cosines() {
        let shares = shares(&[0.2, 0.25, -0.1], 100.0);
        assert!((shares.iter().sum::<f32>() - 100.0).abs() < 1e-3);
        assert!(shares[1] > 99.0 && shares[0] > shares[2]);
    }

    #[test]
    fn a_word_list_is_its_lines() {
        let list = WordList::parse("mediums", "oil painting\n\n  pastel \n");
        assert_eq!(list.words, ["oil painting", "pastel"]);
    }
}
