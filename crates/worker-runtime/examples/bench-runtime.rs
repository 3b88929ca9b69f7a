//! How busy the runtime keeps a device, and how fast it is between jobs: figures beside their targets.
//!
//! `cargo run -p worker-runtime --example bench-runtime -- [--json]`. Scheduling figures come from tokio's paused clock with
//! a simulated device; the gap between jobs and the way from finish to acknowledgement from the real clock with a stub
//! engine in a child process. Targets: bench table B01–B10 of the reliability notes, repeated in `docs/PERFORMANCE.md`.

#[path = "../tests/it/toy.rs"]
mod toy;
#[path = "../tests/it/toy_engine.rs"]
mod toy_engine;
#[path = "../tests/it/toy_work.rs"]
mod toy_work;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant as RealInstant};

use async_trait::async_trait;
use horde_client::transport::{Request, RequestClass, Response, Transport, TransportError};
use horde_client::{ApiKey, Client, ClientConfig};
use local_horde::{Horde, WORKER_KEY, fair};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use worker_runtime::backend::EngineReport;
use worker_runtime::device::{ChildCommand, ChildDevice, Device, Ending, Script, SimulatedDevice};
use worker_runtime::law::chance::Chance;
use worker_runtime::law::prefetch::Prefetch;
use worker_runtime::ledger::{Durability, Ledger};
use worker_runtime::{Clock, Command, Controls, Settings, Shutdown, Status};

use toy::{Toy, ToyWork};

/// One line of the table.
struct Figure {
    name: &'static str,
    what: &'static str,
    value: f64,
    unit: &'static str,
    target: f64,
    at_least: bool,
}

