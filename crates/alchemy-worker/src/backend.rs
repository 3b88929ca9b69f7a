//! The supervisor's half: what to pop for, how a source is fetched, what is handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::alchemy::{Alchemy, Form, Payload, PopRequest, Submission};
use horde_client::client::DownloadLimits;
use horde_client::error::ApiError;
use horde_client::kind::PoppedJob;
use horde_client::transport::RequestClass;
use horde_client::{Client, SignedUrl};
use imaging::Limits;
use serde_json::json;
use vision::{post, upscale};
use worker_runtime::backend::{Backend, EngineReport, Fault, Finished, NothingToOffer};

use crate::forms::ANNOTATORS;
use crate::pace::{self, Pace};
use crate::turns::turn;
use crate::work::{Options, Output, Work};

/// What a backend is made of.
#[derive(Clone, Debug)]
pub struct BackendSettings {
    /// Worker name.
    pub name: String,
    /// `Name:version:contact`.
    pub bridge_agent: String,
    /// Users served first, as `alias#id`.
    pub priority_usernames: Vec<String>,
    /// Largest source, in tiles of 512×512.
    pub max_tiles: u32,
}

/// Alchemy in the supervisor.
pub struct AlchemyBackend {
    settings: BackendSettings,
    client: Client,
    /// Forms that the Horde said it does not know.
    unknown: Mutex<BTreeSet<String>>,
    /// Pops that were offered, for turns.
    n_offered: AtomicUsize,
}

/// A form whose source is still to be fetched.
pub struct Valid {
    form: Form,
    source: SignedUrl,
    options: Options,
}

/// Most forms asked for in one pop.
const MAX_AMOUNT: usize = 8;
/// The Horde's own bound for sources is 5 MB; a stranger's server gets ten seconds.
const SOURCE_LIMITS: DownloadLimits = DownloadLimits {
    max_bytes: 8 << 20,
    deadline: Duration::from_secs(10),
};

impl AlchemyBackend {
    /// Joins settings and the line to the outside.
    pub fn new(settings: BackendSettings, client: Client) -> Self {
        Self {
            settings,
            client,
            unknown: Mutex::default(),
            n_offered: AtomicUsize::new(0),
        }
    }

