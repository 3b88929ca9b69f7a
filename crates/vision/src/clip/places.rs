//! Where words stand in CLIP's space, computed once per list and network and kept on disk.
//!
//! A finished list is a safetensors file with one tensor `places`, (words, dimension). An unfinished one is a file of plain
//! little-endian f32, one row per word in the list's order, to which rows are added; whole rows of it are trusted.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use super::interrogate::WordList;
use super::{Clip, ClipTokenizer};
use crate::error::{Result, VisionError};

/// Words placed between two looks at whether to go on, and written together.
const AT_ONCE: usize = 32;

/// A folder for places of words.
#[derive(Clone, Debug)]
pub struct PlaceCache {
    /// The folder; made when needed.
    pub folder: PathBuf,
    /// Names the network: anything that changes with its weights, such as their sum.
    pub model: String,
}

impl PlaceCache {
    /// Whether the places of all lists are there, without reading them.
    pub fn has(&self, lists: &[WordList]) -> bool {
        lists
            .iter()
            .all(|list| list.words.is_empty() || self.finished(list).is_file())
    }

    /// Removes what was kept for other words or another network: nobody reads it again. Other files stay.
    pub(super) fn forget_others(&self, lists: &[WordList]) {
        let current: Vec<String> = lists.iter().map(|list| self.key(list)).collect();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let part = |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str().map(str::to_owned));
            let (Some(key), Some(kind)) = (part(path.file_stem()), part(path.extension())) else {
                continue;
            };
            let digits = key.rsplit_once('-').map_or("", |(_, digits)| digits);
            let is_ours = digits.len() == 16
                && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
                && ["safetensors", "partial", "new"].contains(&kind.as_str());
            if is_ours && !current.contains(&key) {
                let _ = std::fs::remove_file(&path);
            }
        }
    }

    fn finished(&self, list: &WordList) -> PathBuf {
        self.folder.join(format!("{}.safetensors", self.key(list)))
    }

    fn begun(&self, list: &WordList) -> PathBuf {
        self.folder.join(format!("{}.partial", self.key(list)))
    }

    /// Name of the list, and 16 digits of the sum over its words and the network's name.
    fn key(&self, list: &WordList) -> String {
        let mut sum = Sha256::new();
        for part in std::iter::once(&self.model).chain(&list.words) {
            sum.update((part.len() as u64).to_le_bytes());
            sum.update(part.as_bytes());
        }
        let digits: String = sum
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        format!("{}-{digits}", list.name)
    }
}

/// (words, dimension). `step(words done)` is asked whether to go on.
pub(super) fn of(
    clip: &Clip,
    tokenizer: &ClipTokenizer,
    list: &WordList,
    cache: Option<&PlaceCache>,
    step: &mut dyn FnMut(usize) -> bool,
) -> Result<Tensor> {
    let device = &clip.vision.device;
    if let Some(places) = cache.and_then(|cache| read(&cache.finished(list), list.words.len(), device)) {
        return Ok(places);
    }
    let mut keeper = cache.map(|cache| cache.begun(list));
    let context_len = clip.text.context_len();
    let mut dimension = None;
    let mut rows: Vec<f32> = Vec::new();
    let mut done = 0;
    while done < list.words.len() {
        if !step(done) {
            return Err(VisionError::Cancelled);
        }
        let words = list
            .words
            .get(done..(done + AT_ONCE).min(list.words.len()))
            .unwrap_or_default();
        let ids: Vec<Vec<u32>> = words
            .iter()
            .map(|word| tokenizer.encode(word, context_len))
            .collect::<Result<_>>()?;
        let places = clip.text.embed(&ids)?;
        let width = places.dim(1)?;
        let fresh: Vec<f32> = places.flatten_all()?.to_vec1()?;
        if dimension.is_none() {
            dimension = Some(width);
            // What an earlier run left saves all but these first words.
            if let Some(kept) = keeper
                .as_deref()
                .and_then(|path| kept_rows(path, width, list.words.len(), &fresh))
            {
                done = kept.len() / width;
                rows = kept;
                continue;
            }
            keeper = keeper.filter(|path| begin(path));
        }
        if keeper.as_deref().is_some_and(|path| !append(path, &fresh)) {
            keeper = None;
        }
        rows.extend(fresh);
        done += words.len();
    }
    let places = Tensor::from_vec(rows, (list.words.len(), dimension.unwrap_or(1)), device)?;
    if let Some(cache) = cache {
        finish(&cache.finished(list), &cache.begun(list), &places);
    }
    step(done);
    Ok(places)
}