impl Figure {
    fn ok(&self) -> bool {
        if self.at_least {
            self.value >= self.target
        } else {
            self.value <= self.target
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == "engine") {
        return toy_engine::serve();
    }
    let figures = measure();
    println!("{:<14} {:>10} {:<6} {:>12}   what", "figure", "ours", "", "target");
    for figure in &figures {
        let sign = if figure.at_least { ">=" } else { "<=" };
        let verdict = if figure.ok() { "" } else { "   MISSED" };
        println!(
            "{:<14} {:>10.3} {:<6} {sign} {:>9.3}   {}{verdict}",
            figure.name, figure.value, figure.unit, figure.target, figure.what
        );
    }
    if args.iter().any(|arg| arg == "--json") {
        let object: serde_json::Map<String, Value> = figures
            .iter()
            .map(|figure| {
                let row =
                    json!({ "value": figure.value, "unit": figure.unit, "target": figure.target, "ok": figure.ok() });
                (figure.name.to_owned(), row)
            })
            .collect();
        println!("{}", Value::Object(object));
    }
    if figures.iter().all(Figure::ok) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn measure() -> Vec<Figure> {
    let at_least = |name, what, value, target| Figure {
        name,
        what,
        value,
        unit: "%",
        target,
        at_least: true,
    };
    let at_most = |name, what, value, unit, target| Figure {
        name,
        what,
        value,
        unit,
        target,
        at_least: false,
    };
    let b01 = simulate(Scene {
        job_ms: 2_000,
        rtt_ms: 300,
        depth: 1,
        sources: true,
        ..Scene::default()
    });
    let b02 = simulate(Scene {
        job_ms: 2_000,
        rtt_ms: 1_000,
        depth: 2,
        sources: true,
        ..Scene::default()
    });
    let b03 = simulate(Scene {
        job_ms: 500,
        rtt_ms: 300,
        depth: 2,
        sources: true,
        ..Scene::default()
    });
    let b04 = simulate(Scene {
        job_ms: 6_000,
        rtt_ms: 300,
        depth: 1,
        trouble: true,
        ..Scene::default()
    });
    let b05 = simulate(Scene {
        job_ms: 6_000,
        rtt_ms: 300,
        depth: 1,
        ..Scene::default()
    });
    let real = real_clock();
    vec![
        at_least(
            "B01",
            "busy: 2 s jobs, round trip 300 ms, one job ahead",
            b01.busy_percent,
            99.0,
        ),
        at_least(
            "B02",
            "busy: 2 s jobs, round trip 1 s, two jobs ahead",
            b02.busy_percent,
            99.0,
        ),
        at_least(
            "B03",
            "busy: 0.5 s jobs, round trip 300 ms, two jobs ahead",
            b03.busy_percent,
            95.0,
        ),
        at_least(
            "B04",
            "busy: 6 s jobs, 5 % of uploads and 2 % of calls fail",
            b04.busy_percent,
            99.5,
        ),
        at_least("B05_busy", "busy: 6 s jobs popped just in time", b05.busy_percent, 99.0),
        at_most(
            "B05",
            "pop to done, in times of the 6 s the job takes",
            b05.pop_to_done,
            "x",
            1.25,
        ),
        at_most(
            "B07_p50",
            "gap between two jobs on the device, median",
            real.gap_p50_ms,
            "ms",
            1.0,
        ),
        at_most(
            "B07_p99",
            "gap between two jobs on the device, 99th percentile",
            real.gap_p99_ms,
            "ms",
            5.0,
        ),
        at_most(
            "B08",
            "finish to acknowledgement beyond two round trips, median",
            real.finish_to_ack_ms,
            "ms",
            20.0,
        ),
        at_most(
            "B10_first_pop",
            "start to first pop, engine child included",
            real.first_pop_s,
            "s",
            1.0,
        ),
    ]
}

/// A scene on the paused clock.
#[derive(Clone, Copy, Default)]
struct Scene {
    job_ms: u64,
    /// Median of a log-normal round trip with sigma 0.35.
    rtt_ms: u64,
    depth: u8,
    /// 30 % of the jobs fetch a source for 0.4 s.
    sources: bool,
    /// 5 % of uploads and 2 % of API calls answer 503.
    trouble: bool,
}

struct Seen {
    busy_percent: f64,
    pop_to_done: f64,
}

const JOBS: u64 = 600;

fn simulate(scene: Scene) -> Seen {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(async move {
        let horde = horde();
        let mut chance = Chance::new(7);
        for _ in 0..JOBS {
            let prepare_ms = if scene.sources && chance.unit() < 0.3 { 400 } else { 0 };
            file(&horde, &format!("steps=10 ms={} prep={prepare_ms}", scene.job_ms / 10));
        }
        let line = Line::new(&horde, scene);
        let report = EngineReport {
            capacity: 1,
            facts: Value::Null,
        };
        let play = |work: &ToyWork| Script {
            steps: work.steps,
            step: Duration::from_millis(work.step_ms),
            ending: Ending::Return(Ok(work.results())),
        };
        let device = Arc::new(SimulatedDevice::new("sim:0", report, Duration::ZERO, play));
        let prefetch = Prefetch {
            depth: scene.depth,
            eager: false,
        };
        let settings = Settings {
            prefetch,
            seed: 7,
            clock: Clock::Simulated {
                at: tokio::time::Instant::now(),
                unix_ms: 0,
            },
            ..Settings::default()
        };
        let mut worker = Worker::start(
            Toy {
                amount: 1,
                ..Toy::default()
            },
            device,
            line,
            settings,
            Durability::Relaxed,
        );
        // The last jobs are left out: there is nothing to pop after them.
        let status = worker.until(|status| status.totals.submitted >= JOBS - 10).await;
        worker.finish().await;
        let state = horde.state();
        let seconds: Vec<f64> = state
            .ledger
            .generations
            .values()
            .filter_map(|entry| entry.seconds)
            .collect();
        let mean = seconds.iter().sum::<f64>() / seconds.len().max(1) as f64;
        Seen {
            busy_percent: 100.0 * status.busy_fraction,
            pop_to_done: mean * 1e3 / scene.job_ms as f64,
        }
    })
}

struct Real {
    gap_p50_ms: f64,
    gap_p99_ms: f64,
    finish_to_ack_ms: f64,
    first_pop_s: f64,
}

/// A real engine child, the durable ledger with its fsyncs, real time.
fn real_clock() -> Real {
    const REAL_JOBS: u64 = 200;
    const RTT_MS: u64 = 20;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let horde = horde();
        for _ in 0..REAL_JOBS {
            file(&horde, "steps=4 ms=10 end=time");
        }
        let line = Line::new(
            &horde,
            Scene {
                rtt_ms: RTT_MS,
                ..Scene::default()
            },
        );
        let backend = Toy {
            amount: 1,
            ..Toy::default()
        };
        let outputs = Arc::clone(&backend.outputs);
        let started = RealInstant::now();
        let command = ChildCommand {
            program: std::env::current_exe().expect("a program has a path"),
            args: vec!["engine".to_owned()],
            env: Vec::new(),
            config: json!({}),
            load_timeout: Duration::from_secs(30),
        };
        let device = Arc::new(ChildDevice::<ToyWork, String>::new("stub:0", command));
        let settings = Settings {
            prefetch: Prefetch { depth: 2, eager: false },
            seed: 7,
            ..Settings::default()
        };
        let mut worker = Worker::start(backend, device, Arc::clone(&line), settings, Durability::Full);
        worker.until(|status| status.totals.submitted >= REAL_JOBS).await;
        worker.finish().await;
        let times: Vec<(f64, f64)> = outputs
            .lock()
            .expect("lock")
            .iter()
            .filter_map(|line| started_and_ended_ms(line))
            .collect();
        // The first jobs are left out: caches are cold and nothing is popped ahead yet.
        let mut gaps: Vec<f64> = times.windows(2).skip(5).map(|pair| pair[1].0 - pair[0].1).collect();
        let first_pop_s = line
            .first_pop
            .lock()
            .expect("lock")
            .map_or(f64::INFINITY, |at| (at - started).as_secs_f64());
        let ends: HashMap<u64, f64> = times.iter().enumerate().map(|(at, time)| (at as u64, time.1)).collect();
        let acks = line.acks.lock().expect("lock").clone();
        // Jobs run one after the other, and so do their submissions.
        let late = acks
            .iter()
            .enumerate()
            .skip(5)
            .filter_map(|(at, ack)| Some(ack - ends.get(&(at as u64))?));
        let mut late: Vec<f64> = late.map(|ms| ms - 2.0 * RTT_MS as f64).collect();
        Real {
            gap_p50_ms: percentile(&mut gaps, 50),
            gap_p99_ms: percentile(&mut gaps, 99),
            finish_to_ack_ms: percentile(&mut late, 50),
            first_pop_s,
        }
    })
}

