//! A whole alchemist and its Horde in one process, on the paused clock, with strangers' servers in between.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use alchemy_worker::backend::{AlchemyBackend, BackendSettings};
use alchemy_worker::engine::{AlchemyEngine, EngineSettings};
use async_trait::async_trait;
use bytes::Bytes;
use horde_client::http::{HttpSettings, HttpTransport};
use horde_client::transport::{Request, RequestClass, Response, Transport, TransportError};
use horde_client::{ApiKey, Client, ClientConfig};
use local_horde::{Horde, WORKER_KEY, fair};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use worker_runtime::device::{Device, LocalDevice};
use worker_runtime::ledger::{Durability, Ledger};
use worker_runtime::{Clock, Command, Controls, Settings, Shutdown, Status};

/// Where made-up sources lie: `https://source.test/NAME`.
pub const SOURCES: &str = "https://source.test/";

/// How one form ended, seen from the wire.
#[derive(Clone, Debug)]
pub struct Ended {
    pub state: String,
    pub result: Value,
    /// The picture that was uploaded.
    pub picture: Option<Vec<u8>>,
    /// Wall time and processor time of this process from the pop's answer to the submission.
    pub wall: Duration,
    /// When it was submitted.
    pub at: std::time::Instant,
    pub cpu: Duration,
    /// The most memory the process had in between, beyond what it had at the pop.
    pub grown_bytes: u64,
    /// What the worker's log says of it.
    pub reason: Option<String>,
}

/// Stands between worker and world.
pub struct Between {
    horde: Arc<dyn Transport>,
    internet: HttpTransport,
    pub sources: Mutex<BTreeMap<String, Bytes>>,
    /// Addresses put in place of made-up ones after the Horde took them.
    pub instead: Mutex<BTreeMap<String, String>>,
    popped: Mutex<BTreeMap<String, Mark>>,
    pub pops: Mutex<Vec<Value>>,
    ended: Mutex<BTreeMap<String, Ended>>,
}

struct Mark {
    at: std::time::Instant,
    cpu: Duration,
    resident_bytes: u64,
}

pub struct World {
    pub horde: Horde,
    pub between: Arc<Between>,
    commands: mpsc::Sender<Command>,
    pub status: watch::Receiver<Status>,
    _shutdown: watch::Sender<Shutdown>,
    task: tokio::task::JoinHandle<Result<worker_runtime::Summary, worker_runtime::RunError>>,
}

impl World {
    /// A worker with one engine per settings, all measured.
    pub fn start(state: &Path, engines: Vec<EngineSettings>, max_tiles: u32) -> Self {
        let horde = Horde::new(local_horde::Settings {
            most_drops: 100_000,
            rate_limits: false,
            ..Default::default()
        });
        let internet = HttpTransport::new(HttpSettings {
            proxy: None,
            allow_loopback: false,
            user_agent: "alchemist/test".into(),
        });
        let between = Arc::new(Between {
            horde: horde.transport(fair(Duration::from_millis(1))),
            internet: internet.expect("a client"),
            sources: Mutex::default(),
            instead: Mutex::default(),
            popped: Mutex::default(),
            pops: Mutex::default(),
            ended: Mutex::default(),
        });
        let client = Client::new(
            Arc::clone(&between) as Arc<dyn Transport>,
            ClientConfig {
                base_url: "http://127.0.0.1:1/api".parse().expect("an address"),
                api_key: ApiKey::new(WORKER_KEY),
                client_agent: "alchemist:0:0".into(),
            },
        );
        let settings = BackendSettings {
            name: "a test alchemist".into(),
            bridge_agent: "alchemist:0.1.0:test".into(),
            priority_usernames: Vec::new(),
            max_tiles,
        };
        let backend = AlchemyBackend::new(settings, client.clone());
        let devices = engines.into_iter().enumerate().map(|(n, settings)| {
            let build = move || {
                let engine = AlchemyEngine::new(settings.clone(), vision::Device::Cpu, "cpu");
                engine.measured();
                Ok(engine)
            };
            let device: Arc<dyn Device<_, _>> = Arc::new(LocalDevice::new(format!("engine {n}"), build));
            device
        });
        let (ledger, _) = Ledger::open(state, Durability::Relaxed).expect("a ledger");
        let (commands, queue) = mpsc::channel(8);
        let (shutdown, signals) = watch::channel(Shutdown::No);
        let (told, status) = watch::channel(Status::default());
        let controls = Controls {
            commands: queue,
            shutdown: signals,
            status: told,
        };
        let settings = Settings {
            faults_per_hour: 100_000,
            clock: Clock::Simulated {
                at: tokio::time::Instant::now(),
                unix_ms: 1_700_000_000_000,
                slept_ms: Arc::default(),
            },
            ..Settings::default()
        };
        let devices = devices.collect();
        let task = tokio::spawn(worker_runtime::run(
            backend, client, devices, ledger, settings, controls,
        ));
        Self {
            horde,
            between,
            commands,
            status,
            _shutdown: shutdown,
            task,
        }
    }

    /// A worker with a network for every form, once it asks for them all, and these forms.
    pub async fn with_every_form(state: &Path, models: &Path, max_tiles: u32) -> (Self, Vec<String>) {
        let mut settings = crate::models::settings(models);
        settings.max_tiles = max_tiles;
        let world = Self::start(state, vec![settings], max_tiles);
        // The Horde on this machine knows no annotation, which the worker finds out first; then pops take turns.
        world
            .popped_for(|forms| !forms.is_empty() && !forms.contains(&json!("annotation")))
            .await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let pops = world.between.pops.lock().expect("lock").clone();
        let forms = pops
            .iter()
            .flat_map(|pop| pop["forms"].as_array().into_iter().flatten());
        let mut names: BTreeSet<String> = forms.filter_map(|form| form.as_str().map(str::to_owned)).collect();
        names.remove("annotation");
        (world, names.into_iter().collect())
    }

