//! The calls a worker makes, each in one method: what is sent, what a good answer holds.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::error::ApiError;
use crate::ids::GenerationId;
use crate::kind::{HandBack, JobKind, Popped};
use crate::recover;
use crate::secret::{ApiKey, SignedUrl};
use crate::transport::{Request, RequestClass, Response, Transport, TransportError, Watch};

const POP_DEADLINE: Duration = Duration::from_secs(40);
const SUBMIT_DEADLINE: Duration = Duration::from_secs(60);
const READ_DEADLINE: Duration = Duration::from_secs(30);
const POP_CAP: usize = 16 << 20;
const SUBMIT_CAP: usize = 64 << 10;
const READ_CAP: usize = 4 << 20;
/// Slowest upload that is waited for: 64 KiB/s after the first 30 s.
const SLOWEST_UPLOAD_BYTES_PER_SECOND: u64 = 64 << 10;

/// Where and as whom to call.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Base address ending in `/api`, such as `https://aihorde.net/api`.
    pub base_url: Url,
    /// The account's key.
    pub api_key: ApiKey,
    /// `name:version:contact`, sent as `Client-Agent`.
    pub client_agent: String,
}

/// One worker's line to the Horde. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    transport: Arc<dyn Transport>,
    config: Arc<ClientConfig>,
}

/// A submission the server took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Submitted {
    /// Kudos promised; 0 when the answer held none that can be read.
    pub reward: f64,
    /// Whether the answer held a readable, sane reward.
    pub reward_known: bool,
}

/// Bounds of a download.
#[derive(Clone, Copy, Debug)]
pub struct DownloadLimits {
    /// Most bytes of body.
    pub max_bytes: usize,
    /// Total time.
    pub deadline: Duration,
}

impl Default for DownloadLimits {
    /// The server's own bound for sources is 5 MB; 8 MiB and 25 s leave room.
    fn default() -> Self {
        Self {
            max_bytes: 8 << 20,
            deadline: Duration::from_secs(25),
        }
    }
}

/// The account behind a key, as far as a worker cares.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct User {
    /// `alias#id`.
    pub username: Option<String>,
    /// Balance.
    pub kudos: Option<f64>,
    /// Whether the account is trusted (full pay, more workers).
    pub trusted: Option<bool>,
    /// Whether moderators flagged it.
    pub flagged: Option<bool>,
    /// Ids of its workers.
    pub worker_ids: Option<Vec<String>>,
    /// Number of its workers.
    pub worker_count: Option<u64>,
}

/// One worker as the server shows it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WorkerDetails {
    /// Server-side id.
    pub id: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// `image`, `text` or `interrogation`.
    pub r#type: Option<String>,
    /// Checked in within 300 s.
    pub online: Option<bool>,
    /// Whether it is in maintenance.
    pub maintenance_mode: Option<bool>,
    /// Whether moderators flagged it.
    pub flagged: Option<bool>,
    /// Whether its owner is trusted.
    pub trusted: Option<bool>,
    /// Kudos earned so far.
    pub kudos_rewards: Option<f64>,
    /// Jobs delivered.
    pub requests_fulfilled: Option<f64>,
    /// Jobs dropped or handed back.
    pub uncompleted_jobs: Option<f64>,
    /// Agent it last presented.
    pub bridge_agent: Option<String>,
    /// Models it last offered.
    pub models: Option<Vec<String>>,
    /// Measured speed in words.
    pub performance: Option<String>,
}

/// Demand for one model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ModelDemand {
    /// Model name.
    pub name: Option<String>,
    /// Workers that offer it.
    pub count: Option<f64>,
    /// Work queued, in the kind's unit.
    pub queued: Option<f64>,
    /// Jobs queued.
    pub jobs: Option<f64>,
    /// Seconds until the queue is empty.
    pub eta: Option<f64>,
}

/// Modes of the whole service. Its maintenance stops requesters, not workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Modes {
    /// No requests are taken.
    pub maintenance_mode: Option<bool>,
    /// Only invited workers may join.
    pub invite_only_mode: Option<bool>,
}

impl Client {
    /// A client that sends through `transport`.
    pub fn new(transport: Arc<dyn Transport>, config: ClientConfig) -> Self {
        Self {
            transport,
            config: Arc::new(config),
        }
    }