fn started_and_ended_ms(output: &str) -> Option<(f64, f64)> {
    let mut numbers = output.strip_prefix("time ")?.split(' ').map(str::parse::<u128>);
    let (start, end) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((start as f64 / 1e6, end as f64 / 1e6))
}

fn percentile(values: &mut [f64], percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values
        .get((values.len() * percent / 100).min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::INFINITY)
}

fn unix_ms() -> f64 {
    std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0.0, |since| since.as_secs_f64() * 1e3)
}

fn horde() -> Horde {
    Horde::new(local_horde::Settings {
        rate_limits: false,
        ..local_horde::Settings::default()
    })
}

fn file(horde: &Horde, play: &str) {
    let body = json!({ "prompt": play, "models": ["toy-model"], "params": { "width": 512, "height": 512 } });
    horde
        .file("generate/async", &body)
        .expect("local-horde takes the request");
}

/// The way to the Horde: a log-normal round trip where the scene has one, a constant one on the real clock.
struct Line {
    inner: Arc<dyn Transport>,
    scene: Scene,
    chance: Mutex<Chance>,
    first_pop: Mutex<Option<RealInstant>>,
    /// When each submission was acknowledged, in milliseconds since 1970.
    acks: Mutex<Vec<f64>>,
}

impl Line {
    fn new(horde: &Horde, scene: Scene) -> Arc<Self> {
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

struct Worker {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
    task: tokio::task::JoinHandle<()>,
    _shutdown: watch::Sender<Shutdown>,
    _state_dir: tempfile::TempDir,
}

impl Worker {
    fn start(
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

    async fn until(&mut self, what: impl FnMut(&Status) -> bool) -> Status {
        self.status.wait_for(what).await.expect("the worker runs").clone()
    }

    async fn finish(self) {
        self.commands.send(Command::Finish).await.expect("the worker runs");
        self.task.await.expect("no panic");
    }
}
