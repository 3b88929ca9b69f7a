//! A client of the Horde: files requests over HTTP and waits for what workers made of them, as the public's programs do.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Talks to one Horde with one requester's key.
#[derive(Clone)]
pub struct Requester {
    http: reqwest::Client,
    base: String,
    key: String,
}

impl Requester {
    /// `base` ends in `/api`.
    pub fn new(base: &str, key: &str) -> anyhow::Result<Self> {
        // Only the first caller of the process installs the provider; later calls find it there.
        rustls::crypto::ring::default_provider().install_default().ok();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .build()?;
        Ok(Self {
            http,
            base: base.trim_end_matches('/').to_owned(),
            key: key.to_owned(),
        })
    }

    /// Files a request under `route` (`generate/text/async` and its siblings) and returns its id.
    pub async fn file(&self, route: &str, body: &Value) -> anyhow::Result<String> {
        let answer = self
            .http
            .post(format!("{}/v2/{route}", self.base))
            .header("apikey", &self.key)
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await?;
        let status = answer.status();
        let text = answer.text().await?;
        let value: Value =
            serde_json::from_str(&text).with_context(|| format!("`{route}` answered {status} without JSON"))?;
        match value["id"].as_str() {
            Some(id) => Ok(id.to_owned()),
            None => bail!("`{route}` answered {status}: {value}"),
        }
    }

    /// Reads any JSON of the server.
    pub async fn read(&self, route: &str) -> anyhow::Result<Value> {
        let answer = self
            .http
            .get(format!("{}/v2/{route}", self.base))
            .header("apikey", &self.key)
            .send()
            .await?;
        let status = answer.status();
        let text = answer.text().await?;
        serde_json::from_str(&text).with_context(|| format!("`{route}` answered {status} without JSON"))
    }

    /// Bytes behind an address that a status names.
    pub async fn fetch(&self, address: &str) -> anyhow::Result<Vec<u8>> {
        Ok(self
            .http
            .get(address)
            .send()
            .await?
            .error_for_status()
            .map_err(reqwest::Error::without_url)?
            .bytes()
            .await?
            .to_vec())
    }

    /// Waits until `route/ID` says that the request is done or has faulted; the last status is returned either way.
    pub async fn finished(&self, route: &str, id: &str, until: Instant) -> anyhow::Result<Value> {
        loop {
            let status = self.read(&format!("{route}/{id}")).await?;
            let state = status["state"].as_str();
            let done = status["done"] == json!(true)
                || state.is_some_and(|state| matches!(state, "done" | "partial" | "faulted"));
            if done || status["faulted"] == json!(true) || Instant::now() >= until {
                return Ok(status);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
