//! The one way out: a request with a total deadline and a body cap goes in, a whole response comes back.
//!
//! Everything the worker says to the Horde, the object store or a source server passes through [`Transport`], so that a
//! Horde in memory can stand behind the same trait and a whole worker life runs on tokio's paused clock.

use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode};
use async_trait::async_trait;
use bytes::Bytes;
use url::Url;

/// One request. `Debug` never shows headers, query or body: they hold keys, signatures and prompts.
pub struct Request {
    /// HTTP method.
    pub method: Method,
    /// Absolute address. Signed queries are passed on byte for byte.
    pub url: Url,
    /// Headers, the `apikey` among them where the API asks for it.
    pub headers: HeaderMap,
    /// Body; empty for GET.
    pub body: Bytes,
    /// Which client carries it: decides redirects, key handling and the address guard.
    pub class: RequestClass,
    /// Total time from the first byte sent to the last byte received.
    pub deadline: Duration,
    /// Most bytes of response body that are read; one more is [`TransportError::TooLarge`].
    pub max_body_bytes: usize,
}

/// Where a request goes, which decides what it may carry and follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestClass {
    /// The Horde's API: carries the key, never follows redirects.
    Api,
    /// A presigned address of the object store: no key, no redirects.
    ObjectStore,
    /// An address a stranger chose: no key, guarded against private addresses, at most three re-checked redirects.
    Stranger,
}

/// A whole response, whatever its status.
pub struct Response {
    /// Status as received; the caller classifies it.
    pub status: StatusCode,
    /// Response headers (`Retry-After`, `X-RateLimit-*`, `Horde-Node`).
    pub headers: HeaderMap,
    /// The body, at most `max_body_bytes` long.
    pub body: Bytes,
}

/// No response was had. Messages never hold the address's query.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// Nothing was sent: name resolution, connect or TLS failed. The server knows nothing of the request.
    #[error("could not reach `{host}`: {reason}")]
    Unreachable { host: String, reason: String },
    /// Bytes were sent and no whole answer came: the server may have acted on the request.
    #[error("the connection to `{host}` broke: {reason}")]
    Broken { host: String, reason: String },
    /// The total deadline passed; the server may have acted on the request.
    #[error("`{host}` did not answer within {deadline:?}")]
    TimedOut { host: String, deadline: Duration },
    /// The body was longer than allowed.
    #[error("the answer of `{host}` is longer than {limit} bytes")]
    TooLarge { host: String, limit: usize },
    /// The address guard refused the address before anything was sent.
    #[error("refused address: {reason}")]
    Refused { reason: String },
}

/// Carries requests. Implemented by the real HTTP client and by the Horde in memory.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends one request and reads the whole answer. Never retries.
    ///
    /// # Cancellation
    /// Dropping the future of a pop may lose a job the server has already assigned: spawn it and consume its result.
    async fn send(&self, request: Request) -> Result<Response, TransportError>;

    /// Like [`Transport::send`], and tells `watch` how far the transfer is. A transport that moves whole bodies at once
    /// tells nothing.
    async fn send_watched(&self, request: Request, watch: Watch) -> Result<Response, TransportError> {
        drop(watch);
        self.send(request).await
    }
}

/// Called while a body is sent or received. Runs on the transfer's task: it must not block.
pub type Watch = std::sync::Arc<dyn Fn(Transferred) + Send + Sync>;

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Bytes of body handed to or read from the connection so far.
    pub done_bytes: u64,
    /// Bytes in all; of a download only where the server told, and then as it told.
    pub total_bytes: Option<u64>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("host", &self.url.host_str().unwrap_or(""))
            .field("path", &self.url.path())
            .field("class", &self.class)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}
