//! CivitAI's API and the Horde's converter of embeddings, as far as a worker needs them.
//!
//! Shapes after CivitAI's public REST reference: `models/{id}`, `model-versions/{id}`, `models?query=`.

use std::time::Duration;

use serde::Deserialize;
use url::Url;

use super::{AdHocFailure, AdHocSettings};
use crate::digest::Sha256Sum;
use crate::fetch::{Downloader, SourceFailure};
use crate::reference::Baseline;

/// Largest answer that is read; models with hundreds of versions stay below 2 MB.
const MAX_ANSWER_BYTES: usize = 8 << 20;
/// Longest name that is searched for.
const MAX_NAME_BYTES: usize = 255;
/// How alike a found title must be to a searched name.
const LIKENESS: f64 = 0.9;

/// What to fetch.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// CivitAI's id of the version.
    pub version_id: u64,
    /// CivitAI's id of the model.
    pub model_id: Option<u64>,
    /// Title for people.
    pub title: String,
    /// Words it was trained on.
    pub triggers: Vec<String>,
    /// Its family.
    pub baseline: Option<Baseline>,
    /// Flagged as not safe for work.
    pub nsfw: bool,
    /// Sum of the file.
    pub sha256: Sha256Sum,
    /// Size, to within a kilobyte.
    pub size_bytes: Option<u64>,
    /// Where it is.
    pub url: Url,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Model {
    id: u64,
    #[serde(default)]
    name: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    nsfw: bool,
    #[serde(default)]
    model_versions: Vec<Version>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    id: u64,
    model_id: Option<u64>,
    #[serde(default)]
    name: String,
    base_model: Option<String>,
    #[serde(default)]
    trained_words: Option<Vec<String>>,
    #[serde(default)]
    files: Vec<File>,
    model: Option<VersionModel>,
}

#[derive(Deserialize)]
struct VersionModel {
    #[serde(default)]
    name: String,
    #[serde(default)]
    nsfw: bool,
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    name: String,
    #[serde(rename = "sizeKB")]
    size_kb: Option<f64>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    metadata: Option<Metadata>,
    #[serde(default)]
    hashes: Hashes,
    download_url: Option<Url>,
    primary: Option<bool>,
}

#[derive(Deserialize)]
struct Metadata {
    format: Option<String>,
}

#[derive(Default, Deserialize)]
struct Hashes {
    #[serde(rename = "SHA256")]
    sha256: Option<String>,
}

#[derive(Deserialize)]
struct Found {
    #[serde(default)]
    items: Vec<Model>,
}

#[derive(Deserialize)]
struct Converted {
    url: Url,
    sha256: String,
}

/// Finds a LoRA by the id of its model, the id of a version, or its name.
pub(super) async fn lora(
    downloader: &Downloader,
    settings: &AdHocSettings,
    name: &str,
    is_version: bool,
) -> Result<Resolved, AdHocFailure> {
    let name = name.trim();
    let id: Option<u64> = name.parse().ok();
    match (id, is_version) {
        (Some(id), true) => {
            let version: Version = ask(
                downloader,
                settings,
                &settings.civitai,
                &["model-versions", &id.to_string()],
                &[],
            )
            .await?;
            let (title, nsfw, kind) = version
                .model
                .as_ref()
                .map_or_else(Default::default, |m| (m.name.clone(), m.nsfw, m.kind.clone()));
            require_lora(&kind)?;
            pick(&version, version.model_id, title, nsfw)
        }
        (None, true) => Err(AdHocFailure::NotFound),
        (Some(id), false) => {
            let model: Model = ask(
                downloader,
                settings,
                &settings.civitai,
                &["models", &id.to_string()],
                &[],
            )
            .await?;
            require_lora(&model.kind)?;
            newest(&model)
        }
        (None, false) => {
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(AdHocFailure::NotFound);
            }
            let query = [("types", "LORA"), ("types", "LoCon"), ("limit", "10"), ("query", name)];
            let found: Found = ask(downloader, settings, &settings.civitai, &["models"], &query).await?;
            let likeness = |model: &Model| strsim::jaro_winkler(&model.name.to_lowercase(), &name.to_lowercase());
            let best = found.items.iter().filter(|model| require_lora(&model.kind).is_ok());
            let best = best
                .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
                .filter(|model| likeness(model) >= LIKENESS);
            newest(best.ok_or(AdHocFailure::NotFound)?)
        }
    }
}

