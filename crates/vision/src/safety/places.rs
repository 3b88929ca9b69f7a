//! Where phrases lie in CLIP's space: computed by the checker's own CLIP, kept on disk under a sum over weights and phrases.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest as _, Sha256};

use crate::clip::{Clip, ClipTokenizer};
use crate::error::{Result, VisionError};

/// One vector of length 1 for each phrase.
pub(super) type Places = Vec<Vec<f32>>;

/// Phrases that go through CLIP before the next cancel point of the device: bounds the memory of one step.
const AT_ONCE: usize = 32;
/// Room for the header of a cache file.
const MAX_HEADER_BYTES: u64 = 4096;

/// SHA-256 of a file in lower-case hexadecimal, read in steps of 1 MiB.
pub(super) fn sha256_of_file(path: &Path) -> Result<String> {
    let unreadable = |e: std::io::Error| VisionError::Unreadable {
        path: path.display().to_string(),
        reason: e.to_string(),
    };
    let mut file = std::fs::File::open(path).map_err(unreadable)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).map_err(unreadable)?;
        if n == 0 {
            return Ok(hex(&sum.finalize()));
        }
        sum.update(&buffer[..n]);
    }
}

/// The cache file of phrases under weights of this sum.
pub(super) fn cache_file(folder: &Path, weights_sha256: &str, texts: &[&str]) -> PathBuf {
    let mut sum = Sha256::new();
    sum.update(weights_sha256);
    for text in texts {
        sum.update((text.len() as u64).to_le_bytes());
        sum.update(text);
    }
    folder.join(format!("safety-{}.safetensors", hex(&sum.finalize())))
}

/// Reads the places from the cache, or computes and keeps them. A cache that is damaged or cannot be written is no error.
pub(super) fn places(clip: &Clip, tokenizer: &ClipTokenizer, texts: &[&str], cache: &Path) -> Result<Places> {
    if let Some(kept) = read_cache(cache, texts.len()) {
        return Ok(kept);
    }
    let context_len = clip.text.context_len();
    let mut places = Places::new();
    for part in texts.chunks(AT_ONCE) {
        let ids = part
            .iter()
            .map(|text| tokenizer.encode(text, context_len))
            .collect::<Result<Vec<_>>>()?;
        places.extend(clip.text.embed(&ids)?.to_vec2::<f32>()?);
    }
    if !places.iter().all(|place| has_length_one(place)) {
        return Err(VisionError::Misfit(
            "CLIP gave places of phrases that are no directions: its weights are broken".into(),
        ));
    }
    if let Err(reason) = write_cache(cache, &places) {
        tracing::debug!(path = %cache.display(), reason, "places of phrases were not cached");
    }
    Ok(places)
}

/// False for anything with NaN.
pub(super) fn has_length_one(place: &[f32]) -> bool {
    let length: f32 = place.iter().map(|v| v * v).sum::<f32>().sqrt();
    (0.98..=1.02).contains(&length)
}

fn read_cache(path: &Path, n_texts: usize) -> Option<Places> {
    let n_bytes = std::fs::metadata(path).ok()?.len();
    // 32 KiB for each phrase is a space of 8192 dimensions.
    if n_bytes > MAX_HEADER_BYTES + (n_texts as u64).saturating_mul(32 << 10) {
        return None;
    }
    let bytes = std::fs::read(path).ok()?;
    let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
    let sum = header.metadata().as_ref()?.get("sha256")?.clone();
    let file = SafeTensors::deserialize(&bytes).ok()?;
    let view = file.tensor("places").ok()?;
    let [rows, width] = view.shape().try_into().ok()?;
    let [rows, width]: [usize; 2] = [rows, width];
    if rows != n_texts || width == 0 || view.dtype() != Dtype::F32 || hex(&Sha256::digest(view.data())) != sum {
        return None;
    }
    let values: Vec<f32> = view
        .data()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let places: Places = values.chunks_exact(width).map(<[f32]>::to_vec).collect();
    places.iter().all(|place| has_length_one(place)).then_some(places)
}

fn write_cache(path: &Path, places: &Places) -> std::result::Result<(), String> {
    let data: Vec<u8> = places.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    let shape = vec![places.len(), places.first().map_or(0, Vec::len)];
    let header = HashMap::from([("sha256".to_owned(), hex(&Sha256::digest(&data)))]);
    let view = TensorView::new(Dtype::F32, shape, &data).map_err(|e| e.to_string())?;
    let bytes = safetensors::serialize([("places", view)], Some(header)).map_err(|e| e.to_string())?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    }
    // Several engines may come to the same file at once.
    let temporary = path.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&temporary, bytes).map_err(|e| e.to_string())?;
    std::fs::rename(&temporary, path).map_err(|e| e.to_string())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_cache_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let path = cache_file(folder.path(), "abc", &["one", "two"]);
        let places = vec![vec![1.0, 0.0], vec![0.6, 0.8]];
        write_cache(&path, &places).unwrap();
        assert_eq!(read_cache(&path, 2), Some(places));
        assert_eq!(read_cache(&path, 3), None);
        let whole = std::fs::read(&path).unwrap();
        for at in [whole.len() - 1, whole.len() - 9, 9] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(read_cache(&path, 2), None, "{at}");
        }
        std::fs::write(&path, &whole[..whole.len() - 4]).unwrap();
        assert_eq!(read_cache(&path, 2), None);
        write_cache(&path, &vec![vec![f32::NAN, 0.0], vec![0.6, 0.8]]).unwrap();
        assert_eq!(read_cache(&path, 2), None);
    }

    #[test]
    fn other_weights_and_other_phrases_have_another_cache() {
        let file = |sum: &str, texts: &[&str]| cache_file(Path::new("/c"), sum, texts);
        assert_ne!(file("a", &["x"]), file("b", &["x"]));
        assert_ne!(file("a", &["xy"]), file("a", &["x", "y"]));
    }
}
