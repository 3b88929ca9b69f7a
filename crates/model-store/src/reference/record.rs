//! Records of the Horde's references: the legacy shape with two lists of files, and the newer one with a single list.
//!
//! Everything in them was typed by people, so a record that cannot be read costs that record, never the reference.

use serde_json::Value;
use url::Url;

use super::{Baseline, Catalogue, Kind, Model, ModelFile, Origin, Purpose, Requirements};
use crate::fetch::Source;
use crate::formats::convert::{Conversion, ConversionKind, Input};
use crate::names::SafePath;

/// A record that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// A reference that is no JSON or no collection of records.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON of another shape.
    #[error("neither a map nor a list of records")]
    Shape,
    /// A reference without a single usable record.
    #[error("no usable record among {0}")]
    Nothing(usize),
}

/// Reads the reference of one kind in either shape.
pub fn parse(kind: Kind, text: &[u8]) -> Result<(Catalogue, Vec<LeftOut>), ReferenceError> {
    let records: Vec<(String, Value)> = match serde_json::from_slice(text)? {
        Value::Object(map) => map.into_iter().collect(),
        Value::Array(list) => list.into_iter().map(|value| (string(&value, "name"), value)).collect(),
        _ => return Err(ReferenceError::Shape),
    };
    let total = records.len();
    let mut catalogue = Catalogue::default();
    let mut left_out = Vec::new();
    for (key, value) in records {
        match model(kind, &key, &value) {
            Ok(model) => catalogue.insert(model),
            Err(reason) => left_out.push(LeftOut { name: key, reason }),
        }
    }
    if catalogue.is_empty() && total > 0 {
        return Err(ReferenceError::Nothing(total));
    }
    Ok((catalogue, left_out))
}

fn model(kind: Kind, key: &str, value: &Value) -> Result<Model, String> {
    if !value.is_object() {
        return Err("it is no record".into());
    }
    let name = Some(string(value, "name"))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| key.to_owned());
    if name.is_empty() || name.chars().any(char::is_control) || name.len() > 255 {
        return Err("it has no usable name".into());
    }
    let files = if kind == Kind::Text { Vec::new() } else { files(value)? };
    if files.is_empty() && kind != Kind::Text {
        return Err("it names no file".into());
    }
    Ok(Model {
        kind,
        baseline: Some(string(value, "baseline"))
            .filter(|text| !text.is_empty())
            .map(|text| Baseline::parse(&text)),
        files,
        size_bytes: unsigned(value, "size_on_disk_bytes").filter(|size| *size > 0),
        nsfw: flag(value, "nsfw"),
        inpainting: flag(value, "inpainting"),
        requirements: requirements(&value["requirements"]),
        triggers: strings(&value["trigger"]),
        parameters: unsigned(value, "parameters").or_else(|| unsigned(value, "parameters_count")),
        features_not_supported: strings(&value["features_not_supported"]),
        description: string(value, "description"),
        version: string(value, "version"),
        style: string(value, "style"),
        licence: Some(string(value, "license")).filter(|text| !text.is_empty()),
        origin: Origin::Reference,
        name,
    })
}

