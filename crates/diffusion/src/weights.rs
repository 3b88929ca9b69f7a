//! Where every tensor of a model lies, under one set of names, whatever layout its files have.
//!
//! Names are `unet.` and `vae.` with the keys of single-file checkpoints (LDM), `clip_l.`, `clip_g.` and `clip_h.` with
//! those of Hugging Face's CLIP text model.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result, layout, safetensors_file::SafetensorsFile};

/// A part of a model that has its own names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// A checkpoint with several parts, told apart by their prefixes.
    Whole,
    /// The U-Net alone.
    UNet,
    /// The VAE alone.
    Vae,
    /// The text encoder of this name (`clip_l`, `clip_g`, `clip_h`) alone.
    Text(&'static str),
}

/// What follows a module's name where its eight-bit weight is stored as a multiple of one number.
pub(crate) const SCALE: &str = ".scale_weight";

/// All tensors of a model, still in their files.
#[derive(Default)]
pub struct Weights {
    files: Vec<SafetensorsFile>,
    places: HashMap<String, Place>,
}

struct Place {
    file: usize,
    name: String,
    cut: layout::Cut,
}

impl Weights {
    /// Adds a file; what it holds replaces what earlier files held under the same names.
    pub fn add(&mut self, path: &Path, part: Part) -> Result<()> {
        self.add_shards(&[path.to_owned()], part)
    }

    /// As [`Self::add`] for a part that is cut into several files.
    pub fn add_shards(&mut self, paths: &[PathBuf], part: Part) -> Result<()> {
        let first = self.files.len();
        let mut holders = HashMap::new();
        for path in paths {
            let file = SafetensorsFile::open(path)?;
            holders.extend(file.names().map(|name| (name.to_owned(), self.files.len())));
            self.files.push(file);
        }
        let theirs: Vec<&str> = holders.keys().map(String::as_str).collect();
        for (ours, name, cut) in layout::names(&theirs, part) {
            let file = holders.get(&name).copied().unwrap_or(first);
            self.places.insert(ours, Place { file, name, cut });
        }
        Ok(())
    }

    /// A number from the headers of the files, the first that has it.
    pub fn metadata_number(&self, key: &str) -> Option<usize> {
        self.files
            .iter()
            .find_map(|file| file.metadata().get(key)?.parse().ok())
    }

    /// Whether there is such a tensor.
    pub fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Whether any tensor's name begins so.
    pub fn has_prefix(&self, prefix: &str) -> bool {
        self.places.keys().any(|name| name.starts_with(prefix))
    }

    /// The names that begin with `prefix`, without it.
    pub fn names_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.places.keys().filter_map(move |name| name.strip_prefix(prefix))
    }

    /// The shape of a tensor as [`Self::tensor`] gives it.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let place = self.places.get(name)?;
        Some(place.cut.shape(self.files[place.file].shape(&place.name)?))
    }

    /// What is wrong with a tensor, by its name in its file; one that is missing has only ours, and the first file.
    pub(crate) fn damaged(&self, name: &str, what: &str) -> Error {
        let place = self.places.get(name);
        let file = self.files.get(place.map_or(0, |place| place.file));
        let theirs = place.map_or(name, |place| place.name.as_str());
        match file {
            Some(file) => Error::Damaged {
                path: file.path().to_owned(),
                reason: format!("`{theirs}` {what}"),
            },
            None => Error::Weights(format!("`{theirs}` {what}")),
        }
    }

    /// Whether every value of a tensor is a number.
    fn is_finite(&self, name: &str) -> bool {
        let place = self.places.get(name);
        place.is_none_or(|place| self.files[place.file].is_finite(&place.name))
    }

    /// Reads a tensor; an eight-bit weight that has a scale of its own beside it is multiplied by that.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let place = self.places.get(name).ok_or_else(|| self.damaged(name, "is missing"))?;
        let file = &self.files[place.file];
        let Some(scale) = self.scale_of(name) else {
            return Ok(place.cut.apply(&file.tensor(&place.name, dtype, device)?)?);
        };
        let scale = self.files[scale.file].tensor(&scale.name, DType::F32, &Device::Cpu)?;
        let scale = scale.flatten_all()?.to_vec1::<f32>()?;
        let [scale] = scale[..] else {
            return Err(self.damaged(name, &format!("has {} scales instead of one", scale.len())));
        };
        let whole = (file.tensor(&place.name, DType::F32, &Device::Cpu)? * f64::from(scale))?;
        Ok(place.cut.apply(&whole)?.to_dtype(dtype)?.to_device(device)?)
    }

    fn scale_of(&self, name: &str) -> Option<&Place> {
        self.places.get(&format!("{}{SCALE}", name.strip_suffix(".weight")?))
    }
}

/// A weight in use. It can be exchanged while no run is on, for a LoRA.
#[derive(Clone)]
pub struct Param(Arc<RwLock<Tensor>>);

impl Param {
    /// The weight as it is now (a shared handle, no copy).
    pub fn get(&self) -> Tensor {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Replaces the weight.
    pub fn set(&self, tensor: Tensor) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = tensor;
    }
}

/// Weights in use, by name.
#[derive(Default)]
pub struct Params {
    by_name: RwLock<HashMap<String, Param>>,
}

impl Params {
    /// The weight of this name.
    pub fn get(&self, name: &str) -> Option<Param> {
        let by_name = self.by_name.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        by_name.get(name).cloned()
    }

    fn insert(&self, name: String, param: Param) {
        let mut by_name = self.by_name.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        by_name.insert(name, param);
    }
}

/// Reads weights below a prefix into use.
#[derive(Clone)]
pub struct Loader<'a> {
    weights: &'a Weights,
    params: &'a Params,
    prefix: String,
    dtype: DType,
    device: &'a Device,
}

impl<'a> Loader<'a> {
    /// A loader at `prefix` (with its final dot).
    pub fn new(weights: &'a Weights, params: &'a Params, prefix: &str, dtype: DType, device: &'a Device) -> Self {
        Self {
            weights,
            params,
            prefix: prefix.to_owned(),
            dtype,
            device,
        }
    }

    /// The dtype weights are read as.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The loader of a sub-module.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        Self {
            prefix: format!("{}{name}.", self.prefix),
            ..self.clone()
        }
    }

    /// Whether there is such a tensor here.
    pub fn has(&self, name: &str) -> bool {
        self.weights.has(&format!("{}{name}", self.prefix))
    }

    /// The shape of a tensor here.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        let name = format!("{}{name}", self.prefix);
        self.weights
            .shape(&name)
            .ok_or_else(|| self.weights.damaged(&name, "is missing"))
    }

    /// Reads a tensor into use.
    pub fn get(&self, name: &str) -> Result<Param> {
        let name = format!("{}{name}", self.prefix);
        if !self.weights.is_finite(&name) {
            return Err(self.weights.damaged(&name, "holds values that are no numbers"));
        }
        let tensor = self.weights.tensor(&name, self.dtype, self.device)?;
        let param = Param(Arc::new(RwLock::new(tensor)));
        self.params.insert(name, param.clone());
        Ok(param)
    }
}
