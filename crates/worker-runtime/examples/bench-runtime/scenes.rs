//! The scenes: on the paused clock where the figure is about scheduling, on the real one where it is about speed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant as RealInstant};

use serde_json::{Value, json};
use worker_runtime::backend::EngineReport;
use worker_runtime::device::{ChildCommand, ChildDevice, Ending, Script, SimulatedDevice};
use worker_runtime::law::chance::Chance;
use worker_runtime::law::prefetch::Prefetch;
use worker_runtime::ledger::Durability;
use worker_runtime::{Clock, Settings};

use crate::rig::{Line, Scene, Worker, file, horde};
use crate::toy::{Toy, ToyWork};

/// What a scene showed.
pub struct Seen {
    pub busy_percent: f64,
    pub pop_to_done: f64,
}

const JOBS: u64 = 600;

/// Plays a scene with a simulated device.
pub fn simulate(scene: Scene) -> Seen {
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
                slept_ms: Arc::default(),
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

/// What the real clock showed.
pub struct Real {
    pub gap_p50_ms: f64,
    pub gap_p99_ms: f64,
    pub finish_to_ack_ms: f64,
    pub first_pop_s: f64,
}

/// A real engine child, the durable ledger with its fsyncs, real time.
pub fn real_clock() -> Real {
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
            load_timeout: Some(Duration::from_secs(30)),
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
