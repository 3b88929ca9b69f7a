//! Which files a model is read from, and what they tell of it before a weight is read.

use std::path::{Path, PathBuf};

use super::{Family, ModelFiles, Overrides};
use crate::{
    Error, Result,
    nn::unet::{Heads, MAX_LEVELS},
    safetensors_file::SafetensorsFile,
    sigma::Prediction,
    weights::{Part, Weights},
};

/// Maps all files. What the parts' configurations tell is put into `overrides` where nothing is set.
pub(crate) fn open(files: &ModelFiles, encoders: &[PathBuf], overrides: &mut Overrides) -> Result<Weights> {
    let mut weights = Weights::default();
    if files.checkpoint.is_dir() {
        add(&mut weights, &files.checkpoint, overrides)?;
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

/// Adds the parts of a diffusers folder and takes from their config.json what the weights do not tell.
pub(super) fn add(weights: &mut Weights, folder: &Path, overrides: &mut Overrides) -> Result<()> {
    let config = |part: &str| -> serde_json::Value {
        let text = std::fs::read(folder.join(part).join("config.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    };
    let file = |part: &str| -> Result<PathBuf> {
        let stems = ["diffusion_pytorch_model", "model"];
        let names = stems
            .iter()
            .flat_map(|stem| [format!("{stem}.safetensors"), format!("{stem}.fp16.safetensors")]);
        names
            .map(|name| folder.join(part).join(name))
            .find(|path| path.is_file())
            .ok_or_else(|| Error::Weights(format!("`{}` holds no weights for `{part}`", folder.display())))
    };
    let number = |value: &serde_json::Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    weights.add(&file("unet")?, Part::UNet)?;
    weights.add(&file("vae")?, Part::Vae)?;
    let (unet, text) = (config("unet"), config("text_encoder"));
    overrides.norm_groups = overrides.norm_groups.or(number(&unet["norm_num_groups"]));
    overrides.vae_norm_groups = overrides.vae_norm_groups.or(number(&config("vae")["norm_num_groups"]));
    overrides.text_heads = overrides.text_heads.or(number(&text["num_attention_heads"]));
    let second_heads = number(&config("text_encoder_2")["num_attention_heads"]);
    overrides.big_text_heads = overrides.big_text_heads.or(second_heads);
    let scale = config("vae")["scaling_factor"]
        .as_f64()
        .filter(|scale| scale.is_finite() && *scale > 0.0);
    overrides.vae_scale = overrides.vae_scale.or(scale);
    // diffusers calls the number of heads `attention_head_dim`; a list of them has one for each level.
    let heads = match &unet["attention_head_dim"] {
        serde_json::Value::Array(list) => {
            let counts = list.iter().map(number).collect::<Option<Vec<usize>>>();
            let listed = counts.and_then(|counts| Heads::listed(&counts));
            Some(listed.ok_or_else(|| {
                Error::Weights(format!(
                    "`attention_head_dim` in `{}` is no list of 1 to {MAX_LEVELS} numbers",
                    folder.join("unet/config.json").display()
                ))
            })?)
        }
        heads => number(heads).map(Heads::Count),
    };
    overrides.heads = overrides.heads.or(heads);
    let scheduler = std::fs::read(folder.join("scheduler/scheduler_config.json")).unwrap_or_default();
    let scheduler: serde_json::Value = serde_json::from_slice(&scheduler).unwrap_or_default();
    if scheduler["prediction_type"] == "v_prediction" {
        overrides.prediction = overrides.prediction.or(Some(Prediction::V));
    }
    if scheduler["rescale_betas_zero_snr"] == true {
        overrides.zero_terminal_snr = overrides.zero_terminal_snr.or(Some(true));
    }
    let second = folder.join("text_encoder_2").is_dir();
    let quick = text["hidden_act"] == "quick_gelu";
    let first = if second || quick { "clip_l" } else { "clip_h" };
    weights.add(&file("text_encoder")?, Part::Text(first))?;
    if second {
        weights.add(&file("text_encoder_2")?, Part::Text("clip_g"))?;
    }
    Ok(())
}
