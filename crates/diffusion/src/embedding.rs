//! Textual inversions: files that hold the vectors of a word.

use std::path::Path;

use candle_core::{DType, Device};

use crate::{Error, Result, safetensors_file::SafetensorsFile};

/// Most vectors of one inversion; a chunk of the encoder has 75.
const MAX_VECTORS: usize = 75;

/// The vectors of one inversion, for each text encoder it was made for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedding {
    first: Option<Vec<Vec<f32>>>,
    big: Option<Vec<Vec<f32>>>,
}

impl Embedding {
    /// Reads an inversion: `clip_l` and `clip_g` (SDXL), else `emb_params`, else a tensor of A1111's
    /// `string_to_param`, else the only tensor there is; each `(vectors, width)` or `(width,)`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path)?;
        let refuse = |reason: &str| Error::Adapter {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            reason: reason.to_owned(),
        };
        let read = |key: &str| -> Result<Option<Vec<Vec<f32>>>> {
            let Some(shape) = file.shape(key) else { return Ok(None) };
            let (count, width) = match *shape {
                [width] => (1, width),
                [count, width] => (count, width),
                _ => return Err(refuse("its tensor has neither one nor two dimensions")),
            };
            if !(1..=MAX_VECTORS).contains(&count) || !(1..=8192).contains(&width) {
                return Err(refuse("it has no vectors, or more than a prompt can hold"));
            }
            let tensor = file.tensor(key, DType::F32, &Device::Cpu)?;
            Ok(Some(tensor.reshape((count, width))?.to_vec2()?))
        };
        if file.shape("clip_g").is_some() || file.shape("clip_l").is_some() {
            // An encoder whose own are missing takes the other's, if they are as wide: so ComfyUI does.
            let (first, big) = (read("clip_l")?, read("clip_g")?);
            return Ok(Self {
                first: first.clone().or(big.clone()),
                big: big.or(first),
            });
        }
        let mut names = file.names();
        let only = names.next().filter(|_| file.names().count() == 1);
        let key = ["emb_params", "string_to_param.*", "*"]
            .into_iter()
            .find(|key| file.shape(key).is_some())
            .or(only)
            .ok_or_else(|| refuse("it holds no vectors under a known name"))?;
        let vectors = read(key)?;
        // SD 1 has only the first encoder, SD 2 only the big one; width decides there which of them takes it.
        Ok(Self {
            first: vectors.clone(),
            big: vectors,
        })
    }

    /// The vectors for one encoder: `big` is OpenCLIP's H or G, else CLIP-L. `None` where it has none. They need not be as wide
    /// as that encoder: see [`Self::fits`].
    pub fn vectors(&self, big: bool) -> Option<Vec<Vec<f32>>> {
        if big { self.big.clone() } else { self.first.clone() }
    }

    /// Whether it has vectors for this encoder that are `width` wide.
    pub fn fits(&self, big: bool, width: usize) -> bool {
        let vectors = if big { &self.big } else { &self.first };
        vectors
            .as_ref()
            .is_some_and(|rows| rows.iter().all(|row| row.len() == width))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::Tensor;

    use super::*;

    fn written(tensors: &[(&str, Tensor)]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("word.safetensors");
        let map: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&map, &path).unwrap();
        (dir, path)
    }

    fn rows(count: usize, width: usize) -> Tensor {
        Tensor::arange(0f32, (count * width) as f32, &Device::Cpu)
            .unwrap()
            .reshape((count, width))
            .unwrap()
    }

    #[test]
    fn vectors_go_to_the_encoder_of_their_width() {
        let (_dir, path) = written(&[("emb_params", rows(2, 8))]);
        let embedding = Embedding::open(&path).unwrap();
        assert_eq!(embedding.vectors(false).unwrap()[1][0], 8.0);
        assert!(embedding.fits(false, 8) && !embedding.fits(true, 16));

        let (_dir, path) = written(&[("clip_l", rows(1, 8)), ("clip_g", rows(3, 16))]);
        let embedding = Embedding::open(&path).unwrap();
        assert_eq!(embedding.vectors(false).unwrap().len(), 1);
        assert_eq!(embedding.vectors(true).unwrap().len(), 3);
        assert!(embedding.fits(false, 8) && embedding.fits(true, 16) && !embedding.fits(true, 8));

        let (_dir, path) = written(&[("clip_l", rows(1, 8))]);
        let embedding = Embedding::open(&path).unwrap();
        assert_eq!(embedding.vectors(true).unwrap().len(), 1);
        assert!(embedding.fits(true, 8) && !embedding.fits(true, 16));
    }

    #[test]
    fn what_is_no_inversion_is_refused() {
        let (_dir, path) = written(&[("a", rows(1, 8)), ("b", rows(1, 8))]);
        assert!(Embedding::open(&path).is_err());
        let (_dir, path) = written(&[("emb_params", rows(200, 8))]);
        assert!(Embedding::open(&path).is_err());
        let (_dir, path) = written(&[(
            "emb_params",
            Tensor::zeros((1, 1, 2, 2), DType::F32, &Device::Cpu).unwrap(),
        )]);
        assert!(Embedding::open(&path).is_err());
    }
}
