//! The supervisor's half: what to pop for, how a source is fetched, what is handed in.

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::alchemy::{Alchemy, Form, Payload, PopRequest, Submission};
use horde_client::client::DownloadLimits;
use horde_client::kind::PoppedJob;
use horde_client::transport::RequestClass;
use horde_client::{Client, SignedUrl};
use imaging::Limits;
use serde_json::json;
use worker_runtime::backend::{Backend, EngineReport, Fault, Finished, NothingToOffer};

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
        Self { settings, client }
    }
}

/// Forms an engine said it can do.
fn forms_of(report: &EngineReport) -> impl Iterator<Item = &str> {
    report.facts["forms"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(serde_json::Value::as_str)
}

#[async_trait]
impl Backend for AlchemyBackend {
    type Kind = Alchemy;
    type Valid = Valid;
    type Work = Work;
    type Output = Output;

    fn offer(&self, engines: &[EngineReport], free: usize) -> Result<PopRequest, NothingToOffer> {
        let forms: BTreeSet<&str> = engines.iter().flat_map(forms_of).collect();
        if forms.is_empty() {
            return Err(NothingToOffer("no form has all its files".into()));
        }
        let threads: usize = engines.iter().map(|e| e.capacity).sum();
        Ok(PopRequest {
            name: self.settings.name.clone(),
            forms: forms.into_iter().map(Form::from).collect(),
            amount: Some(free.clamp(1, MAX_AMOUNT) as u32),
            threads: Some(threads.clamp(1, 100) as u32),
            max_tiles: Some(self.settings.max_tiles),
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
        Ok(Work {
            form: valid.form.as_str().to_owned(),
            source: serde_bytes::ByteBuf::from(source.to_vec()),
            options: valid.options,
        })
    }

    fn estimate(&self, _work: &Work, _engine: &EngineReport) -> Option<Duration> {
        None
    }

    fn suits(&self, work: &Work, engine: &EngineReport) -> bool {
        forms_of(engine).any(|form| form == work.form)
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