    /// The settings it was made with.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Asks for work.
    ///
    /// An answer that cannot be read but still names ids gives jobs with an unreadable payload, so that they are handed
    /// back instead of lost. On an error, [`ApiError::may_have_acted`] says whether a job may have been assigned.
    ///
    /// # Cancellation
    /// Never drop this future once polled: spawn it and consume its result.
    pub async fn pop<K: JobKind>(&self, request: &K::PopRequest) -> Result<Popped<K::Payload>, ApiError> {
        let body = to_json(request)?;
        let response = self
            .api(Method::POST, K::POP_PATH, Some(&body), (POP_DEADLINE, POP_CAP))
            .await?;
        recover::read_pop::<K>(&response.body)
    }

    /// Hands in a finished generation.
    pub async fn submit<K: JobKind>(
        &self,
        id: &GenerationId,
        submission: &K::Submission,
    ) -> Result<Submitted, ApiError> {
        self.hand_in::<K>(&K::submit_body(id.clone(), submission)).await
    }

    /// Hands a generation back.
    pub async fn fault<K: JobKind>(&self, id: &GenerationId, told: HandBack<'_>) -> Result<Submitted, ApiError> {
        self.hand_in::<K>(&K::fault_body(id.clone(), told)).await
    }

    async fn hand_in<K: JobKind>(&self, body: &Value) -> Result<Submitted, ApiError> {
        let response = self
            .api(Method::POST, K::SUBMIT_PATH, Some(body), (SUBMIT_DEADLINE, SUBMIT_CAP))
            .await?;
        let answer: Value = serde_json::from_slice(&response.body).map_err(|error| bad_body(&error))?;
        let reward = answer
            .get("reward")
            .and_then(Value::as_f64)
            .filter(|reward| reward.is_finite() && *reward >= 0.0);
        Ok(Submitted {
            reward: reward.unwrap_or(0.0),
            reward_known: reward.is_some(),
        })
    }

    /// Puts a result where the server said. Any success status will do; everything else is an error of the storage.
    pub async fn upload(&self, target: &SignedUrl, bytes: Bytes) -> Result<(), ApiError> {
        successful(self.transport.send(upload_of(target, bytes)).await?).map(drop)
    }

    /// Like [`Client::upload`], telling `watch` how far it is.
    pub async fn upload_watched(&self, target: &SignedUrl, bytes: Bytes, watch: Watch) -> Result<(), ApiError> {
        let request = upload_of(target, bytes);
        successful(self.transport.send_watched(request, watch).await?).map(drop)
    }

    /// Fetches a source from the object store or from an address a stranger chose; the latter is guarded.
    pub async fn download(
        &self,
        source: &SignedUrl,
        class: RequestClass,
        limits: DownloadLimits,
    ) -> Result<Bytes, ApiError> {
        let request = download_of(source, class, limits);
        Ok(successful(self.transport.send(request).await?)?.body)
    }

    /// Like [`Client::download`], telling `watch` how far it is.
    pub async fn download_watched(
        &self,
        source: &SignedUrl,
        class: RequestClass,
        limits: DownloadLimits,
        watch: Watch,
    ) -> Result<Bytes, ApiError> {
        let request = download_of(source, class, limits);
        Ok(successful(self.transport.send_watched(request, watch).await?)?.body)
    }

    /// The account behind the key. 404 `UserNotFound` for an unknown one.
    pub async fn find_user(&self) -> Result<User, ApiError> {
        self.read("/v2/find_user").await
    }

    /// A worker by its name; the way to learn one's own id after the first pop.
    pub async fn worker_by_name(&self, name: &str) -> Result<WorkerDetails, ApiError> {
        self.read(&format!("/v2/workers/name/{}", path_segment(name))).await
    }

    /// A worker by its id.
    pub async fn worker(&self, id: &str) -> Result<WorkerDetails, ApiError> {
        self.read(&format!("/v2/workers/{}", path_segment(id))).await
    }

    /// Sets or clears the worker's own maintenance, with a text for its owner.
    pub async fn set_maintenance(&self, id: &str, on: bool, message: Option<&str>) -> Result<(), ApiError> {
        let mut body = serde_json::json!({ "maintenance": on });
        if let Some(message) = message {
            body["maintenance_msg"] = message.into();
        }
        let path = format!("/v2/workers/{}", path_segment(id));
        self.api(Method::PUT, &path, Some(&body), (READ_DEADLINE, READ_CAP))
            .await
            .map(drop)
    }

