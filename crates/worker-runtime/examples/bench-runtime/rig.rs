//! A worker, its Horde and the line between them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant as RealInstant};

use async_trait::async_trait;
use horde_client::transport::{Request, RequestClass, Response, Transport, TransportError};
use horde_client::{ApiKey, Client, ClientConfig};
use local_horde::{Horde, WORKER_KEY, fair};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use worker_runtime::device::Device;
use worker_runtime::law::chance::Chance;
use worker_runtime::ledger::{Durability, Ledger};
use worker_runtime::{Command, Controls, Settings, Shutdown, Status};

use crate::toy::{Toy, ToyWork};

/// A scene on the paused clock.
#[derive(Clone, Copy, Default)]
pub struct Scene {
    pub job_ms: u64,
    /// Median of a log-normal round trip with sigma 0.35.
    pub rtt_ms: u64,
    pub depth: u8,
    /// 30 % of the jobs fetch a source for 0.4 s.
    pub sources: bool,
    /// 5 % of uploads and 2 % of API calls answer 503.
    pub trouble: bool,
}

/// Milliseconds since 1970.
fn unix_ms() -> f64 {
    std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

/// A Horde without limits of calls.
pub fn horde() -> Horde {
    Horde::new(local_horde::Settings {
        rate_limits: false,
        ..local_horde::Settings::default()
    })
}

/// Files a request with a play as its prompt.
pub fn file(horde: &Horde, play: &str) {
    let body = json!({ "prompt": play, "models": ["toy-model"], "params": { "width": 512, "height": 512 } });
    horde
        .file("generate/async", &body)
        .expect("local-horde takes the request");
}

/// The way to the Horde: a log-normal round trip where the scene has one, a constant one on the real clock.
pub struct Line {
    inner: Arc<dyn Transport>,
    scene: Scene,
    chance: Mutex<Chance>,
    pub first_pop: Mutex<Option<RealInstant>>,
    /// When each submission was acknowledged, in milliseconds since 1970.
    pub acks: Mutex<Vec<f64>>,
}

impl Line {
    pub fn new(horde: &Horde, scene: Scene) -> Arc<Self> {
        let inner = horde.transport(fair(Duration::ZERO)) as Arc<dyn Transport>;
        let chance = Mutex::new(Chance::new(11));
        Arc::new(Self {
            inner,
            scene,
            chance,
            first_pop: Mutex::default(),
            acks: Mutex::default(),
        })
    }

    fn round_trip(&self) -> Duration {
        let median_s = self.scene.rtt_ms as f64 / 1e3;
        if self.scene.job_ms == 0 {
            return Duration::from_secs_f64(median_s);
        }
        let mut chance = self.chance.lock().expect("lock");
        // Box-Muller.
        let radius = (-2.0 * (1.0 - chance.unit()).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * chance.unit()).cos();
        Duration::from_secs_f64(median_s * (0.35 * normal).exp())
    }
}

#[async_trait]
impl Transport for Line {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        let is_upload = request.class == RequestClass::ObjectStore;
        let (is_pop, is_submit) = (
            request.url.path().ends_with("/pop"),
            request.url.path().ends_with("/submit"),
        );
        if is_pop {
            self.first_pop
                .lock()
                .expect("lock")
                .get_or_insert_with(RealInstant::now);
        }
        let round_trip = self.round_trip();
        let die = self.chance.lock().expect("lock").unit();
        tokio::time::sleep(round_trip / 2).await;
        let response = if self.scene.trouble && die < if is_upload { 0.05 } else { 0.02 } {
            let status = http::StatusCode::SERVICE_UNAVAILABLE;
            Response {
                status,
                headers: http::HeaderMap::new(),
                body: bytes::Bytes::new(),
            }
        } else {
            self.inner.send(request).await?
        };
        tokio::time::sleep(round_trip / 2).await;
        if is_submit {
            self.acks.lock().expect("lock").push(unix_ms());
        }
        Ok(response)
    }
}

/// A running worker.
pub struct Worker {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    task: tokio::task::JoinHandle<()>,
    _shutdown: watch::Sender<Shutdown>,
    _state_dir: tempfile::TempDir,
}

impl Worker {
    pub fn start(
        backend: Toy,
        device: Arc<dyn Device<ToyWork, String>>,
        line: Arc<Line>,
        settings: Settings,
        durability: Durability,
    ) -> Self {
        let state_dir = tempfile::tempdir().expect("a directory");
        let (ledger, _) = Ledger::open(state_dir.path(), durability).expect("a fresh ledger");
        let client_config = ClientConfig {
            base_url: "http://127.0.0.1:1/api".parse().expect("an address"),
            api_key: ApiKey::new(WORKER_KEY),
            client_agent: "bench:0:0".to_owned(),
        };
        let client = Client::new(line, client_config);
        let (commands, command_queue) = mpsc::channel(1);
        let (shutdown, signals) = watch::channel(Shutdown::No);
        let (told, status) = watch::channel(Status::default());
        let controls = Controls {
            commands: command_queue,
            shutdown: signals,
            status: told,
        };
        let task = tokio::spawn(async move {
            let ended = worker_runtime::run(backend, client, vec![device], ledger, settings, controls).await;
            ended.expect("the worker serves");
        });
        Self {
            commands,
            status,
            task,
            _shutdown: shutdown,
            _state_dir: state_dir,
        }
    }

    pub async fn until(&mut self, what: impl FnMut(&Status) -> bool) -> Status {
        self.status.wait_for(what).await.expect("the worker runs").clone()
    }

    pub async fn finish(self) {
        self.commands.send(Command::Finish).await.expect("the worker runs");
        self.task.await.expect("no panic");
    }
}