    fn unknown(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unknown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forms an engine said it can do, with their paces.
fn forms_of(report: &EngineReport) -> BTreeMap<String, Pace> {
    serde_json::from_value(report.facts["forms"].clone()).unwrap_or_default()
}

#[async_trait]
impl Backend for AlchemyBackend {
    type Kind = Alchemy;
    type Valid = Valid;
    type Work = Work;
    type Output = Output;

    fn offer(&self, engines: &[EngineReport], free: usize) -> Result<PopRequest, NothingToOffer> {
        let mut forms: BTreeMap<String, Pace> = BTreeMap::new();
        for (form, pace) in engines.iter().flat_map(forms_of) {
            // Where several do it, the slowest must be able to.
            let slowest = forms.entry(form).or_insert(pace);
            if pace.seconds(1.0) > slowest.seconds(1.0) {
                *slowest = pace;
            }
        }
        {
            let unknown = self.unknown();
            forms.retain(|form, _| !unknown.contains(form));
        }
        if forms.is_empty() {
            let measuring = engines.iter().any(|engine| engine.facts["measuring"] == true);
            let why = if measuring {
                "the first form is still being measured"
            } else {
                "no form has all its files"
            };
            return Err(NothingToOffer(why.into()));
        }
        let threads: usize = engines.iter().map(|engine| engine.capacity).sum();
        let n = self.n_offered.fetch_add(1, Ordering::Relaxed);
        let (forms, max_tiles) = turn(&forms, self.settings.max_tiles, n);
        Ok(PopRequest {
            name: self.settings.name.clone(),
            annotation_types: if forms.contains(&Form::Annotation.as_str()) {
                ANNOTATORS.map(str::to_owned).to_vec()
            } else {
                Vec::new()
            },
            forms: forms.into_iter().map(Form::from).collect(),
            amount: Some(free.clamp(1, MAX_AMOUNT) as u32),
            threads: Some(threads.clamp(1, 100) as u32),
            max_tiles: Some(max_tiles),
            bridge_agent: Some(self.settings.bridge_agent.clone()),
            priority_usernames: self.settings.priority_usernames.clone(),
            ..PopRequest::default()
        })
    }

    fn validate(&self, job: &mut PoppedJob<Payload>) -> Result<Valid, Fault> {
        let payload = job.payload.as_ref().map_err(|reason| Fault::of_job(reason.clone()))?;
        if !crate::forms::KNOWN.contains(&payload.form) {
            return Err(Fault::of_job("the form is none that was offered"));
        }
        let source = payload.source_image.as_deref().unwrap_or("");
        let url = url::Url::parse(source).map_err(|_| Fault::of_job("the source has no address"))?;
        if !matches!(url.scheme(), "https" | "http") {
            return Err(Fault::of_job("the source's address is not one of the web"));
        }
        Ok(Valid {
            form: payload.form.clone(),
            source: SignedUrl::new(url),
            options: Options::read(&payload.options),
        })
    }

    async fn prepare(&self, valid: Valid) -> Result<Work, Fault> {
        // The address may be the Horde's own or one a stranger chose; it is always treated as the latter.
        let source = self
            .client
            .download(&valid.source, RequestClass::Stranger, SOURCE_LIMITS)
            .await
            .map_err(|_| Fault::of_job("the source could not be fetched"))?;
        let refused = |e: imaging::DecodeError| Fault::of_job(format!("the source was refused: {e}"));
        let header = imaging::probe(&source).map_err(refused)?;
        Limits::tiles(self.settings.max_tiles).check(&header).map_err(refused)?;
        upscale::fits_result(header.width, header.height, post::scale_of(valid.form.as_str()))
            .map_err(|e| Fault::of_job(e.to_string()))?;
        Ok(Work {
            form: valid.form.as_str().to_owned(),
            tiles: pace::tiles(header.width, header.height),
            source: serde_bytes::ByteBuf::from(source.to_vec()),
            options: valid.options,
        })
    }

    fn estimate(&self, work: &Work, engine: &EngineReport) -> Option<Duration> {
        Some(forms_of(engine).get(&work.form)?.takes(work.tiles))
    }

    fn suits(&self, work: &Work, engine: &EngineReport) -> bool {
        engine.facts["forms"].get(&work.form).is_some()
    }

    /// A Horde that does not know one form refuses the whole pop: it is asked without that form from then on. One that does
    /// not say what it refuses is asked without `annotation`, which is newer than all others.
    fn pop_refused(&self, request: &PopRequest, error: &ApiError) -> bool {
        let named = error.refused_item("forms").and_then(|at| request.forms.get(at));
        let newest = || request.forms.iter().find(|form| **form == Form::Annotation);
        let Some(form) = named.or_else(newest) else {
            return false;
        };
        // Today's Hordes do not know that one, which is nobody's mistake.
        if *form == Form::Annotation {
            tracing::info!("the Horde does not know annotation yet; it is asked without it");
        } else {
            tracing::warn!(
                form = form.as_str(),
                "the Horde does not know this form; it is not offered any more"
            );
        }
        self.unknown().insert(form.as_str().to_owned())
    }

    async fn check(&self, output: Output) -> Result<Finished<Submission>, Fault> {
        match output {
            Output::Picture { form, webp, tiles } => Ok(Finished {
                upload: Some(Bytes::from(webp.into_vec())),
                submission: Submission {
                    result: json!({ form: "R2" }),
                },
                units: tiles,
            }),
            Output::Value { result, tiles } => {
                let result = serde_json::from_str(&result)
                    .map_err(|_| Fault::of_worker("the engine gave a result that is no JSON"))?;
                Ok(Finished {
                    upload: None,
                    submission: Submission { result },
                    units: tiles,
                })
            }
        }
    }

    fn inline(&self, _submission: &Submission, _bytes: &Bytes) -> Option<Submission> {
        None
    }
}
