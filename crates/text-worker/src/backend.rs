//! In the supervisor: what is offered, what a job asks for, what is handed in.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::kind::PoppedJob;
use horde_client::metadata::State;
use horde_client::text::{Payload, PopRequest, Submission, Text};
use worker_app::Common;
use worker_runtime::backend::{Backend, EngineReport, Fault, Finished, NothingToOffer};

use crate::chat;
use crate::config::Config;
use crate::engine::{Facts, Work, Written};
use crate::health::Health;
use crate::limits::{Limits, limits};
use crate::names::bridged_name;
use crate::payload::{self, Asked};

/// Text jobs, as the supervisor sees them.
pub struct ScribeBackend {
    common: Common,
    config: Config,
    model: Served,
}

/// What is served, in the Horde's words.
#[derive(Clone)]
pub enum Served {
    /// A file of our own, by the Horde's name for it.
    File(String),
    /// Whatever another program serves at the moment.
    Bridge(Health),
}

impl Served {
    /// The Horde's name of it, or why nothing is served; `configured` counts for a bridge, where it is not empty.
    fn name(&self, configured: &str, engines: &[Facts]) -> Result<String, String> {
        let facts = match self {
            Self::File(name) => return Ok(name.clone()),
            Self::Bridge(health) => health.now(engines)?,
        };
        Ok(if configured.is_empty() {
            bridged_name(&facts.model)
        } else {
            configured.to_owned()
        })
    }
}

/// Characters that a token takes on average; for estimates only.
const CHARS_PER_TOKEN: f64 = 3.5;
/// Above 150 tokens/s the server takes a worker for faked; it counts characters / 4, and at least 20 tokens.
const BELIEVED_PER_SECOND: f64 = 135.0;

impl ScribeBackend {
    /// For what `model` is.
    pub fn new(common: Common, config: Config, model: Served) -> Self {
        Self { common, config, model }
    }

    /// The Horde's name of what is served now, or why nothing is. What another program says of itself at the moment goes
    /// into `engines`, which were measured when it may have served another model.
    fn model_name(&self, engines: &mut [Facts]) -> Result<String, NothingToOffer> {
        if let Served::Bridge(health) = &self.model {
            let told = health.now(engines).map_err(NothingToOffer)?;
            for facts in &mut *engines {
                facts.context_tokens = told.context_tokens;
                facts.max_length = told.max_length;
            }
        }
        self.model
            .name(&self.config.model_name, engines)
            .map_err(NothingToOffer)
    }

    /// Says the Horde's name of what is served whenever it is asked; `None` while nothing is.
    pub(crate) fn naming(&self) -> impl Fn() -> Option<String> + Send + 'static + use<> {
        let (model, configured) = (self.model.clone(), self.config.model_name.clone());
        move || model.name(&configured, &[]).ok()
    }

    /// What all engines together can promise: the least of each.
    fn limits(&self, facts: &[Facts]) -> Result<Limits, NothingToOffer> {
        if facts.is_empty() {
            return Err(NothingToOffer("no text engine is loaded".into()));
        }
        let each: Option<Vec<Limits>> = facts.iter().map(|facts| limits(facts, self.common.prefetch)).collect();
        let measured = each.ok_or_else(|| {
            NothingToOffer("this device is too slow: not even a short answer would be finished in time".into())
        })?;
        let least = |of: fn(&Limits) -> u32| measured.iter().map(of).min().unwrap_or(0);
        let held = facts.iter().map(|facts| facts.context_tokens).min().unwrap_or(0);
        let max_context_length = match self.config.max_context_length {
            0 => least(|limits| limits.max_context_length),
            wanted => wanted.min(held),
        };
        let max_length = match self.config.max_length {
            0 => least(|limits| limits.max_length),
            wanted => wanted,
        };
        Ok(Limits {
            max_length: max_length.min(max_context_length.saturating_sub(1)).max(1),
            max_context_length,
        })
    }
}

/// A pop's keys for chat jobs.
fn declared(model: &str, limits: Limits, with_effort: bool) -> PopRequest {
    let features = chat::FEATURES.into_iter().chain(with_effort.then_some(chat::EFFORT));
    PopRequest {
        chat_jobs: Some(true),
        prompt_jobs: Some(true),
        model_id: Some(model.to_owned()),
        chat_features: features.map(str::to_owned).collect(),
        chat_limits: Some(serde_json::json!({
            "max_context_length": limits.max_context_length, "max_length": limits.max_length,
        })),
        ..PopRequest::default()
    }
}

fn facts(engine: &EngineReport) -> Option<Facts> {
    serde_json::from_value(engine.facts.clone()).ok()
}

#[async_trait]
impl Backend for ScribeBackend {
    type Kind = Text;
    type Valid = Work;
    type Work = Work;
    type Output = Written;

