//! Interrogation: which words of ranked lists fit a picture best.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use imaging::Picture;

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

    /// A name for the cache file that changes with the words and with the model.
    fn fingerprint(&self, model: &str) -> String {
        let mut hasher = DefaultHasher::new();
        (&self.name, &self.words, model).hash(&mut hasher);
        format!("{}-{:016x}.safetensors", self.name, hasher.finish())
    }
}

impl Interrogator {
    /// Embeds the lists, or reads their places from `cache` where `model` (any name that changes with the weights) and
    /// the words are the same. A cache that cannot be written is no error.
    pub fn new(
        clip: Clip,
        tokenizer: &ClipTokenizer,
        lists: Vec<WordList>,
        cache: Option<(&Path, &str)>,
    ) -> Result<Self> {
        let lists = lists
            .into_iter()
            .filter(|list| !list.words.is_empty())
            .map(|list| {
                let path = cache.map(|(folder, model)| folder.join(list.fingerprint(model)));
                let cached = path.as_ref().and_then(|path| read_cache(path, list.words.len(), &clip));
                let places = match cached {
                    Some(places) => places,
                    None => {
                        let context_len = clip.text.context_len();
                        let ids = list
                            .words
                            .iter()
                            .map(|word| tokenizer.encode(word, context_len))
                            .collect::<Result<Vec<_>>>()?;
                        let places = clip.text.embed(&ids)?;
                        if let Some(path) = &path {
                            write_cache(path, &places);
                        }
                        places
                    }
                };
                Ok((list, places))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { clip, lists })
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

fn read_cache(path: &Path, n_words: usize, clip: &Clip) -> Option<Tensor> {
    let places = candle_core::safetensors::load(path, &clip.vision.device)
        .ok()?
        .remove("places")?;
    (places.dims2().ok()?.0 == n_words).then_some(places)
}

fn write_cache(path: &Path, places: &Tensor) {
    let write = || -> std::result::Result<(), String> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
        }
        let temporary = path.with_extension("partial");
        let named = std::collections::HashMap::from([("places".to_owned(), places.clone())]);
        candle_core::safetensors::save(&named, &temporary).map_err(|e| e.to_string())?;
        std::fs::rename(&temporary, path).map_err(|e| e.to_string())
    };
    if let Err(reason) = write() {
        tracing::debug!(path = %path.display(), reason, "word places were not cached");
    }
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
        assert_ne!(list.fingerprint("a"), list.fingerprint("b"));
        assert_ne!(
            list.fingerprint("a"),
            WordList::parse("mediums", "pastel").fingerprint("a")
        );
    }
}
