//! LoRA files: which layer each of their tensors belongs to, and what it adds to that layer's weight.
//!
//! Names of kohya's scripts and of diffusers/PEFT; plain LoRA and LoCon (up·down), LoHa (Hadamard products), LoKr
//! (Kronecker products), whole differences, and weight-decomposed forms of each (DoRA). Applied weights replace those in
//! use; taking off reads the originals from their files again, so no second copy of the model is kept.

mod change;
mod names;

use std::path::{Path, PathBuf};

use candle_core::DType;

use crate::{Error, Result, model::Model, safetensors_file::SafetensorsFile};
use change::Change;
use names::Layers;

/// One LoRA and how strongly it acts.
pub struct Lora {
    name: String,
    path: PathBuf,
    file: SafetensorsFile,
    /// On the U-Net.
    pub model_strength: f64,
    /// On the text encoders.
    pub clip_strength: f64,
}

impl Lora {
    /// Maps a LoRA file; strengths that are no numbers count as 1, others are kept within -5..=5.
    ///
    /// # Errors
    /// [`Error::Open`] and [`Error::Damaged`], where there is no file or it is none of this kind.
    pub fn open(path: &Path, model_strength: f64, clip_strength: f64) -> Result<Self> {
        let number = |value: f64| if value.is_finite() { value.clamp(-5.0, 5.0) } else { 1.0 };
        Ok(Self {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            path: path.to_owned(),
            file: SafetensorsFile::open(path)?,
            model_strength: number(model_strength),
            clip_strength: number(clip_strength),
        })
    }
}

/// The layers that LoRAs have changed, to be taken off again.
#[derive(Debug, Default)]
#[must_use = "the model stays changed until this is taken off"]
pub struct Applied {
    names: Vec<String>,
    unknown: usize,
}

impl Applied {
    /// Layers of the LoRAs that this model does not have; they had no effect.
    pub fn unknown_layers(&self) -> usize {
        self.unknown
    }
}

/// Adds every LoRA to the weights in use, one after another. If one does not fit, none is applied, and what was applied
/// before stays as it was.
///
/// # Errors
/// [`Error::Adapter`] where a LoRA was made for another family of models, [`Error::Damaged`] where its file lacks a part or
/// holds one of the wrong shape.
pub fn apply(model: &Model, loras: &[Lora]) -> Result<Applied> {
    let layers = Layers::of(model);
    // First all are looked through, which costs nothing, so that a bad one is found before any weight has changed.
    let planned: Vec<Planned> = loras
        .iter()
        .map(|lora| plan(model, lora, &layers))
        .collect::<Result<_>>()?;
    let mut applied = Applied::default();
    for (lora, planned) in loras.iter().zip(planned) {
        applied.unknown += planned.unknown;
        for (name, change) in planned.changes {
            if let Err(error) = change_one(model, lora, &name, &change) {
                // Only the device can fail here.
                take_off(model, applied)?;
                return Err(error);
            }
            applied.names.push(name);
        }
    }
    Ok(applied)
}

/// Brings the changed weights back as they lie in the files, bit for bit.
///
/// # Errors
/// Where a file cannot be read any more; the model is then not to be used.
pub fn take_off(model: &Model, applied: Applied) -> Result<()> {
    for name in applied.names {
        if let Some(param) = model.params().get(&name) {
            let now = param.get();
            param.set(model.weights().tensor(&name, now.dtype(), now.device())?);
        }
    }
    Ok(())
}

/// What one LoRA changes.
struct Planned {
    changes: Vec<(String, Change)>,
    unknown: usize,
}

fn plan(model: &Model, lora: &Lora, layers: &Layers) -> Result<Planned> {
    let refuse = |reason: String| Error::Adapter {
        name: lora.name.clone(),
        reason,
    };
    let mut changes = Vec::new();
    let (mut known, mut unknown) = (0, 0);
    for prefix in change::prefixes(&lora.file) {
        let Some(module) = layers.find(&prefix) else {
            unknown += 1;
            continue;
        };
        known += 1;
        for change in Change::all_of(&lora.file, &prefix).map_err(|reason| Error::Damaged {
            path: lora.path.clone(),
            reason,
        })? {
            let name = format!("{module}.{}", change.target());
            // Shapes decide: layers of one name have other widths in other families.
            let Some(shape) = model.weights().shape(&name) else {
                unknown += 1;
                continue;
            };
            let ours: usize = shape.iter().product();
            if change.elements() != ours {
                return Err(refuse(format!(
                    "`{prefix}` changes {} values, the {:?} model has {shape:?} there",
                    change.elements(),
                    model.family
                )));
            }
            if lora.strength_on(&name) != 0.0 && model.params().get(&name).is_some() {
                changes.push((name, change));
            }
        }
    }
    if known == 0 {
        return Err(refuse(format!("it names no layer of a {:?} model", model.family)));
    }
    if let Some(foreign) = layers.foreign_encoder(&lora.file) {
        return Err(refuse(format!(
            "it changes `{foreign}`, a text encoder that a {:?} model does not have",
            model.family
        )));
    }
    Ok(Planned { changes, unknown })
}

impl Lora {
    fn strength_on(&self, name: &str) -> f64 {
        if name.starts_with("unet.") {
            self.model_strength
        } else {
            self.clip_strength
        }
    }
}

fn change_one(model: &Model, lora: &Lora, name: &str, change: &Change) -> Result<()> {
    let Some(param) = model.params().get(name) else {
        return Ok(());
    };
    let now = param.get();
    let weight = now.to_dtype(DType::F32)?;
    let changed = change.apply(&lora.file, &weight, lora.strength_on(name))?;
    param.set(changed.to_dtype(now.dtype())?);
    Ok(())
}