    /// Waits for a pop with such forms, at most ten virtual minutes.
    pub async fn popped_for(&self, are: impl Fn(&[Value]) -> bool) {
        let limit = tokio::time::Instant::now() + Duration::from_secs(600);
        loop {
            let pop = self.between.pops.lock().expect("lock").last().cloned();
            if pop.is_some_and(|pop| pop["forms"].as_array().is_some_and(|forms| are(forms))) {
                return;
            }
            let status = self.status.borrow().clone();
            assert!(tokio::time::Instant::now() < limit, "no such pop: {status:#?}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Puts bytes where a made-up source lies.
    pub fn source(&self, name: &str, bytes: Vec<u8>) {
        let mut sources = self.between.sources.lock().expect("lock");
        sources.insert(name.to_owned(), Bytes::from(bytes));
    }

    /// Files one form on a made-up source.
    pub fn file(&self, form: &str, source: &str, payload: Value) -> String {
        let mut asked = json!({ "name": form });
        if payload.is_object() {
            asked["payload"] = payload;
        }
        let body = json!({ "forms": [asked], "source_image": format!("{SOURCES}{source}") });
        self.horde.file("interrogate/async", &body).expect("filed")
    }

    /// The first end of a request's only form. Two virtual hours without one are a failure.
    pub async fn ended(&mut self, request: &str) -> Ended {
        let limit = tokio::time::Instant::now() + Duration::from_secs(7200);
        loop {
            let (id, picture) = {
                let state = self.horde.state();
                let of = state.requests.iter().find(|one| one.id == request);
                let id = of.and_then(|one| one.generations.first().cloned());
                let key = id.as_ref().map(|id| format!("{id}.webp")).unwrap_or_default();
                (id, state.objects.look(&key).cloned())
            };
            let ended = id
                .as_ref()
                .and_then(|id| self.between.ended.lock().expect("lock").get(id).cloned());
            if let (Some(mut ended), Some(id)) = (ended, id) {
                // The log tells it a moment later.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let start: String = id.chars().take(8).collect();
                let status = self.status.borrow();
                let event = status.events.iter().rev().find(|event| event.text.contains(&start));
                ended.reason = event.map(|event| event.text.clone());
                ended.picture = picture;
                return ended;
            }
            assert!(
                tokio::time::Instant::now() < limit,
                "{request} never ended: {:#?}",
                self.status.borrow()
            );
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub async fn finish(self) {
        self.commands.send(Command::Finish).await.expect("the worker runs");
        self.task.await.expect("no panic").expect("it ends well");
    }
}

#[async_trait]
impl Transport for Between {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        if request.class == RequestClass::Stranger {
            let Some(name) = request.url.as_str().strip_prefix(SOURCES) else {
                return self.internet.send(request).await;
            };
            let body = self.sources.lock().expect("lock").get(name).cloned();
            let status = if body.is_some() { 200 } else { 404 };
            return Ok(Response {
                status: http::StatusCode::from_u16(status).expect("a status"),
                headers: http::HeaderMap::new(),
                body: body.unwrap_or_default(),
            });
        }
        let path = request.url.path().to_owned();
        if path.ends_with("/submit") {
            self.on_submit(&request.body);
        }
        if path.ends_with("/pop") {
            let body = serde_json::from_slice(&request.body).unwrap_or_default();
            self.pops.lock().expect("lock").push(body);
        }
        let mut response = self.horde.send(request).await?;
        if path.ends_with("/pop") {
            response.body = self.on_popped(&response.body);
        }
        Ok(response)
    }
}

impl Between {
    fn on_popped(&self, body: &Bytes) -> Bytes {
        let mut text = String::from_utf8_lossy(body).into_owned();
        for (from, to) in self.instead.lock().expect("lock").iter() {
            text = text.replace(&format!("{SOURCES}{from}"), to);
        }
        let told: Value = serde_json::from_str(&text).unwrap_or_default();
        for form in told["forms"].as_array().into_iter().flatten() {
            reset_peak();
            let mark = Mark {
                at: std::time::Instant::now(),
                cpu: cpu(),
                resident_bytes: status_kib("VmRSS") << 10,
            };
            let id = form["id"].as_str().unwrap_or_default().to_owned();
            self.popped.lock().expect("lock").insert(id, mark);
        }
        Bytes::from(text)
    }

    fn on_submit(&self, body: &Bytes) {
        let told: Value = serde_json::from_slice(body).unwrap_or_default();
        let id = told["id"].as_str().unwrap_or_default();
        let popped = self.popped.lock().expect("lock");
        let Some(mark) = popped.get(id) else { return };
        let ended = Ended {
            state: told["state"].as_str().unwrap_or_default().to_owned(),
            result: told["result"].clone(),
            wall: mark.at.elapsed(),
            at: std::time::Instant::now(),
            cpu: cpu().saturating_sub(mark.cpu),
            grown_bytes: (status_kib("VmHWM") << 10).saturating_sub(mark.resident_bytes),
            reason: None,
            picture: None,
        };
        self.ended.lock().expect("lock").entry(id.to_owned()).or_insert(ended);
    }
}

/// Processor time of this process so far.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = text.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

fn status_kib(key: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))
        .expect("the key");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// From now on `VmHWM` counts anew (proc(5), `clear_refs`).
fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").expect("Linux");
}