fn files(value: &Value) -> Result<Vec<ModelFile>, String> {
    let config = &value["config"];
    let downloads = config["download"].as_array().map_or(&[][..], Vec::as_slice);
    let sums = config["files"].as_array().map_or(&[][..], Vec::as_slice);
    let mut files = Vec::new();
    for download in downloads {
        let file_name = string(download, "file_name");
        let folder = string(download, "file_path");
        let folder = folder.trim_matches('/');
        let path = if folder.is_empty() {
            file_name.clone()
        } else {
            format!("{folder}/{file_name}")
        };
        let path = SafePath::new(&path).map_err(|e| e.to_string())?;
        let about = sums.iter().find(|sum| {
            let of = string(sum, "path");
            of == file_name || of == path.as_str() || of.rsplit('/').next() == Some(file_name.as_str())
        });
        // A single sum belongs to a single file, whatever the two are called.
        let about = about.or(if downloads.len() == 1 && sums.len() == 1 {
            sums.first()
        } else {
            None
        });
        let sum_text = Some(string(download, "sha256sum"))
            .filter(|text| !text.is_empty())
            .or_else(|| about.map(|sum| string(sum, "sha256sum")))
            .filter(|text| !text.is_empty());
        let sha256 = sum_text
            .map(|text| text.parse())
            .transpose()
            .map_err(|e: crate::digest::NotASum| e.to_string())?;
        let purpose = Some(string(download, "file_purpose"))
            .filter(|text| !text.is_empty())
            .or_else(|| about.map(|sum| string(sum, "file_type")))
            .unwrap_or_default();
        let url_text = string(download, "file_url");
        let sources = match Url::parse(&url_text) {
            Ok(url) => vec![Source::Url { url }],
            Err(_) if url_text.is_empty() => Vec::new(),
            Err(_) => return Err(format!("`{}` has no usable address", path)),
        };
        let size_bytes = unsigned(download, "size_bytes").filter(|size| *size > 0);
        files.push(safe_file(path, sha256, size_bytes, sources, Purpose::parse(&purpose))?);
    }
    Ok(files)
}

/// A pickle is never kept under its name: the file the model has is the safetensors made of it.
fn safe_file(
    path: SafePath,
    sha256: Option<crate::digest::Sha256Sum>,
    size_bytes: Option<u64>,
    sources: Vec<Source>,
    purpose: Purpose,
) -> Result<ModelFile, String> {
    let stem = path
        .as_str()
        .rsplit_once('.')
        .filter(|(_, extension)| is_pickle(extension))
        .map(|(stem, _)| stem.to_owned());
    Ok(match stem {
        None => ModelFile {
            path,
            sha256,
            size_bytes,
            sources,
            purpose,
            conversion: None,
            local_path: None,
        },
        Some(stem) => ModelFile {
            path: SafePath::new(&format!("{stem}.safetensors")).map_err(|e| e.to_string())?,
            sha256: None,
            size_bytes: None,
            sources: Vec::new(),
            purpose,
            conversion: Some(Conversion {
                kind: ConversionKind::Pickle,
                inputs: vec![Input {
                    path: SafePath::new(path.file_name()).map_err(|e| e.to_string())?,
                    sha256,
                    size_bytes,
                    sources,
                }],
            }),
            local_path: None,
        },
    })
}

fn is_pickle(extension: &str) -> bool {
    matches!(extension.to_ascii_lowercase().as_str(), "ckpt" | "pt" | "pth" | "bin")
}

fn requirements(value: &Value) -> Option<Requirements> {
    let signed = |key: &str| {
        value[key]
            .as_i64()
            .or_else(|| value[key].as_f64().map(|number| number as i64))
    };
    value.as_object().filter(|map| !map.is_empty()).map(|_| Requirements {
        clip_skip: signed("clip_skip"),
        samplers: strings(&value["samplers"]),
        schedulers: strings(&value["schedulers"]),
        min_steps: signed("min_steps"),
        max_steps: signed("max_steps"),
        cfg_scale: value["cfg_scale"].as_f64(),
        min_cfg_scale: value["min_cfg_scale"].as_f64(),
        max_cfg_scale: value["max_cfg_scale"].as_f64(),
    })
}

fn string(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect(),
        Value::String(text) => vec![text.clone()],
        _ => Vec::new(),
    }
}

fn unsigned(value: &Value, key: &str) -> Option<u64> {
    value[key].as_u64().or_else(|| {
        value[key]
            .as_f64()
            .filter(|number| *number >= 0.0 && *number < 1e18)
            .map(|number| number as u64)
    })
}

