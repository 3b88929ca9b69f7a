//! Which files a model is read from, and what they tell of it before a weight is read.

use std::path::PathBuf;

use super::{Family, ModelFiles, Overrides, folder};
use crate::{
    Error, Result,
    safetensors_file::SafetensorsFile,
    weights::{Part, Weights},
};

/// Maps all files. What the parts' configurations tell is put into `overrides` where nothing is set.
pub(crate) fn open(files: &ModelFiles, encoders: &[PathBuf], overrides: &mut Overrides) -> Result<Weights> {
    let mut weights = Weights::default();
    if files.checkpoint.is_dir() {
        folder::add(&mut weights, &files.checkpoint, overrides)?;
    } else {
        weights.add(&files.checkpoint, Part::Whole)?;
    }
    if let Some(path) = &files.unet {
        weights.add(path, Part::UNet)?;
    }
    if let Some(path) = &files.vae {
        weights.add(path, Part::Vae)?;
    }
    for (i, path) in encoders.iter().enumerate() {
        let part = encoder_of(&SafetensorsFile::open(path)?, i);
        weights.add(path, Part::Text(part))?;
    }
    Ok(weights)
}

/// Told from the weights, never from a name.
pub(crate) fn family(weights: &Weights) -> Result<Family> {
    if !weights.has("unet.input_blocks.0.0.weight") {
        return Err(Error::Weights("there is no U-Net in it".into()));
    }
    Ok(if weights.has("unet.label_emb.0.0.weight") {
        Family::Sdxl
    } else if weights.has_prefix("clip_h.") {
        Family::Sd2
    } else {
        Family::Sd1
    })
}

/// Which encoder a file holds, by its width and its layers; one of no known size by its place among the files.
fn encoder_of(file: &SafetensorsFile, place: usize) -> &'static str {
    let width = file
        .names()
        .find(|name| name.ends_with("token_embedding.weight"))
        .and_then(|name| file.shape(name)?.last().copied());
    match (width, place) {
        (Some(768), _) => "clip_l",
        (Some(1024), _) => "clip_h",
        (Some(1280), _) => "clip_g",
        // OpenCLIP's own names are never those of L; Hugging Face's may be of any.
        _ if file.names().any(|name| name.ends_with("ln_final.weight")) && place == 0 => "clip_h",
        (_, 0) => "clip_l",
        _ => "clip_g",
    }
}
