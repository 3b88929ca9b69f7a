//! A worker and its Horde in one process: who can be meddled with, killed and started again, all on the paused clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::transport::{Request, RequestClass, Response, Transport, TransportError};
use horde_client::{ApiKey, Client, ClientConfig};
use http::{HeaderMap, StatusCode};
use local_horde::{Fate, Horde, WORKER_KEY, fair};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use worker_runtime::backend::{Backend, Cause, EngineReport, Fault};
use worker_runtime::device::{Device, Ending, Script, SimulatedDevice};
use worker_runtime::ledger::{Durability, Ledger};
use worker_runtime::{Clock, Command, Controls, RunError, Settings, Shutdown, Status, Summary};

use crate::toy::{Toy, ToyWork};

/// What happens to one call.
#[derive(Clone, Debug, PartialEq)]
pub enum Meddling {
    /// It never arrives.
    LoseRequest,
    /// It is acted on; the answer is lost.
    LoseAnswer,
    /// The answer is cut to this share of its length.
    Truncate(f64),
    /// It is not acted on; this comes back.
    Answer(u16, Value),
    /// It takes this much longer, then goes its way.
    Delay(Duration),
}

/// Which calls; decided by what and the how-manieth of all.
pub type Rule = Box<dyn Fn(Call, u64) -> Option<Meddling> + Send + Sync>;

/// What a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Pop,
    Submit,
    Upload,
    Other,
}

/// Everything outside the worker.
pub struct World {
    pub horde: Horde,
    pub transport: Arc<Meddler>,
    pub runs: Arc<Mutex<BTreeMap<String, u32>>>,
    pub slept_ms: Arc<AtomicU64>,
    started: Instant,
}

/// A way to the Horde with somebody on it.
pub struct Meddler {
    inner: Arc<dyn Transport>,
    rule: Mutex<Rule>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
pub struct Seen {
    pub n_calls: u64,
    /// Moment and kind of every call.
    pub calls: Vec<(Instant, Call)>,
    /// When each id reached the worker in a whole answer.
    pub ids: BTreeMap<String, Instant>,
}

/// A running worker.
pub struct Running {
    pub commands: mpsc::Sender<Command>,
    pub shutdown: watch::Sender<Shutdown>,
    pub status: watch::Receiver<Status>,
    pub task: tokio::task::JoinHandle<Result<Summary, RunError>>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let settings = local_horde::Settings {
            seed,
            most_drops: 100_000,
            rate_limits: false,
            ..Default::default()
        };
        let horde = Horde::new(settings);
        let transport = Arc::new(Meddler {
            inner: horde.transport(fair(Duration::from_millis(300))),
            rule: Mutex::new(Box::new(|_, _| None)),
            seen: Mutex::default(),
        });
        Self {
            horde,
            transport,
            runs: Arc::default(),
            slept_ms: Arc::default(),
            started: Instant::now(),
        }
    }

    pub fn meddle(&self, rule: impl Fn(Call, u64) -> Option<Meddling> + Send + Sync + 'static) {
        *self.transport.rule.lock().expect("lock") = Box::new(rule);
    }

