//! How busy the runtime keeps a device, and how fast it is between jobs: figures beside their targets.
//!
//! `cargo run -p worker-runtime --example bench-runtime -- [--json]`. Scheduling figures come from tokio's paused clock with
//! a simulated device; the gap between jobs and the way from finish to acknowledgement from the real clock with a stub
//! engine in a child process. Targets: bench table B01–B10 of the reliability notes, repeated in `docs/PERFORMANCE.md`.

mod rig;
mod scenes;
#[path = "../../tests/it/toy.rs"]
mod toy;
#[path = "../../tests/it/toy_engine.rs"]
mod toy_engine;
#[path = "../../tests/it/toy_work.rs"]
mod toy_work;

use std::process::ExitCode;

use serde_json::{Value, json};

use rig::Scene;
use scenes::{real_clock, simulate};

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
