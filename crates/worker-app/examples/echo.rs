//! The smallest worker there can be: it answers text jobs with the length of their prompt, one word at a time.
//! Shows what a program plugs in; the tests run it as a real worker with a real engine child.

use std::process::ExitCode;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::kind::PoppedJob;
use horde_client::metadata::State;
use horde_client::text::{Payload, PopRequest, Submission, Text};
use serde::{Deserialize, Serialize};
use worker_app::{Check, Choice, Common, Context, DeviceFound, NoCommand, Program, Stop};
use worker_runtime::backend::{Backend, Engine, EngineReport, Fault, Finished, JobContext, NothingToOffer};

fn main() -> ExitCode {
    worker_app::main::<Echo>()
}

struct Echo;

/// The section `[echo]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    /// Models offered; none is exit 66.
    models: Vec<String>,
    /// Words of each answer, 1..=1000.
    words: u32,
    /// Milliseconds per word.
    word_ms: u64,
    /// Tokens of context.
    context_tokens: u32,
    /// How likely, 0..=1; nobody looks at it.
    temperature: f64,
    /// Reason for which loading fails: `device`, `model`, or nothing.
    fail: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: vec!["echo/one".to_owned()],
            words: 4,
            word_ms: 1,
            context_tokens: 1024,
            temperature: 1.0,
            fail: None,
        }
    }
}

impl Program for Echo {
    const NAME: &'static str = "echo";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str = "Answers text jobs with the length of their prompt.";
    const UNIT: &'static str = "words";
    const CONFIG_FILE: &'static str = include_str!("echo.toml");
    const MODELS_KEY: &'static str = "models";

    type Config = Config;
    type Backend = EchoBackend;
    type Engine = EchoEngine;
    type Command = NoCommand;

    fn check(config: &Config, _: &Common) -> Result<(), Stop> {
        if !(1..=1000).contains(&config.words) {
            return Err(Stop::config(format!("`echo.words` is `{}`", config.words)).hint("use 1 to 1000"));
        }
        Ok(())
    }

    fn models(context: &Context<Self>) -> Result<(), Stop> {
        if context.config.models.is_empty() {
            return Err(Stop::no_model("no model is configured").hint("set `echo.models`"));
        }
        Ok(())
    }

    fn backend(context: &Context<Self>) -> Result<EchoBackend, Stop> {
        Ok(EchoBackend {
            common: context.common.clone(),
            config: context.config.clone(),
        })
    }

    fn engine_config(context: &Context<Self>, _: &str) -> Result<serde_json::Value, Stop> {
        serde_json::to_value(&context.config).map_err(|error| Stop::failed(error.to_string()))
    }

    fn engine(config: serde_json::Value, device: &str) -> Result<EchoEngine, Stop> {
        let config: Config = serde_json::from_value(config).map_err(|error| Stop::failed(error.to_string()))?;
        match config.fail.as_deref() {
            Some("model") => Err(Stop::no_model("the model file is broken").hint("fetch it again")),
            Some(_) => Err(Stop::no_device("the device is on fire").hint("put it out")),
            None if device != "cpu" => {
                Err(Stop::no_device(format!("there is no `{device}`")).hint("this worker runs on `cpu`"))
            }
            None => Ok(EchoEngine { config }),
        }
    }

    fn devices() -> Vec<DeviceFound> {
        vec![DeviceFound {
            name: "cpu".to_owned(),
            description: "any processor".to_owned(),
            memory_bytes: None,
        }]
    }

    fn doctor(context: &Context<Self>) -> Vec<Check> {
        vec![Check::ok("words", format!("{} per answer", context.config.words))]
    }

    fn choices(_: &Context<Self>) -> Vec<Choice> {
        ["echo/one", "echo/two"]
            .map(|name| Choice {
                name: name.to_owned(),
                description: "no file, no memory".to_owned(),
                is_proposed: false,
            })
            .to_vec()
    }

    fn command(command: NoCommand, _: &Context<Self>) -> Result<(), Stop> {
        match command {}
    }
}

struct EchoBackend {
    common: Common,
    config: Config,
}

/// What the engine needs.
#[derive(Serialize, Deserialize)]
struct Work {
    n_chars: usize,
}

#[async_trait]
impl Backend for EchoBackend {
    type Kind = Text;
    type Valid = Work;
    type Work = Work;
    type Output = String;

    fn offer(&self, _: &[EngineReport], _: usize) -> Result<PopRequest, NothingToOffer> {
        Ok(PopRequest {
            name: self.common.worker_name.to_string(),
            models: self.config.models.clone(),
            bridge_agent: Some(self.common.bridge_agent.to_string()),
            priority_usernames: self.common.priority_usernames.clone(),
            nsfw: Some(self.common.nsfw),
            max_length: Some(512),
            max_context_length: Some(self.config.context_tokens),
            ..PopRequest::default()
        })
    }

    fn validate(&self, job: &mut PoppedJob<Payload>) -> Result<Work, Fault> {
        match &job.payload {
            Ok(Payload::Prompt(params)) => Ok(Work {
                n_chars: params.prompt.as_deref().unwrap_or_default().chars().count(),
            }),
            Ok(Payload::Chat(_)) => Err(Fault::of_job("chat jobs are not offered here")),
            Err(why) => Err(Fault::of_job(why.clone())),
        }
    }

    async fn prepare(&self, valid: Work) -> Result<Work, Fault> {
        Ok(valid)
    }

    fn estimate(&self, _: &Work, _: &EngineReport) -> Option<Duration> {
        Some(Duration::from_millis(
            self.config.word_ms.saturating_mul(u64::from(self.config.words)),
        ))
    }

    async fn check(&self, output: String) -> Result<Finished<Submission>, Fault> {
        Ok(Finished {
            upload: None,
            units: output.split(' ').count() as f64,
            submission: Submission::Prompt {
                generation: output,
                state: State::Ok,
                seed: None,
                gen_metadata: Vec::new(),
            },
        })
    }

    fn inline(&self, _: &Submission, _: &Bytes) -> Option<Submission> {
        None
    }
}

struct EchoEngine {
    config: Config,
}

impl Engine for EchoEngine {
    type Work = Work;
    type Output = String;

    fn report(&self) -> EngineReport {
        EngineReport {
            capacity: 1,
            facts: serde_json::json!({ "models": self.config.models }),
        }
    }

    fn run(&self, work: Work, job: &dyn JobContext) -> Result<Vec<Result<String, Fault>>, Fault> {
        let mut words = Vec::new();
        for word in 0..self.config.words {
            if job.is_cancelled() {
                return Err(Fault::of_job("cancelled"));
            }
            job.progress(word, self.config.words, "echo");
            std::thread::sleep(Duration::from_millis(self.config.word_ms));
            words.push(work.n_chars.to_string());
        }
        Ok(vec![Ok(words.join(" "))])
    }
}