/// Finds an embedding by its CivitAI id; the Horde's converter hands it out as safetensors.
pub(super) async fn embedding(
    downloader: &Downloader,
    settings: &AdHocSettings,
    name: &str,
) -> Result<Resolved, AdHocFailure> {
    let id: u64 = name.trim().parse().map_err(|_| AdHocFailure::NotFound)?;
    let converted: Converted = ask(
        downloader,
        settings,
        &settings.hordeling,
        &["embedding", &id.to_string()],
        &[],
    )
    .await?;
    Ok(Resolved {
        version_id: id,
        model_id: Some(id),
        title: id.to_string(),
        triggers: Vec::new(),
        baseline: None,
        nsfw: false,
        sha256: converted.sha256.parse().map_err(|_| AdHocFailure::NoSum)?,
        size_bytes: None,
        url: converted.url,
    })
}

fn require_lora(kind: &str) -> Result<(), AdHocFailure> {
    let is_lora = kind.is_empty() || ["lora", "locon", "dora"].contains(&kind.to_ascii_lowercase().as_str());
    if is_lora { Ok(()) } else { Err(AdHocFailure::NotFound) }
}

/// Versions stand newest first.
fn newest(model: &Model) -> Result<Resolved, AdHocFailure> {
    let version = model.model_versions.first().ok_or(AdHocFailure::NotFound)?;
    pick(version, Some(model.id), model.name.clone(), model.nsfw)
}

fn pick(version: &Version, model_id: Option<u64>, title: String, nsfw: bool) -> Result<Resolved, AdHocFailure> {
    let is_safe = |file: &&File| {
        let format = file.metadata.as_ref().and_then(|metadata| metadata.format.as_deref());
        let of_model = file
            .kind
            .as_deref()
            .is_none_or(|kind| kind.eq_ignore_ascii_case("model"));
        of_model
            && (format.is_some_and(|format| format.eq_ignore_ascii_case("safetensor"))
                || file.name.to_ascii_lowercase().ends_with(".safetensors"))
    };
    let mut safe = version.files.iter().filter(is_safe).collect::<Vec<_>>();
    safe.sort_by_key(|file| !file.primary.unwrap_or(false));
    let file = safe.first().ok_or(AdHocFailure::NoSafeFormat)?;
    Ok(Resolved {
        version_id: version.id,
        model_id,
        title: if title.is_empty() { version.name.clone() } else { title },
        triggers: version.trained_words.clone().unwrap_or_default(),
        baseline: version.base_model.as_deref().map(Baseline::parse),
        nsfw,
        sha256: file
            .hashes
            .sha256
            .as_deref()
            .and_then(|text| text.parse().ok())
            .ok_or(AdHocFailure::NoSum)?,
        size_bytes: file
            .size_kb
            .filter(|kb| (0.0..1e12).contains(kb))
            .map(|kb| (kb * 1024.0) as u64),
        url: file.download_url.clone().ok_or(AdHocFailure::NotFound)?,
    })
}

async fn ask<T: serde::de::DeserializeOwned>(
    downloader: &Downloader,
    settings: &AdHocSettings,
    base: &Url,
    path: &[&str],
    query: &[(&str, &str)],
) -> Result<T, AdHocFailure> {
    let mut url = base.clone();
    url.path_segments_mut()
        .map_err(|()| AdHocFailure::Fetch("the API's address has no path".into()))?
        .pop_if_empty()
        .extend(path);
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    let deadline = settings.lookup.max(Duration::from_millis(1));
    match downloader.get_document(&url, MAX_ANSWER_BYTES, deadline).await {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| AdHocFailure::Fetch(format!("an answer of unknown shape: {error}"))),
        Err(SourceFailure::Refused { status: 404 | 410 }) => Err(AdHocFailure::NotFound),
        Err(failure) => Err(AdHocFailure::Fetch(failure.to_string())),
    }
}