    fn offer(&self, engines: &[EngineReport], _free: usize) -> Result<PopRequest, NothingToOffer> {
        let mut facts: Vec<Facts> = engines.iter().filter_map(facts).collect();
        let model = self.model_name(&mut facts)?;
        let limits = self.limits(&facts)?;
        let threads: usize = engines.iter().map(|engine| engine.capacity.max(1)).sum();
        let chats = self.config.chat && facts.iter().all(|facts| facts.chat);
        let chat = if chats {
            declared(&model, limits, facts.iter().all(|facts| facts.effort))
        } else {
            PopRequest::default()
        };
        Ok(PopRequest {
            name: self.common.worker_name.to_string(),
            models: vec![model],
            bridge_agent: Some(self.common.bridge_agent.to_string()),
            priority_usernames: self.common.priority_usernames.clone(),
            nsfw: Some(self.common.nsfw),
            threads: u32::try_from(threads).ok(),
            max_length: Some(limits.max_length),
            max_context_length: Some(limits.max_context_length),
            ..chat
        })
    }

    fn waits_for(&self) -> Option<String> {
        match &self.model {
            Served::Bridge(health) => health.now(&[]).err(),
            Served::File(_) => None,
        }
    }

    fn validate(&self, job: &mut PoppedJob<Payload>) -> Result<Work, Fault> {
        let payload = std::mem::replace(&mut job.payload, Err("the payload was taken".into()));
        let work = match payload {
            Ok(Payload::Prompt(params)) => {
                let Asked { request, left_out } = payload::request(*params);
                if !left_out.is_empty() {
                    tracing::info!(keys = ?left_out, "a job asks for what this worker does not do; it is served without");
                }
                Work { request, chat: None }
            }
            Ok(Payload::Chat(payload)) if self.config.chat => {
                let model = job.model.as_deref().unwrap_or_default();
                let (request, chat) = chat::read(&payload, model)?;
                Work {
                    request,
                    chat: Some(chat),
                }
            }
            Ok(Payload::Chat(_)) => return Err(Fault::of_job("chat jobs are not offered here")),
            Err(why) => return Err(Fault::of_job(why)),
        };
        if let Served::Bridge(health) = &self.model {
            health.popped();
        }
        Ok(work)
    }

    async fn prepare(&self, valid: Work) -> Result<Work, Fault> {
        Ok(valid)
    }

    fn estimate(&self, work: &Work, engine: &EngineReport) -> Option<Duration> {
        let facts = facts(engine)?;
        let request = &work.request;
        let room = request
            .max_context_length
            .min(facts.context_tokens)
            .saturating_sub(request.max_length);
        let said = work.chat.iter().flat_map(|chat| &chat.messages);
        let said = said.filter_map(|message| message["content"].as_str().map(|text| text.chars().count()));
        let chars = request.prompt.chars().count() + said.sum::<usize>();
        let prompt = (chars as f64 / CHARS_PER_TOKEN).min(f64::from(room));
        // Many answers end before their longest.
        let answer = 0.7 * f64::from(request.max_length);
        Duration::try_from_secs_f64(prompt / facts.read_per_second + answer / facts.write_per_second).ok()
    }

    fn left(&self, is_made: bool) {
        if let Served::Bridge(health) = &self.model {
            health.left(is_made);
        }
    }

    async fn check(&self, output: Written) -> Result<Finished<Submission>, Fault> {
        if self.config.hold_back
            && let Some(wait) = hold_back(&output)
        {
            tokio::time::sleep(wait).await;
        }
        Ok(Finished {
            upload: None,
            units: f64::from(output.answer.tokens),
            submission: match output.reply {
                Some(reply) => Submission::Chat(reply),
                None => Submission::Prompt {
                    generation: output.answer.text,
                    state: State::Ok,
                    seed: i64::try_from(output.answer.seed).ok(),
                    gen_metadata: Vec::new(),
                },
            },
        })
    }

    fn inline(&self, _: &Submission, _: &Bytes) -> Option<Submission> {
        None
    }
}

/// How long to keep an answer back so that its speed is believed; `None` when it was slow enough. At most a few seconds.
fn hold_back(output: &Written) -> Option<Duration> {
    let timings = output.answer.timings;
    let took = timings.queued + timings.prefill + timings.decode;
    let counted = (output.answer.text.chars().count() as f64 / 4.0).max(f64::from(output.max_length.min(20)));
    let needed = Duration::try_from_secs_f64(counted / BELIEVED_PER_SECOND).ok()?;
    needed
        .checked_sub(took)
        .filter(|wait| !wait.is_zero())
        .map(|wait| wait.min(Duration::from_secs(10)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use textgen::{Finish, TextAnswer, Timings};

    fn written(chars: usize, milliseconds: u64) -> Written {
        Written {
            reply: None,
            max_length: 80,
            answer: TextAnswer {
                text: "x".repeat(chars),
                tokens: 10,
                finish: Finish::Eos,
                prompt_tokens: 1,
                seed: 1,
                timings: Timings {
                    decode: Duration::from_millis(milliseconds),
                    ..Timings::default()
                },
            },
        }
    }

    #[test]
    fn only_answers_faster_than_the_server_believes_are_kept_back() {
        assert_eq!(hold_back(&written(400, 5_000)), None);
        // 20 tokens are counted at least: 148 ms.
        let short = hold_back(&written(4, 48)).expect("too fast");
        assert!((90..=110).contains(&short.as_millis()), "{short:?}");
        let long = hold_back(&written(5_400, 1_000)).expect("too fast");
        assert_eq!(long.as_secs(), 9);
    }
}