    pub fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.transport.seen.lock().expect("lock")
    }

    pub fn count(&self, call: Call) -> usize {
        self.seen().calls.iter().filter(|(_, seen)| *seen == call).count()
    }

    /// Files a request for `n` pictures with a play as its prompt.
    pub fn file(&self, play: &str, n: u32) -> String {
        let body =
            json!({ "prompt": play, "models": ["toy-model"], "params": { "n": n, "width": 512, "height": 512 } });
        self.horde.file("generate/async", &body).expect("filed")
    }

    pub fn client(&self) -> Client {
        let config = ClientConfig {
            base_url: "http://127.0.0.1:1/api".parse().expect("an address"),
            api_key: ApiKey::new(WORKER_KEY),
            client_agent: "toy:0:0".to_owned(),
        };
        Client::new(Arc::clone(&self.transport) as Arc<dyn Transport>, config)
    }

    /// Calm settings for the paused clock.
    pub fn settings(&self, seed: u64) -> Settings {
        Settings {
            seed,
            faults_per_hour: 100_000,
            clock: Clock::Simulated {
                at: self.started,
                unix_ms: 1_700_000_000_000,
                slept_ms: Arc::clone(&self.slept_ms),
            },
            ..Settings::default()
        }
    }

    /// A simulated device that plays what the prompts say and counts runs of each id.
    pub fn device(&self, capacity: usize) -> Arc<dyn Device<ToyWork, String>> {
        let runs = Arc::clone(&self.runs);
        let report = EngineReport {
            capacity,
            facts: Value::Null,
        };
        Arc::new(SimulatedDevice::new(
            "sim:0",
            report,
            Duration::from_secs(2),
            move |work: &ToyWork| {
                let mut runs = runs.lock().expect("lock");
                for id in &work.ids {
                    *runs.entry(id.clone()).or_default() += 1;
                }
                let ending = match work.end.as_str() {
                    "fault" => Ending::Return(Err(Fault::of_worker("the engine failed"))),
                    "overflow" => Ending::Return(Err(Fault::of_job("too long").because(Cause::Overflow))),
                    "die" => Ending::Die,
                    "hang" => Ending::Hang,
                    _ => Ending::Return(Ok(work.results())),
                };
                Script {
                    steps: work.steps,
                    step: Duration::from_millis(work.step_ms),
                    ending,
                }
            },
        ))
    }

    pub fn start(&self, state_dir: &Path, backend: Toy, settings: Settings) -> Running {
        self.start_on(state_dir, backend, settings, vec![self.device(1)])
    }

    pub fn start_on<B>(
        &self,
        state_dir: &Path,
        backend: B,
        settings: Settings,
        devices: Vec<Arc<dyn Device<ToyWork, String>>>,
    ) -> Running
    where
        B: Backend<Work = ToyWork, Output = String>,
    {
        let (ledger, quarantined) = Ledger::open(state_dir, Durability::Relaxed).expect("a ledger");
        assert_eq!(quarantined, None);
        let (commands, command_queue) = mpsc::channel(8);
        let (shutdown, signals) = watch::channel(Shutdown::No);
        let (told, status) = watch::channel(Status::default());
        let controls = Controls {
            commands: command_queue,
            shutdown: signals,
            status: told,
        };
        let task = tokio::spawn(worker_runtime::run(
            backend,
            self.client(),
            devices,
            ledger,
            settings,
            controls,
        ));
        Running {
            commands,
            shutdown,
            status,
            task,
        }
    }

    /// Whether every request filed has all it will ever get.
    pub fn is_done(&self) -> bool {
        let mut state = self.horde.state();
        state.sweep_if_due();
        let all_closed = state
            .requests
            .iter()
            .all(|request| request.faulted || request.n_waiting == 0);
        all_closed && state.ledger.open().is_empty()
    }

    /// Waits in virtual time until everything filed is done.
    pub async fn until_done(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while !self.is_done() {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        true
    }

    /// Ids by fate on the server.
    pub fn fates(&self) -> BTreeMap<String, Fate> {
        self.horde
            .state()
            .ledger
            .generations
            .iter()
            .map(|(id, entry)| (id.clone(), entry.fate))
            .collect()
    }

    /// Holds the worker's ledger against the server's: nothing lost, nothing twice. Ids that reached the worker at a moment
    /// of `kills` may have been lost with it. Says what is wrong.
    pub fn reckon(&self, state_dir: &Path, kills: &BTreeSet<Instant>) -> Vec<String> {
        let (ledger, _) = Ledger::open(state_dir, Durability::Relaxed).expect("a ledger");
        let mut wrong: Vec<String> = ledger
            .open_rows("image")
            .expect("rows")
            .iter()
            .map(|row| format!("{} is open in the worker's ledger", row.id))
            .collect();
        let (fates, seen) = (self.fates(), self.seen());
        for (id, at) in &seen.ids {
            let (theirs, ours) = (
                fates.get(id),
                ledger
                    .ending(&horde_client::ids::GenerationId(id.clone()))
                    .expect("row"),
            );
            let agrees = match (ours.as_deref(), theirs) {
                (Some("submitted" | "accepted"), Some(Fate::Accepted)) => true,
                // A hand-back is taken after the sweep, too.
                (Some("faulted"), Some(Fate::Faulted | Fate::Expired)) => true,
                (Some("expired"), Some(Fate::Expired | Fate::Faulted)) => true,
                // All answers of a delivery were lost until its time had passed.
                (Some("expired"), Some(Fate::Accepted)) => true,
                (None, _) => kills.contains(at),
                _ => false,
            };
            if !agrees {
                wrong.push(format!("{id}: the worker says {ours:?}, the server {theirs:?}"));
            }
        }
        for (id, entry) in &self.horde.state().ledger.generations {
            if entry.accepted > 1 {
                wrong.push(format!("{id}: accepted {} times", entry.accepted));
            }
        }
        for (id, n) in self.runs.lock().expect("lock").iter() {
            if *n > 1 {
                wrong.push(format!("{id}: made {n} times"));
            }
        }
        wrong
    }
}

