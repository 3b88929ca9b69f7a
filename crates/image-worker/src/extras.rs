//! LoRAs and textual inversions of a job: fetched side by side, left out with a note where they cannot be had.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use horde_client::image::{Lora, Params, TextualInversion};
use horde_client::metadata::{Metadata, MetadataType, MetadataValue};
use model_store::adhoc::{AdHoc, AdHocFailure, AdHocKind, Pinned, Wanted};
use model_store::fetch::{Control, Silent};
use model_store::reference::Baseline;

use crate::order::within;
use crate::prompt::{self, Inversion, Place};
use crate::work::LoraFile;

/// Most LoRAs of a job; the Horde's own bound.
const MAX_LORAS: usize = 5;
/// Most LoRAs beyond these that are noted as left out: the Horde takes fifty notes in all.
const MOST_TOO_MANY: usize = 20;
/// Most textual inversions of a job; the Horde's own bound.
const MAX_INVERSIONS: usize = 20;
/// All of them together get no longer; the shortest lease has 150 seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Files that are kept from being evicted: those of the last jobs, of which some wait or run.
const KEPT: usize = 64;

/// Fetches what jobs name.
pub struct Extras {
    cache: AdHoc,
    recent: Mutex<VecDeque<Pinned>>,
    with_loras: bool,
    with_nsfw: bool,
}

/// What was found.
#[derive(Default)]
pub struct Found {
    /// In the job's order.
    pub loras: Vec<LoraFile>,
    /// For the prompt.
    pub inversions: Vec<Inversion>,
    /// By the name the prompt has for them.
    pub embeddings: Vec<(String, PathBuf)>,
    /// Words to put in front of the prompt.
    pub triggers: Vec<String>,
    /// What could not be had.
    pub notes: Vec<Metadata>,
}

impl Extras {
    /// Over a cache; without `with_loras` they are left out, as jobs with them were not asked for. Without `with_nsfw`
    /// entries flagged as not safe for work are left out.
    pub fn new(cache: AdHoc, with_loras: bool, with_nsfw: bool) -> Self {
        Self {
            cache,
            recent: Mutex::default(),
            with_loras,
            with_nsfw,
        }
    }

    /// Has what a job for a model of `baseline` names. Never fails: what cannot be had is left out and noted.
    pub async fn fetch(&self, params: &Params, baseline: Option<&Baseline>, seed: u64) -> Found {
        let loras = params.loras.iter().take(MAX_LORAS);
        let inversions = params.tis.iter().take(MAX_INVERSIONS);
        let (got_loras, got_inversions) = futures_util::future::join(
            join_all(
                loras
                    .clone()
                    .map(|lora| self.get(wanted_lora(lora, baseline, self.with_nsfw))),
            ),
            join_all(
                inversions
                    .clone()
                    .map(|ti| self.get(wanted_inversion(ti, baseline, self.with_nsfw))),
            ),
        )
        .await;
        let mut found = Found::default();
        for (lora, got) in loras.zip(got_loras) {
            match got {
                Ok(pinned) => {
                    if let Some(wanted) = &lora.inject_trigger {
                        found.triggers.extend(prompt::triggers(wanted, pinned.triggers(), seed));
                    }
                    found.loras.push(LoraFile {
                        name: lora.name.clone(),
                        words: prompt::words(pinned.title(), pinned.triggers()),
                        path: pinned.path().to_owned(),
                        model: within(lora.model, -5.0, 5.0).unwrap_or(1.0),
                        clip: within(lora.clip, -5.0, 5.0).unwrap_or(1.0),
                    });
                    self.keep(pinned);
                }
                Err(value) => found
                    .notes
                    .push(Metadata::new(MetadataType::Lora, value, Some(&lora.name))),
            }
        }
        let too_many = params.loras.iter().skip(MAX_LORAS).take(MOST_TOO_MANY);
        found.notes.extend(
            too_many.map(|lora| Metadata::new(MetadataType::Lora, MetadataValue::DownloadFailed, Some(&lora.name))),
        );
        for (ti, got) in inversions.zip(got_inversions) {
            match got {
                Ok(pinned) => {
                    let name = word(&ti.name).unwrap_or_else(|| pinned.version_id().to_string());
                    found.inversions.push(Inversion {
                        name: name.clone(),
                        strength: within(ti.strength, -5.0, 5.0).unwrap_or(1.0),
                        place: match ti.inject_ti.as_deref() {
                            Some("prompt") => Place::Prompt,
                            Some("negprompt") => Place::Negative,
                            _ => Place::Nowhere,
                        },
                    });
                    found.embeddings.push((name, pinned.path().to_owned()));
                    self.keep(pinned);
                }
                Err(value) => found.notes.push(Metadata::new(MetadataType::Ti, value, Some(&ti.name))),
            }
        }
        found
    }

    async fn get(&self, wanted: Wanted<'_>) -> Result<Pinned, MetadataValue> {
        if wanted.kind == AdHocKind::Lora && !self.with_loras {
            return Err(MetadataValue::DownloadFailed);
        }
        let control = Control::default();
        let got = tokio::time::timeout(PATIENCE, self.cache.get(&wanted, &Silent, &control)).await;
        match got.unwrap_or(Err(AdHocFailure::TimedOut)) {
            Ok(pinned) => Ok(pinned),
            Err(failure) => {
                tracing::info!(kind = ?wanted.kind, %failure, "a job goes on without something it names");
                Err(match failure {
                    AdHocFailure::BaselineMismatch { .. } => MetadataValue::BaselineMismatch,
                    _ => MetadataValue::DownloadFailed,
                })
            }
        }
    }

    fn keep(&self, pinned: Pinned) {
        let mut recent = self.recent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        recent.push_back(pinned);
        if recent.len() > KEPT {
            recent.pop_front();
        }
    }
}

fn wanted_lora<'a>(lora: &'a Lora, baseline: Option<&'a Baseline>, nsfw: bool) -> Wanted<'a> {
    Wanted {
        kind: AdHocKind::Lora,
        name: &lora.name,
        is_version: lora.is_version.unwrap_or(false),
        baseline,
        nsfw,
    }
}

fn wanted_inversion<'a>(ti: &'a TextualInversion, baseline: Option<&'a Baseline>, nsfw: bool) -> Wanted<'a> {
    Wanted {
        kind: AdHocKind::Embedding,
        name: &ti.name,
        is_version: false,
        baseline,
        nsfw,
    }
}

/// A name that can stand behind `embedding:` in a prompt as it is.
fn word(name: &str) -> Option<String> {
    let name = name.trim();
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (!name.is_empty() && name.len() <= 64 && name.chars().all(is_word)).then(|| name.to_owned())
}
