//! A model as a folder in diffusers' layout: one folder for each part, with its weights and its config.json.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::Overrides;
use crate::{
    Error, Result,
    nn::unet::{Heads, MAX_LEVELS},
    sigma::Prediction,
    weights::{Part, Weights},
};

/// Most files that one part may be cut into.
const MAX_SHARDS: usize = 256;

/// Adds the parts of a diffusers folder and takes from their config.json what the weights do not tell.
pub(super) fn add(weights: &mut Weights, folder: &Path, overrides: &mut Overrides) -> Result<()> {
    let config = |part: &str| -> Value {
        let text = std::fs::read(folder.join(part).join("config.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    };
    let files = |part: &str| weight_files(&folder.join(part));
    let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    weights.add_shards(&files("unet")?, Part::UNet)?;
    weights.add_shards(&files("vae")?, Part::Vae)?;
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
    // diffusers calls the number of heads `attention_head_dim`, unless the other name is there, too; a list has one for each
    // level.
    let told = match &unet["num_attention_heads"] {
        Value::Null => &unet["attention_head_dim"],
        told => told,
    };
    let heads = match told {
        Value::Array(list) => {
            let counts = list.iter().map(number).collect::<Option<Vec<usize>>>();
            let listed = counts.and_then(|counts| Heads::listed(&counts));
            Some(listed.ok_or_else(|| {
                Error::Weights(format!(
                    "the attention heads in `{}` are no list of 1 to {MAX_LEVELS} numbers",
                    folder.join("unet/config.json").display()
                ))
            })?)
        }
        heads => number(heads).map(Heads::Count),
    };
    overrides.heads = overrides.heads.or(heads);
    let scheduler = std::fs::read(folder.join("scheduler/scheduler_config.json")).unwrap_or_default();
    let scheduler: Value = serde_json::from_slice(&scheduler).unwrap_or_default();
    if scheduler["_class_name"]
        .as_str()
        .is_some_and(|name| name.starts_with("EDM"))
    {
        return Err(edm());
    }
    if scheduler["prediction_type"] == "v_prediction" {
        overrides.prediction = overrides.prediction.or(Some(Prediction::V));
    }
    if scheduler["rescale_betas_zero_snr"] == true {
        overrides.zero_terminal_snr = overrides.zero_terminal_snr.or(Some(true));
    }
    let second = folder.join("text_encoder_2").is_dir();
    let quick = text["hidden_act"].as_str().unwrap_or("quick_gelu") == "quick_gelu";
    let first = if second || quick { "clip_l" } else { "clip_h" };
    weights.add_shards(&files("text_encoder")?, Part::Text(first))?;
    if second {
        weights.add_shards(&files("text_encoder_2")?, Part::Text("clip_g"))?;
    }
    Ok(())
}

/// Why a model of EDM's noise levels is refused: with Stable Diffusion's it would draw noise.
pub(super) fn edm() -> Error {
    Error::Weights(
        "it was trained for EDM's noise levels, as Playground 2.5 and CosXL are, which are not supported".into(),
    )
}

/// The files of one part: one, or the shards an index names. Where there are several variants, the plain one, then `fp16`,
/// then the first by name.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let missing = || Error::Weights(format!("`{}` holds no weights as safetensors", folder.display()));
    let entries = std::fs::read_dir(folder).map_err(|_| missing())?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let found = names.filter_map(|name| Some((rank(&name)?, name))).min();
    let (_, name) = found.ok_or_else(missing)?;
    let path = folder.join(&name);
    if name.ends_with(".safetensors") {
        return Ok(vec![path]);
    }
    let damaged = |reason: &str| Error::Damaged {
        path: path.clone(),
        reason: reason.to_owned(),
    };
    let text = std::fs::read(&path).map_err(|source| Error::Open {
        path: path.clone(),
        source,
    })?;
    let index: Value = serde_json::from_slice(&text).map_err(|error| damaged(&error.to_string()))?;
    let map = index["weight_map"]
        .as_object()
        .ok_or_else(|| damaged("it has no `weight_map`"))?;
    let shards: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    if shards.is_empty() || shards.len() > MAX_SHARDS {
        return Err(damaged(&format!("it names {} files", shards.len())));
    }
    if let Some(shard) = shards.iter().find(|shard| shard.contains(['/', '\\', ':'])) {
        return Err(damaged(&format!("`{shard}` is not beside it")));
    }
    Ok(shards.into_iter().map(|shard| folder.join(shard)).collect())
}

/// How gladly a file is taken as the weights of its folder, least first; `None` for what is none, shards included.
fn rank(name: &str) -> Option<(u8, u8)> {
    let (stem, rest) = name.split_once('.')?;
    let by_stem = ["diffusion_pytorch_model", "model"]
        .iter()
        .position(|known| *known == stem)?;
    let variant = |variant: &str| match variant {
        "" => Some(0),
        ".fp16" => Some(2),
        other if other.contains("-of-") => None,
        _ => Some(4),
    };
    let by_variant = match rest.strip_prefix("safetensors.index") {
        // Whole files before cut ones of the same variant.
        Some(rest) => variant(rest.strip_suffix(".json")?)? + 1,
        None => variant(format!(".{rest}").strip_suffix(".safetensors")?)?,
    };
    Some((by_variant, by_stem as u8))
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn the_plain_whole_file_is_taken_before_shards_and_variants() {
        let names = [
            "model.safetensors",
            "model.safetensors.index.json",
            "model.fp16.safetensors",
            "model.safetensors.index.fp16.json",
            "model.bf16.safetensors",
        ];
        assert!(names.is_sorted_by_key(|name| rank(name).unwrap_or((u8::MAX, 0))));
        for other in [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.fp16-00001-of-00002.safetensors",
            "pytorch_model.bin",
            "openvino_model.xml",
            "model.onnx",
            "model_ema.safetensors",
        ] {
            assert_eq!(rank(other), None, "{other}");
        }
    }
}
