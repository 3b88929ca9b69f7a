//! The stage of every demo: a Horde on this machine, the real worker program beside it, and the book of both.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use local_horde::{CLIENT_KEY, WORKER_KEY};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::Command;

use crate::programs::{Program, built};
use crate::requester::Requester;

/// How long a worker may take to end after it was asked to.
const FAREWELL: Duration = Duration::from_secs(60);

/// A Horde and a worker that serves it.
pub struct Stage {
    /// Asks on behalf of the public.
    pub requester: Requester,
    base: String,
    worker: Program,
    state: tempfile::TempDir,
    _horde: Program,
}

/// What the books say at the end.
pub struct Books {
    /// The server's counts.
    pub summary: Value,
    /// From the first pop to the last result.
    pub span_seconds: f64,
    /// The worker's last status.
    pub status: Value,
    /// How far the worker said it was confined.
    pub sandbox: String,
}

impl Stage {
    /// Starts `local-horde`, files nothing, and starts `worker` with `extra` in its environment.
    pub async fn set(worker: &'static str, extra: &[(&str, &str)]) -> anyhow::Result<Self> {
        let (horde, base) = Program::local_horde(&["--no-rate-limits"]).await?;
        let requester = Requester::new(&base, CLIENT_KEY)?;
        let state = tempfile::tempdir().context("no folder for the worker's state")?;
        let worker = start_worker(worker, &base, state.path(), extra)?;
        Ok(Self {
            requester,
            base,
            worker,
            state,
            _horde: horde,
        })
    }

    /// The worker's process id.
    pub fn worker_pid(&self) -> Option<u32> {
        self.worker.pid()
    }

    /// Folder of the worker's state.
    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Waits for each request in turn; ends early when the worker does.
    pub async fn finished(&mut self, route: &str, ids: &[String], timeout: Duration) -> anyhow::Result<Vec<Value>> {
        let until = Instant::now() + timeout;
        let mut results = Vec::new();
        for id in ids {
            loop {
                if let Some(status) = self.worker.ended()? {
                    bail!("the worker ended by itself ({status}); its log is above");
                }
                let soon = (Instant::now() + Duration::from_secs(2)).min(until);
                let result = self.requester.finished(route, id, soon).await?;
                let over = result["done"] == true
                    || result["faulted"] == true
                    || matches!(result["state"].as_str(), Some("done" | "partial" | "faulted"));
                if over || Instant::now() >= until {
                    results.push(result);
                    break;
                }
            }
        }
        Ok(results)
    }

    /// Asks the worker to end as a service manager does, and reads both books.
    pub async fn close(mut self) -> anyhow::Result<Books> {
        self.worker.signal(Signal::SIGTERM)?;
        let exit = self.worker.wait(FAREWELL).await?;
        if !exit.success() {
            bail!("the worker ended with {exit}");
        }
        let ledger = self
            .requester
            .fetch(&format!("{}/local/ledger", self.base.trim_end_matches("/api")))
            .await?;
        let ledger: Value = serde_json::from_slice(&ledger)?;
        let status = std::fs::read(self.state.path().join("status.json")).context("the worker left no status.json")?;
        let file: Value = serde_json::from_slice(&status)?;
        Ok(Books {
            summary: ledger["summary"].clone(),
            span_seconds: span(&ledger["generations"]),
            status: file["status"].clone(),
            sandbox: file["sandbox"].as_str().unwrap_or_default().to_owned(),
        })
    }
}

/// Seconds from the first pop of a ledger's generations to the last result.
fn span(generations: &Value) -> f64 {
    let entries = || generations.as_object().into_iter().flat_map(|entries| entries.values());
    let popped = |entry: &Value| entry["popped"].as_f64();
    let first = entries().filter_map(popped).fold(f64::INFINITY, f64::min);
    let last = entries()
        .filter_map(|entry| Some(popped(entry)? + entry["seconds"].as_f64()?))
        .fold(0.0, f64::max);
    (last - first).max(0.0)
}

/// Starts a worker program against `base`. Its log goes to this program's own error output.
pub fn start_worker(worker: &'static str, base: &str, state: &Path, extra: &[(&str, &str)]) -> anyhow::Result<Program> {
    start_worker_with_log(worker, base, state, extra, Stdio::inherit())
}

/// The same with its log elsewhere.
pub fn start_worker_with_log(
    worker: &'static str,
    base: &str,
    state: &Path,
    extra: &[(&str, &str)],
    log: Stdio,
) -> anyhow::Result<Program> {
    let mut command = Command::new(built(worker)?);
    command
        .arg("run")
        .env("HORDE_URL", base)
        .env("HORDE_API_KEY", WORKER_KEY)
        .env("HORDE_WORKER_NAME", format!("demo {worker}"))
        .env("HORDE_STATE_DIR", state)
        .env("XDG_CONFIG_HOME", state.join("config"))
        .envs(extra.iter().copied())
        .stdout(Stdio::null())
        .stderr(log);
    Program::start(worker, command)
}