/// Whole rows that an earlier run kept, if its first ones are these (a cosine off by rounding is the same network's).
fn kept_rows(path: &Path, width: usize, n_words: usize, first: &[f32]) -> Option<Vec<f32>> {
    let bytes = std::fs::read(path).ok()?;
    let n_rows = (bytes.len() / 4).checked_div(width)?.min(n_words);
    let values = bytes.chunks_exact(4).take(n_rows * width);
    let kept: Vec<f32> = values
        .filter_map(|value| Some(f32::from_le_bytes(value.try_into().ok()?)))
        .collect();
    let same = kept.len() >= first.len() && kept.iter().zip(first).all(|(a, b)| (a - b).abs() < 1e-3);
    if !same {
        return None;
    }
    // A row that was cut off would shift all behind it.
    let file = OpenOptions::new().write(true).open(path).ok()?;
    file.set_len((kept.len() * 4) as u64).ok()?;
    Some(kept)
}

fn begin(path: &Path) -> bool {
    let made = path
        .parent()
        .is_none_or(|folder| std::fs::create_dir_all(folder).is_ok());
    let begun = made && std::fs::write(path, b"").is_ok();
    if !begun {
        tracing::debug!(path = %path.display(), "places of words cannot be kept");
    }
    begun
}

fn append(path: &Path, rows: &[f32]) -> bool {
    let bytes: Vec<u8> = rows.iter().flat_map(|value| value.to_le_bytes()).collect();
    let file = OpenOptions::new().append(true).open(path);
    file.and_then(|mut file| file.write_all(&bytes)).is_ok()
}

fn read(path: &Path, n_words: usize, device: &Device) -> Option<Tensor> {
    let places = candle_core::safetensors::load(path, device).ok()?.remove("places")?;
    (places.dims2().ok()?.0 == n_words).then_some(places)
}

/// Writes the finished file by renaming and removes the unfinished one.
fn finish(finished: &Path, begun: &Path, places: &Tensor) {
    let write = || -> std::result::Result<(), String> {
        if let Some(folder) = finished.parent() {
            std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
        }
        let temporary = finished.with_extension("new");
        let named = std::collections::HashMap::from([("places".to_owned(), places.clone())]);
        candle_core::safetensors::save(&named, &temporary).map_err(|e| e.to_string())?;
        std::fs::rename(&temporary, finished).map_err(|e| e.to_string())?;
        let _ = std::fs::remove_file(begun);
        Ok(())
    };
    if let Err(reason) = write() {
        tracing::debug!(path = %finished.display(), reason, "places of words were not kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_the_words_and_the_network() {
        let cache = |model: &str| PlaceCache {
            folder: PathBuf::from("/nowhere"),
            model: model.into(),
        };
        let list = |text: &str| WordList::parse("mediums", text);
        let key = cache("a").key(&list("oil\npastel"));
        assert_eq!(key, cache("a").key(&list("oil\n\npastel")));
        for other in [
            cache("b").key(&list("oil\npastel")),
            cache("a").key(&list("pastel\noil")),
            cache("a").key(&list("oilpastel")),
        ] {
            assert_ne!(key, other);
        }
    }

    #[test]
    fn places_of_other_words_go_and_strange_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let cache = PlaceCache {
            folder: folder.path().to_owned(),
            model: "a".into(),
        };
        let lists = [WordList::parse("tags", "red\nblue")];
        let stale = WordList::parse("tags", "red");
        let strange =
            ["notes.txt", "tags.safetensors", "tags-0123456789abcdeg.safetensors"].map(|name| folder.path().join(name));
        let current = [cache.finished(&lists[0]), cache.begun(&lists[0])];
        let gone = [cache.finished(&stale), cache.begun(&stale)];
        for path in strange.iter().chain(&current).chain(&gone) {
            std::fs::write(path, b"x").unwrap();
        }
        cache.forget_others(&lists);
        assert!(strange.iter().chain(&current).all(|path| path.is_file()));
        assert!(gone.iter().all(|path| !path.exists()));
    }

    #[test]
    fn only_whole_rows_of_the_same_network_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.partial");
        assert!(begin(&path) && append(&path, &[0.1, 0.2, 0.3, 0.4]));
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(&[1, 2, 3])
            .unwrap();
        assert_eq!(kept_rows(&path, 2, 9, &[0.1, 0.2]), Some(vec![0.1, 0.2, 0.3, 0.4]));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 16);
        assert_eq!(kept_rows(&path, 2, 9, &[0.9, 0.2]), None);
        assert_eq!(kept_rows(&path, 2, 1, &[0.1, 0.2]), Some(vec![0.1, 0.2]));
    }
}
