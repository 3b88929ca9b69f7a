//! The supervisor's half: what to pop for, what a job brings along, what is handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::join;
use horde_client::Client;
use horde_client::image::{Image, Payload, PopRequest, Submission};
use horde_client::kind::PoppedJob;
use horde_client::metadata::{MOST_ENTRIES, Metadata, MetadataType, MetadataValue};
use model_store::reference::Baseline;
use serde_bytes::ByteBuf;
use vision::safety::mentions;
use worker_app::Common;
use worker_runtime::backend::{Backend, EngineReport, Fault, Finished, NothingToOffer};

use crate::config::Config;
use crate::extras::Extras;
use crate::facts::Facts;
use crate::order::{Order, order, within};
use crate::room::SMALLEST_PIXELS;
use crate::work::{Censors, Made, Output, Work};
use crate::{prompt, sources};

/// Image jobs in the supervisor.
pub struct DreamerBackend {
    common: Common,
    config: Config,
    client: Client,
    extras: Extras,
    baselines: BTreeMap<String, Option<Baseline>>,
    with_post: bool,
}

/// A job within bounds, whose sources are still to be fetched.
pub struct Valid {
    model: String,
    order: Order,
    payload: Payload,
}

/// Above 20 megapixel-steps a second the server takes a worker for faked.
const BELIEVED_PER_SECOND: f64 = 18.0;
/// Longest that a picture is held back.
const LONGEST_HOLD: Duration = Duration::from_secs(20);

impl DreamerBackend {
    /// For models with these families; `with_post` says that every promised post-processor is installed.
    pub fn new(
        common: Common,
        config: Config,
        client: Client,
        extras: Extras,
        baselines: BTreeMap<String, Option<Baseline>>,
        with_post: bool,
    ) -> Self {
        Self {
            common,
            config,
            client,
            extras,
            baselines,
            with_post,
        }
    }

    fn max_pixels(&self, facts: &[Facts]) -> Result<u64, NothingToOffer> {
        let is_slow = self.config.extra_slow_worker;
        let fitting = facts.iter().map(|facts| facts.offer.pixels);
        let fitting = fitting.fold(self.config.max_pixels(), u64::min);
        let bounds = facts.iter().filter_map(|facts| facts.pixels_in_time(is_slow));
        let most = bounds.fold(fitting, u64::min);
        if most >= SMALLEST_PIXELS.min(fitting) {
            return Ok(most);
        }
        let speed = facts.iter().filter_map(Facts::slowest).fold(f64::INFINITY, f64::min);
        let hint = if is_slow {
            ""
        } else {
            "; `dreamer.extra_slow_worker = true` triples the leases"
        };
        Err(NothingToOffer(format!(
            "this device is too slow for any model of `dreamer.models`: {speed:.3} megapixel-steps/s, and not even small pictures would be ready before their leases end{hint}"
        )))
    }
}

#[async_trait]
impl Backend for DreamerBackend {
    type Kind = Image;
    type Valid = Valid;
    type Work = Work;
    type Output = Output;

    fn offer(&self, engines: &[EngineReport], _free: usize) -> Result<PopRequest, NothingToOffer> {
        let facts: Vec<Facts> = engines.iter().filter_map(Facts::of).collect();
        let models: BTreeSet<&String> = facts.iter().flat_map(|facts| &facts.models).collect();
        if models.is_empty() {
            return Err(NothingToOffer("no engine has a model".into()));
        }
        let config = &self.config;
        Ok(PopRequest {
            name: self.common.worker_name.to_string(),
            models: models.into_iter().cloned().collect(),
            bridge_agent: Some(self.common.bridge_agent.to_string()),
            priority_usernames: self.common.priority_usernames.clone(),
            nsfw: Some(self.common.nsfw),
            threads: Some(engines.len().clamp(1, 50) as u32),
            require_upfront_kudos: Some(config.require_upfront_kudos),
            amount: Some(
                facts
                    .iter()
                    .map(|facts| facts.offer.batch)
                    .fold(config.max_batch, u32::min),
            ),
            extra_slow_worker: Some(config.extra_slow_worker),
            max_pixels: Some(self.max_pixels(&facts)?),
            blacklist: config.blacklist.clone(),
            allow_img2img: Some(config.allow_img2img),
            allow_painting: Some(config.allow_painting),
            allow_unsafe_ipaddr: Some(config.allow_unsafe_ipaddr),
            allow_post_processing: Some(self.with_post),
            allow_controlnet: Some(false),
            allow_sdxl_controlnet: Some(false),
            allow_lora: Some(config.allow_lora),
            limit_max_steps: Some(config.limit_max_steps),
            ..PopRequest::default()
        })
    }

    fn validate(&self, job: &mut PoppedJob<Payload>) -> Result<Valid, Fault> {
        let model = job.model.clone().unwrap_or_default();
        if !self.baselines.contains_key(&model) {
            return Err(Fault::of_job("its model is none that was offered"));
        }
        let payload =
            std::mem::replace(&mut job.payload, Err("the payload was taken".into())).map_err(Fault::of_job)?;
        // What was offered may have grown smaller since; what the owner set has not.
        let order = order(&payload, job.generations.len(), self.config.max_pixels())?;
        if !payload.params.post_processing.is_empty() {
            if !self.with_post {
                return Err(Fault::of_job("post-processing is not offered here"));
            }
            vision::post::plan(&payload.params.post_processing).map_err(|error| Fault::of_job(error.to_string()))?;
        }
        Ok(Valid { model, order, payload })
    }