impl Running {
    pub async fn finish(self) -> Result<Summary, RunError> {
        self.commands.send(Command::Finish).await.expect("the worker runs");
        self.task.await.expect("no panic")
    }

    /// As `kill -9`.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Waits for a state; two virtual days without it are a failure, not an endless test.
    pub async fn until(&mut self, what: impl FnMut(&Status) -> bool) -> Status {
        let limit = Duration::from_secs(48 * 3600);
        let reached = tokio::time::timeout(limit, self.status.wait_for(what))
            .await
            .map(|status| status.expect("the worker runs").clone());
        reached.unwrap_or_else(|_| panic!("never reached; the last state was {:#?}", self.status.borrow()))
    }
}

#[async_trait]
impl Transport for Meddler {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let call = match (request.class, request.url.path()) {
            (RequestClass::ObjectStore, _) => Call::Upload,
            (_, path) if path.ends_with("/pop") => Call::Pop,
            (_, path) if path.ends_with("/submit") => Call::Submit,
            _ => Call::Other,
        };
        let meddling = {
            let mut seen = self.seen.lock().expect("lock");
            seen.n_calls += 1;
            seen.calls.push((Instant::now(), call));
            (self.rule.lock().expect("lock"))(call, seen.n_calls)
        };
        let host = "horde".to_owned();
        let response = match meddling {
            None => self.inner.send(request).await?,
            Some(Meddling::Delay(time)) => {
                let deadline = request.deadline;
                if time >= deadline {
                    tokio::time::sleep(deadline).await;
                    return Err(TransportError::TimedOut { host, deadline });
                }
                tokio::time::sleep(time).await;
                self.inner.send(request).await?
            }
            Some(Meddling::LoseRequest) => {
                return Err(TransportError::Unreachable {
                    host,
                    reason: "connection refused".to_owned(),
                });
            }
            Some(Meddling::Answer(status, body)) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                let status = StatusCode::from_u16(status).expect("a status");
                return Ok(Response {
                    status,
                    headers: HeaderMap::new(),
                    body: Bytes::from(body.to_string()),
                });
            }
            Some(Meddling::LoseAnswer) => {
                self.inner.send(request).await?;
                return Err(TransportError::Broken {
                    host,
                    reason: "connection reset".to_owned(),
                });
            }
            Some(Meddling::Truncate(share)) => {
                let whole = self.inner.send(request).await?;
                let n = (whole.body.len() as f64 * share) as usize;
                let body = whole.body.slice(..n.min(whole.body.len()));
                return Ok(Response { body, ..whole });
            }
        };
        if call == Call::Pop && response.status.is_success() {
            let answer: Value = serde_json::from_slice(&response.body).unwrap_or_default();
            let ids = answer["ids"].as_array().cloned().unwrap_or_default();
            let now = Instant::now();
            let mut seen = self.seen.lock().expect("lock");
            seen.ids
                .extend(ids.iter().filter_map(Value::as_str).map(|id| (id.to_owned(), now)));
        }
        Ok(response)
    }
}
