//! Engines that another program runs: KoboldCpp's API, or the OpenAI completions API (Aphrodite, TabbyAPI, vLLM,
//! llama-server). Text comes as a stream, so that a stop text or a cancel ends the work early.

mod dialect;
mod lines;
mod stream;

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::runtime::Runtime;
use url::Url;

pub use self::dialect::Dialect;
use self::stream::Running;
use crate::engine::{EngineFacts, TextEngine, TextError, Watch};
use crate::request::{TextAnswer, TextRequest};

/// Where the other program is and how it is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BridgeSettings {
    /// Its address, such as `http://127.0.0.1:5001`.
    pub url: String,
    /// A file with the key it wants, sent as a bearer token; empty for none.
    pub api_key_file: PathBuf,
    /// Requests at once, 1..=64.
    pub parallel: usize,
    /// Tokens of context, where the program does not say; 0 believes it or takes 2048.
    pub context_tokens: u32,
    /// A stream silent for so long is given up, 5..=600.
    pub stall_seconds: u64,
    /// After somebody else used it, it is left alone for so long, where it tells (KoboldCpp); 0 for never, at most 3600.
    pub idle_seconds: u64,
}

impl Default for BridgeSettings {
    fn default() -> Self {
        Self {
            url: "http://127.0.0.1:5001".to_owned(),
            api_key_file: PathBuf::new(),
            parallel: 1,
            context_tokens: 0,
            stall_seconds: 60,
            idle_seconds: 20,
        }
    }
}

/// How the other program is used at the moment, by whomever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Since its last request.
    pub idle: Duration,
    /// Whether it computes.
    pub busy: bool,
    /// Requests that wait.
    pub waiting: u64,
}

/// A text engine behind HTTP.
pub struct BridgeEngine {
    dialect: Dialect,
    settings: BridgeSettings,
    base: Url,
    key: Option<String>,
    client: reqwest::Client,
    /// `None` only while being dropped.
    runtime: Option<Runtime>,
    known: Mutex<Option<(Instant, EngineFacts)>>,
}

/// How long what the backend said of itself is believed.
const BELIEVED: Duration = Duration::from_secs(2);
/// For questions that need no computing.
const QUICK: Duration = Duration::from_secs(5);
/// How often a running request looks at its watch.
const LOOK: Duration = Duration::from_millis(100);
/// A kept connection that the backend had closed meanwhile shows so at once; what breaks later was broken by the job.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Answers of a backend beyond this are no answers.
const MOST_BYTES: usize = 4 << 20;

impl BridgeEngine {
    /// Prepares the line; asks nothing yet.
    ///
    /// # Errors
    /// Where the address or the key cannot be used.
    pub fn new(dialect: Dialect, settings: BridgeSettings) -> Result<Self, TextError> {
        let unusable = |why: String| TextError::Unavailable(why);
        let base = Url::parse(&format!("{}/", settings.url.trim_end_matches('/')))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| unusable(format!("`{}` is no http address", settings.url)))?;
        let key = if settings.api_key_file.as_os_str().is_empty() {
            None
        } else {
            let text = std::fs::read_to_string(&settings.api_key_file);
            let path = settings.api_key_file.display();
            Some(
                text.map_err(|error| unusable(format!("`{path}`: {error}")))?
                    .trim()
                    .to_owned(),
            )
        };
        // Somebody else in this process may have chosen one; any will do.
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(QUICK)
            .build()
            .map_err(|_| unusable("no HTTP client can be made".into()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("bridge")
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self {
            dialect,
            settings,
            base,
            key,
            client,
            runtime: Some(runtime),
            known: Mutex::new(None),
        })
    }

    /// Most requests that are sent to it at once.
    pub fn parallel(&self) -> usize {
        self.settings.parallel.clamp(1, 64)
    }

    /// How it is used at the moment; `None` where it does not tell.
    ///
    /// # Errors
    /// Where it does not answer.
    pub fn usage(&self) -> Result<Option<Usage>, TextError> {
        let Some(path) = self.dialect.usage_path() else {
            return Ok(None);
        };
        let answer = self.runtime().block_on(self.ask(path))?;
        Ok(answer.as_ref().and_then(dialect::usage))
    }

    fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("the runtime is there until the engine is dropped")
    }

    fn send(&self, path: &str, body: Option<&Value>) -> Result<reqwest::RequestBuilder, TextError> {
        let url = self
            .base
            .join(path)
            .map_err(|error| TextError::Unavailable(error.to_string()))?;
        let request = match body {
            Some(body) => self
                .client
                .post(url)
                .header("content-type", "application/json")
                .body(body.to_string()),
            None => self.client.get(url),
        };
        Ok(match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        })
    }

    /// A small JSON answer; `None` where the backend has no such route.
    async fn ask(&self, path: &str) -> Result<Option<Value>, TextError> {
        let down = |error: reqwest::Error| TextError::Unavailable(self.told(&error));
        let start = Instant::now();
        let mut answer = self.send(path, None)?.timeout(QUICK).send().await;
        if answer.as_ref().is_err_and(|error| was_closed(error, start)) {
            answer = self.send(path, None)?.timeout(QUICK).send().await;
        }
        let response = answer.map_err(down)?;
        match response.status().as_u16() {
            200..=299 => {}
            401 | 403 => return Err(self.locked()),
            _ => return Ok(None),
        }
        let bytes = response.bytes().await.map_err(down)?;
        Ok(serde_json::from_slice(&bytes[..bytes.len().min(MOST_BYTES)]).ok())
    }

    /// An error without any address but the one the owner set.
    fn told(&self, error: &reqwest::Error) -> String {
        let what = if error.is_connect() {
            "cannot be reached"
        } else if error.is_timeout() {
            "does not answer in time"
        } else {
            "broke the connection"
        };
        format!("the backend at {} {what}", self.settings.url)
    }

    /// What it says where a key is missing or wrong.
    fn locked(&self) -> TextError {
        let url = &self.settings.url;
        TextError::Unavailable(format!("the backend at {url} wants another key (hint: `api_key_file`)"))
    }

    /// Tokens of `text` by the backend's own count, where it counts.
    async fn count(&self, text: &str, model: &str) -> Option<u32> {
        let (path, body) = self.dialect.count(text, model)?;
        let response = self.send(path, Some(&body)).ok()?.timeout(QUICK).send().await.ok()?;
        if !response.status().is_success() {
            return None;
        }
        self.dialect
            .counted(&serde_json::from_slice(&response.bytes().await.ok()?).ok()?)
    }

    /// Tells the backend to stop; those that have no word for it see the connection end.
    async fn abort(&self, tag: &str) {
        let Some((path, body)) = self.dialect.abort(tag) else {
            return;
        };
        if let Ok(request) = self.send(path, Some(&body)) {
            // It may have ended already; nothing depends on the answer.
            let _ = request.timeout(QUICK).send().await;
        }
    }
}

/// Whether a request begun at `start` met a connection that the other side had closed, before any answer.
fn was_closed(error: &reqwest::Error, start: Instant) -> bool {
    error.is_request() && !error.is_connect() && !error.is_timeout() && start.elapsed() < AT_ONCE
}

impl TextEngine for BridgeEngine {
    fn facts(&self) -> Result<EngineFacts, TextError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((when, facts)) = known
            && when.elapsed() < BELIEVED
        {
            return Ok(facts);
        }
        let asked = self.runtime().block_on(async {
            let mut answers = Vec::new();
            for path in self.dialect.questions() {
                answers.push(self.ask(path).await?);
            }
            Ok::<_, TextError>(answers)
        })?;
        let about = match self.dialect.about(&asked) {
            Some(about) if about.is_locked => return Err(self.locked()),
            Some(about) => about,
            None => {
                let url = &self.settings.url;
                return Err(TextError::Unavailable(format!(
                    "{url} does not say what model it serves"
                )));
            }
        };
        let facts = EngineFacts {
            chat: None,
            model: about.model,
            program: about.program,
            context_tokens: match (self.settings.context_tokens, about.context_tokens) {
                (0, told) => told.unwrap_or(2_048),
                (set, told) => set.min(told.unwrap_or(u32::MAX)),
            },
            max_length: about.max_length,
            slots: self.parallel(),
        };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), facts.clone()));
        Ok(facts)
    }

    fn generate(&self, request: TextRequest, watch: &dyn Watch) -> Result<TextAnswer, TextError> {
        let request = request.clamped();
        self.dialect.check(&request)?;
        let facts = self.facts()?;
        let running = Running {
            engine: self,
            model: facts.model,
            context_tokens: facts.context_tokens,
            seed: request.seed.unwrap_or_else(|| u64::from(rand::random::<u32>() >> 1)),
            // KoboldCpp knows requests for the Horde by this beginning, and does not count them as its owner's.
            tag: format!("HORDEREQ_{:016x}", rand::random::<u64>()),
            stall: Duration::from_secs(self.settings.stall_seconds.clamp(5, 600)),
            request: &request,
            watch,
        };
        let answer = self.runtime().block_on(running.answer());
        if matches!(answer, Err(TextError::Unavailable(_))) {
            // Whoever asks next is not told that it is there.
            *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        answer
    }
}

impl Drop for BridgeEngine {
    fn drop(&mut self) {
        // Waiting for a runtime is forbidden where another one runs.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