    async fn prepare(&self, valid: Valid) -> Result<Work, Fault> {
        let Valid {
            model,
            mut order,
            payload,
        } = valid;
        let baseline = self.baselines.get(&model).cloned().flatten();
        let found = self.extras.fetch(&payload.params, baseline.as_ref(), order.seed);
        let (fetched, found) = join(fetch_sources(&self.client, &payload, order.source.is_some()), found).await;
        let mut notes = fetched.notes;
        notes.extend(found.notes);
        if fetched.source.is_none() {
            order.source = None;
        }
        let params = payload.params;
        let asked = params.prompt.unwrap_or_default();
        let named = found.loras.iter().flat_map(|lora| &lora.words);
        let said = named.fold(asked.clone(), |said, word| said + " , " + word);
        let has_censored_word = mentions(&said, &self.config.censorlist);
        Ok(Work {
            model,
            prompt: prompt::compose(&asked, order.seed, &found.inversions, &found.triggers),
            order,
            source: fetched.source,
            mask: fetched.mask,
            loras: found.loras,
            embeddings: found.embeddings,
            post: params.post_processing,
            face_strength: within(params.facefixer_strength, 0.0, 1.0).unwrap_or(1.0) as f32,
            censors: match params.use_nsfw_censor {
                Some(true) => Some(Censors::Requester),
                _ => (!self.common.nsfw).then_some(Censors::Owner),
            },
            has_censored_word,
            notes,
        })
    }

    fn estimate(&self, work: &Work, engine: &EngineReport) -> Option<Duration> {
        Facts::of(engine)?.estimate(work)
    }

    fn suits(&self, work: &Work, engine: &EngineReport) -> bool {
        Facts::of(engine).is_some_and(|facts| facts.models.contains(&work.model))
    }

    fn speed_slack(&self, engine: &EngineReport) -> Option<f64> {
        Facts::of(engine)?.slack()
    }

    fn minimal(&self, submission: &Submission) -> Submission {
        // What marks a picture as replaced must stay.
        let kept = submission.gen_metadata.iter();
        let kept = kept.filter(|note| note.kind == MetadataType::Censorship).cloned();
        Submission {
            gen_metadata: kept.collect(),
            ..submission.clone()
        }
    }

    async fn check(&self, output: Output) -> Result<Finished<Submission>, Fault> {
        let Output {
            webp,
            state,
            mut notes,
            made,
        } = output;
        if self.config.hold_back
            && let Some(wait) = hold_back(&made)
        {
            tokio::time::sleep(wait).await;
        }
        notes.truncate(MOST_ENTRIES);
        Ok(Finished {
            upload: Some(Bytes::from(webp.into_vec())),
            units: made.steps,
            submission: Submission {
                generation: "R2".into(),
                state,
                seed: i64::try_from(made.seed).unwrap_or(0),
                gen_metadata: notes,
            },
        })
    }

    fn inline(&self, submission: &Submission, bytes: &Bytes) -> Option<Submission> {
        Some(Submission {
            generation: STANDARD.encode(bytes),
            ..submission.clone()
        })
    }
}

/// What came of a job's addresses.
struct Fetched {
    source: Option<ByteBuf>,
    mask: Option<ByteBuf>,
    notes: Vec<Metadata>,
}

/// Source and mask side by side. What cannot be had is noted, and the job goes on without: the server has the race in
/// which a source is gone before its job is.
async fn fetch_sources(client: &Client, payload: &Payload, is_wanted: bool) -> Fetched {
    let get = async |text: &Option<String>, kind: MetadataType| match text
        .as_deref()
        .filter(|text| !text.trim().is_empty())
    {
        Some(text) if is_wanted => match sources::bytes(client, text).await {
            Some(bytes) => (Some(ByteBuf::from(bytes.to_vec())), None),
            None => (None, Some(Metadata::new(kind, MetadataValue::DownloadFailed, None))),
        },
        _ => (None, None),
    };
    let ((source, without_source), (mask, without_mask)) = join(
        get(&payload.source_image, MetadataType::SourceImage),
        get(&payload.source_mask, MetadataType::SourceMask),
    )
    .await;
    Fetched {
        source,
        mask,
        notes: without_source.into_iter().chain(without_mask).collect(),
    }
}

/// How long to hold a picture back so that its speed is believed.
fn hold_back(made: &Made) -> Option<Duration> {
    let needed = made.megapixel_steps / BELIEVED_PER_SECOND;
    let wait = Duration::try_from_secs_f64(needed - made.seconds).ok()?;
    (!wait.is_zero()).then(|| wait.min(LONGEST_HOLD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pictures_faster_than_the_server_believes_are_held_back() {
        let made = |seconds| Made {
            seed: 0,
            steps: 30.0,
            megapixel_steps: 36.0,
            seconds,
        };
        assert_eq!(hold_back(&made(3.0)), None);
        assert_eq!(hold_back(&made(1.5)), Some(Duration::from_millis(500)));
        assert_eq!(hold_back(&made(f64::NAN)), None);
    }
}