fn flag(value: &Value, key: &str) -> bool {
    match &value[key] {
        Value::Bool(flag) => *flag,
        Value::String(text) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEGACY: &str = r#"{
      "Some Model": {"name": "Some Model", "baseline": "stable diffusion 1", "type": "ckpt", "inpainting": false, "nsfw": true,
        "description": "d", "version": "1", "style": "anime", "trigger": ["word"], "size_on_disk_bytes": 4265380512, "available": false,
        "requirements": {"clip_skip": 2, "samplers": ["k_euler"], "cfg_scale": 2.5, "max_steps": 12},
        "config": {"files": [{"path": "v1.yaml"}, {"path": "some.ckpt", "sha256sum": "CC6CB27103417325FF94F52B7A5D2DDE45A7515B25C255D8E396C90014281516"}],
                   "download": [{"file_name": "some.ckpt", "file_path": "", "file_url": "https://huggingface.co/a/b/resolve/main/some.ckpt"}]}},
      "Evil": {"name": "Evil", "config": {"files": [], "download": [{"file_name": "../../etc/cron", "file_url": "https://e.org/x"}]}},
      "Odd": 3
    }"#;

    const NEWER: &str = r#"[{"record_type": "image_generation", "name": "Split", "baseline": "flux_dev", "nsfw": false, "inpainting": true,
        "size_on_disk_bytes": 17200000000, "config": {"download": [
          {"file_name": "unet.safetensors", "file_url": "https://e.org/u", "sha256sum": "abababababababababababababababababababababababababababababababab", "file_purpose": "unet", "size_bytes": 12000000000},
          {"file_name": "ae.safetensors", "file_url": "https://e.org/v", "file_purpose": "vae"}]}}]"#;

    #[test]
    fn the_legacy_shape_is_read_and_its_pickles_are_to_be_converted() {
        let (catalogue, left_out) = parse(Kind::Image, LEGACY.as_bytes()).unwrap();
        let model = catalogue.get(Kind::Image, "Some Model").unwrap();
        assert_eq!(model.baseline, Some(Baseline::Sd1));
        assert!(model.nsfw && !model.inpainting);
        assert_eq!(model.requirements.as_ref().unwrap().clip_skip, Some(2));
        let file = &model.files[0];
        assert_eq!(file.path.as_str(), "some.safetensors");
        let input = &file.conversion.as_ref().unwrap().inputs[0];
        assert_eq!(
            input.sha256.unwrap().to_string(),
            "cc6cb27103417325ff94f52b7a5d2dde45a7515b25c255d8e396c90014281516"
        );
        assert_eq!(
            left_out.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(),
            ["Evil", "Odd"]
        );
    }

    #[test]
    fn the_newer_shape_is_read_with_its_parts() {
        let (catalogue, _) = parse(Kind::Image, NEWER.as_bytes()).unwrap();
        let model = catalogue.get(Kind::Image, "Split").unwrap();
        assert_eq!(model.baseline, Some(Baseline::FluxDev));
        let purposes: Vec<_> = model.files.iter().map(|file| file.purpose.clone()).collect();
        assert_eq!(purposes, [Purpose::Unet, Purpose::Vae]);
        assert_eq!(model.files[0].size_bytes, Some(12_000_000_000));
    }

    #[test]
    fn the_text_reference_is_read() {
        let text = r#"{"koboldcpp/L3-8B": {"name": "koboldcpp/L3-8B", "model_name": "L3-8B", "baseline": "meta-llama/x", "parameters": 8000000000,
            "description": "", "version": "1", "style": "generalist", "nsfw": false, "display_name": "L3", "tags": ["a"], "settings": {"temperature": 1}}}"#;
        let (catalogue, _) = parse(Kind::Text, text.as_bytes()).unwrap();
        assert_eq!(
            catalogue.find("koboldcpp/l3-8b").unwrap().parameters,
            Some(8_000_000_000)
        );
    }

    #[test]
    fn what_is_no_reference_is_an_error() {
        for bad in ["", "<html>", "3", r#"{"a": 1}"#] {
            assert!(parse(Kind::Image, bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
