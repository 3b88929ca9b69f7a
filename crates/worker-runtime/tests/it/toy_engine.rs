//! A stand-in engine behind a pipe, for tests and benches. Its jobs only take time.

use std::path::PathBuf;
use std::time::Duration;

use worker_runtime::backend::{Engine, EngineReport, Fault, JobContext, LoadError};

use crate::toy_work::ToyWork;

/// Serves the toy engine over this process's pipes.
pub fn serve() -> std::process::ExitCode {
    worker_runtime::engine::serve(|config| match config["load"].as_str() {
        Some("refuse") => Err(LoadError {
            message: "no such model".to_owned(),
            detail: serde_json::json!({ "code": 66 }),
        }),
        Some("panic") => panic!("a panic while loading"),
        Some("forever") => loop {
            std::thread::park();
        },
        _ => {
            let capacity = config["capacity"]
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(1);
            Ok(ToyEngine {
                capacity,
                mood: config["mood"].as_str().map(PathBuf::from),
            })
        }
    })
}

/// A real engine that sleeps, for children and for this process.
pub struct ToyEngine {
    /// Jobs at once.
    pub capacity: usize,
    /// A file whose text is part of the report.
    pub mood: Option<PathBuf>,
}

impl Engine for ToyEngine {
    type Work = ToyWork;
    type Output = String;

    fn report(&self) -> EngineReport {
        EngineReport {
            capacity: self.capacity,
            facts: match &self.mood {
                None => serde_json::json!({ "toy": true }),
                Some(mood) => serde_json::json!({ "toy": true, "mood": std::fs::read_to_string(mood).ok() }),
            },
        }
    }

    fn run(&self, work: ToyWork, job: &dyn JobContext) -> Result<Vec<Result<String, Fault>>, Fault> {
        let started = unix_ns();
        for step in 1..=work.steps {
            std::thread::sleep(Duration::from_millis(work.step_ms));
            if job.is_cancelled() {
                return Err(Fault::of_job("cancelled"));
            }
            job.progress(step, work.steps, "steps");
        }
        match work.end.as_str() {
            "time" => Ok(work
                .ids
                .iter()
                .map(|_| Ok(format!("time {started} {}", unix_ns())))
                .collect()),
            "fault" => Err(Fault::of_worker("the engine failed")),
            "panic" => panic!("a panic in the engine"),
            "abort" => std::process::abort(),
            "exit" => std::process::exit(3),
            "hang" => loop {
                std::thread::sleep(Duration::from_secs(3600));
            },
            "print" => {
                println!("a library prints to stdout");
                Ok(work.results())
            }
            _ => Ok(work.results()),
        }
    }
}

fn unix_ns() -> u128 {
    std::time::UNIX_EPOCH
        .elapsed()
        .map(|since| since.as_nanos())
        .unwrap_or_default()
}