    /// Demand by model; `kind` is `image` or `text`.
    pub async fn model_demand(&self, kind: &str) -> Result<Vec<ModelDemand>, ApiError> {
        self.read(&format!("/v2/status/models?type={}", path_segment(kind)))
            .await
    }

    /// Most used models: `period → name → count`; `kind` is `img` or `text`.
    pub async fn model_stats(&self, kind: &str) -> Result<Value, ApiError> {
        self.read(&format!("/v2/stats/{}/models", path_segment(kind))).await
    }

    /// The server's queue and speed figures.
    pub async fn performance(&self) -> Result<Value, ApiError> {
        self.read("/v2/status/performance").await
    }

    /// Whether the service is up; answers without a key and outside the rate limits.
    pub async fn heartbeat(&self) -> Result<Value, ApiError> {
        self.read_without_key("/v2/status/heartbeat").await
    }

    /// Whether the whole Horde is in maintenance or invite-only. Goes without a key: one of no moderator is refused.
    pub async fn modes(&self) -> Result<Modes, ApiError> {
        self.read_without_key("/v2/status/modes").await
    }

    async fn read_without_key<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let url = self.address(path)?;
        let response = self
            .send(Method::GET, url, HeaderMap::new(), None, (READ_DEADLINE, READ_CAP))
            .await?;
        serde_json::from_slice(&response.body).map_err(|error| bad_body(&error))
    }

    async fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let response = self.api(Method::GET, path, None, (READ_DEADLINE, READ_CAP)).await?;
        serde_json::from_slice(&response.body).map_err(|error| bad_body(&error))
    }

    async fn api(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        bounds: (Duration, usize),
    ) -> Result<Response, ApiError> {
        let mut headers = HeaderMap::new();
        let mut key = HeaderValue::from_str(self.config.api_key.expose()).map_err(|_| TransportError::Refused {
            reason: "the API key holds characters no header can carry".to_owned(),
        })?;
        key.set_sensitive(true);
        headers.insert("apikey", key);
        self.send(method, self.address(path)?, headers, body, bounds).await
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        mut headers: HeaderMap,
        body: Option<&Value>,
        (deadline, max_body_bytes): (Duration, usize),
    ) -> Result<Response, ApiError> {
        if let Ok(agent) = HeaderValue::from_str(&self.config.client_agent) {
            headers.insert("client-agent", agent);
        }
        if body.is_some() {
            headers.insert(
                ::http::header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = Request {
            method,
            url,
            headers,
            body,
            class: RequestClass::Api,
            deadline,
            max_body_bytes,
        };
        successful(self.transport.send(request).await?)
    }

    fn address(&self, path: &str) -> Result<Url, ApiError> {
        let base = self.config.base_url.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}{path}")).map_err(|error| {
            TransportError::Refused {
                reason: format!("the Horde's address does not parse: {error}"),
            }
            .into()
        })
    }
}

fn upload_of(target: &SignedUrl, bytes: Bytes) -> Request {
    Request {
        method: Method::PUT,
        url: target.expose().clone(),
        headers: HeaderMap::new(),
        deadline: Duration::from_secs(30 + bytes.len() as u64 / SLOWEST_UPLOAD_BYTES_PER_SECOND),
        body: bytes,
        class: RequestClass::ObjectStore,
        max_body_bytes: SUBMIT_CAP,
    }
}

fn download_of(source: &SignedUrl, class: RequestClass, limits: DownloadLimits) -> Request {
    Request {
        method: Method::GET,
        url: source.expose().clone(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        class,
        deadline: limits.deadline,
        max_body_bytes: limits.max_bytes,
    }
}

fn successful(response: Response) -> Result<Response, ApiError> {
    if response.status.is_success() {
        Ok(response)
    } else {
        Err(ApiError::of_answer(response.status, &response.headers, &response.body))
    }
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Value, ApiError> {
    serde_json::to_value(value).map_err(|error| bad_body(&error))
}

/// serde's message names types and places; the text of unknown values is left out.
pub(crate) fn bad_body(error: &serde_json::Error) -> ApiError {
    ApiError::BadBody {
        reason: format!(
            "{:?} error at line {} column {}",
            error.classify(),
            error.line(),
            error.column()
        ),
    }
}

fn path_segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
