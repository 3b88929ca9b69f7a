//! `models.toml`: the owner's own models, and with the same shape the few that come with this program.

use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

use super::{Baseline, Catalogue, Kind, Model, ModelFile, Origin, Purpose};
use crate::digest::Sha256Sum;
use crate::fetch::{Source, Wheel};
use crate::formats::convert::{Conversion, ConversionKind, Input};
use crate::names::SafePath;

/// Models of demos and of forms that no reference holds. Sums were taken of the files themselves.
const BUILTIN: &str = include_str!("../../data/builtin.toml");

/// A `models.toml` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Not TOML, or an unknown key.
    #[error("{0}")]
    Syntax(#[from] toml::de::Error),
    /// A model without anything to fetch or open.
    #[error("model `{0}` has no file, or a file with neither `urls` nor `local_path`")]
    NoSource(String),
    /// Two models with one name.
    #[error("model `{0}` stands there twice")]
    Twice(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    model: Vec<LocalModel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalModel {
    name: String,
    kind: Kind,
    baseline: Option<Baseline>,
    #[serde(default)]
    description: String,
    licence: Option<String>,
    #[serde(default)]
    nsfw: bool,
    #[serde(default)]
    inpainting: bool,
    parameters: Option<u64>,
    #[serde(default)]
    triggers: Vec<String>,
    #[serde(default)]
    file: Vec<LocalFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalFile {
    path: SafePath,
    sha256: Option<Sha256Sum>,
    size_bytes: Option<u64>,
    #[serde(default)]
    purpose: Purpose,
    #[serde(default)]
    urls: Vec<Url>,
    wheel: Option<LocalWheel>,
    local_path: Option<PathBuf>,
    convert: Option<ConversionKind>,
    #[serde(default)]
    input: Vec<LocalInput>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalInput {
    path: SafePath,
    sha256: Option<Sha256Sum>,
    size_bytes: Option<u64>,
    #[serde(default)]
    urls: Vec<Url>,
    wheel: Option<LocalWheel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalWheel {
    package: String,
    sha256: Sha256Sum,
    member: String,
}

/// Reads the owner's file.
pub fn parse(text: &str) -> Result<Catalogue, LocalError> {
    read(text, Origin::Local)
}

/// The models that come with this program.
pub fn builtin() -> Catalogue {
    read(BUILTIN, Origin::Builtin).expect("the embedded file is read by a test")
}

fn read(text: &str, origin: Origin) -> Result<Catalogue, LocalError> {
    let file: File = toml::from_str(text)?;
    let mut catalogue = Catalogue::default();
    for local in file.model {
        let usable = |file: &LocalFile| {
            !file.urls.is_empty()
                || file.wheel.is_some()
                || file.local_path.is_some()
                || (file.convert.is_some() && !file.input.is_empty())
        };
        if local.file.is_empty() || !local.file.iter().all(usable) {
            return Err(LocalError::NoSource(local.name));
        }
        if catalogue.get(local.kind, &local.name).is_some() {
            return Err(LocalError::Twice(local.name));
        }
        let files: Vec<ModelFile> = local.file.into_iter().map(model_file).collect();
        let sizes: Option<Vec<u64>> = files.iter().map(|file| file.size_bytes).collect();
        catalogue.insert(Model {
            name: local.name,
            kind: local.kind,
            baseline: local.baseline,
            size_bytes: sizes.map(|sizes| sizes.iter().sum()),
            files,
            nsfw: local.nsfw,
            inpainting: local.inpainting,
            requirements: None,
            triggers: local.triggers,
            parameters: local.parameters,
            features_not_supported: Vec::new(),
            description: local.description,
            version: String::new(),
            style: String::new(),
            licence: local.licence,
            origin,
        });
    }
    Ok(catalogue)
}

fn model_file(file: LocalFile) -> ModelFile {
    let input = |input: LocalInput| Input {
        path: input.path,
        sha256: input.sha256,
        size_bytes: input.size_bytes,
        sources: sources(input.urls, input.wheel),
    };
    let inputs: Vec<Input> = file.input.into_iter().map(input).collect();
    ModelFile {
        path: file.path,
        sha256: file.sha256,
        size_bytes: file.size_bytes,
        sources: sources(file.urls, file.wheel),
        purpose: file.purpose,
        conversion: file.convert.map(|kind| Conversion { kind, inputs }),
        local_path: file.local_path,
    }
}

fn sources(urls: Vec<Url>, wheel: Option<LocalWheel>) -> Vec<Source> {
    let urls = urls.into_iter().map(|url| Source::Url { url });
    let wheel = wheel.map(|wheel| {
        Source::Wheel(Wheel {
            package: wheel.package,
            wheel_sha256: wheel.sha256,
            member: wheel.member,
        })
    });
    urls.chain(wheel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_models_are_complete() {
        let catalogue = builtin();
        assert!(catalogue.len() >= 4);
        for model in catalogue.models() {
            for file in &model.files {
                let what = format!("{}: {}", model.name, file.path);
                // What is made here of files from elsewhere is known by those; a few checkpoints have no published sum.
                match &file.conversion {
                    None => assert!(file.sha256.is_some() && file.size_bytes.is_some(), "{what}"),
                    Some(conversion) => assert!(
                        !conversion.inputs.is_empty()
                            && conversion.inputs.iter().all(|input| !input.sources.is_empty()),
                        "{what}"
                    ),
                }
            }
        }
    }

    #[test]
    fn a_custom_checkpoint_is_read_and_mistakes_are_named() {
        let good = r#"
            [[model]]
            name = "my checkpoint"
            kind = "image"
            baseline = "stable diffusion 1"
            [[model.file]]
            path = "my.safetensors"
            local_path = "/data/my.safetensors"
        "#;
        let catalogue = parse(good).unwrap();
        let model = catalogue.get(Kind::Image, "my checkpoint").unwrap();
        assert_eq!(model.baseline, Some(Baseline::Sd1));
        assert_eq!(model.origin, Origin::Local);
        for (bad, word) in [
            ("[[model]]\nname='a'\nkind='image'", "no file"),
            ("[[model]]\nname='a'\nkind='image'\ncolour=1", "colour"),
            (
                "[[model]]\nname='a'\nkind='image'\n[[model.file]]\npath='../a'\nurls=['https://e.org/a']",
                "../a",
            ),
            (
                "[[model]]\nname='a'\nkind='image'\n[[model.file]]\npath='a'\nsha256='12'\nurls=['https://e.org/a']",
                "SHA-256",
            ),
        ] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
