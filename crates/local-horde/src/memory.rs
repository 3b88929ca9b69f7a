//! The Horde in memory: the server behind the worker's own transport trait, on tokio's clock, paused or not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::transport::{Request, Response, Transport, TransportError};
use serde_json::Value;

use crate::answer::Answer;
use crate::faults::{Dice, Trouble, Weather};
use crate::routes::Call;
use crate::state::{Settings, State};

/// Where objects of a Horde in memory lie.
const OBJECT_BASE: &str = "http://127.0.0.1:1";

/// One server, shared by everything that talks to it. Cheap to clone.
#[derive(Clone)]
pub struct Horde(Arc<Mutex<State>>);

impl Horde {
    /// A fresh server.
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Mutex::new(State::new(settings, OBJECT_BASE))))
    }

    /// Looks at or changes everything: to set a worker paused, send messages, read the ledger.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a call without any trouble.
    pub fn answer(&self, call: &Call<'_>) -> Answer {
        self.state().answer(call)
    }

    /// A worker's way to this server through `weather`.
    pub fn transport(&self, weather: Weather) -> Arc<InMemory> {
        Arc::new(InMemory {
            horde: self.clone(),
            dice: Mutex::new(Dice::new(weather)),
        })
    }

    /// Makes a client's call, without limits of calls getting in the way of many.
    ///
    /// # Errors
    /// The server's answer, where it is not a success.
    pub fn call(&self, method: &str, path: &str, key: &str, body: &Value) -> Result<Value, Value> {
        let body = body.to_string();
        let call = Call {
            method,
            path: &format!("/api/v2/{path}"),
            query: "",
            key: Some(key),
            length_told: true,
            json: true,
            body: body.as_bytes(),
        };
        let mut state = self.state();
        let limits = std::mem::replace(&mut state.settings.rate_limits, false);
        let answer = state.answer(&call);
        state.settings.rate_limits = limits;
        let value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status.is_success() {
            Ok(value)
        } else {
            Err(value)
        }
    }

    /// Files a request under `route` (`generate/text/async` and its siblings) and returns its id.
    ///
    /// # Errors
    /// The server's refusal.
    pub fn file(&self, route: &str, body: &Value) -> Result<String, Value> {
        let answer = self.call("POST", route, crate::state::CLIENT_KEY, body)?;
        answer["id"].as_str().map(str::to_owned).ok_or(answer)
    }
}

/// A way to a Horde in memory.
pub struct InMemory {
    horde: Horde,
    dice: Mutex<Dice>,
}

#[async_trait]
impl Transport for InMemory {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let upload = request.method == http::Method::PUT && request.url.path().starts_with("/objects/");
        let (latency, trouble) = self.dice.lock().unwrap_or_else(PoisonError::into_inner).throw(upload);
        let host = request.url.host_str().unwrap_or_default().to_owned();
        let deadline = request.deadline;
        if latency >= deadline {
            tokio::time::sleep(deadline).await;
            return Err(TransportError::TimedOut { host, deadline });
        }
        tokio::time::sleep(latency / 2).await;
        let answer = match trouble {
            Trouble::LostRequest => {
                return Err(TransportError::Unreachable {
                    host,
                    reason: "connection refused".to_owned(),
                });
            }
            Trouble::BlackHole => {
                tokio::time::sleep(deadline.saturating_sub(latency / 2)).await;
                return Err(TransportError::TimedOut { host, deadline });
            }
            Trouble::Gateway(status) => Answer::html(status),
            Trouble::Limited => Answer::json(429, &serde_json::json!({ "message": "2 per 1 second" })),
            Trouble::Fair | Trouble::LostAnswer | Trouble::Truncated(_) => self.act(&request),
        };
        tokio::time::sleep(latency - latency / 2).await;
        match trouble {
            Trouble::LostAnswer => Err(TransportError::Broken {
                host,
                reason: "connection reset".to_owned(),
            }),
            Trouble::Truncated(share) if !answer.body.is_empty() => {
                let end = (answer.body.len() as f64 * share) as usize;
                Ok(Response {
                    status: answer.status,
                    headers: answer.headers,
                    body: Bytes::copy_from_slice(&answer.body[..end.min(answer.body.len())]),
                })
            }
            _ if answer.body.len() > request.max_body_bytes => Err(TransportError::TooLarge {
                host,
                limit: request.max_body_bytes,
            }),
            _ => Ok(Response {
                status: answer.status,
                headers: answer.headers,
                body: answer.body.into(),
            }),
        }
    }
}

impl InMemory {
    fn act(&self, request: &Request) -> Answer {
        let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
        self.horde.answer(&Call {
            method: request.method.as_str(),
            path: request.url.path(),
            query: request.url.query().unwrap_or_default(),
            key: text("apikey"),
            length_told: true,
            json: text("content-type").is_some_and(|kind| kind.starts_with("application/json")),
            body: &request.body,
        })
    }
}

/// Weather without trouble and with a fixed time per call.
pub fn fair(latency: Duration) -> Weather {
    Weather {
        latency: (latency, latency),
        ..Weather::default()
    }
}
