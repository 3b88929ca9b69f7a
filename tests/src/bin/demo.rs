//! `./x demo`: starts a Horde on this machine, files real requests, runs the real worker program and shows every request
//! with its answer. Exits 0 only if every request was answered.

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use e2e::demo;

/// Show a worker at work against a Horde on this machine.
#[derive(Parser)]
#[command(name = "demo")]
struct Arguments {
    /// Which worker to show.
    #[arg(value_enum, default_value = "scribe")]
    worker: Worker,
    /// Print one JSON object as the last line.
    #[arg(long)]
    json: bool,
    /// Give up after this many seconds.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Worker {
    /// Text, by a real language model.
    Scribe,
    /// Pictures, by a tiny model that was really trained.
    Dreamer,
    /// Pictures, by real upscalers, a real cut-out and tiny trained describers.
    Alchemist,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let timeout = std::time::Duration::from_secs(arguments.timeout);
    let outcome = match arguments.worker {
        Worker::Scribe => demo::scribe::show(timeout).await,
        Worker::Dreamer => demo::dreamer::show(timeout).await,
        Worker::Alchemist => demo::alchemist::show(timeout).await,
    };
    match outcome {
        Ok((report, complete)) => {
            if arguments.json {
                println!(
                    "{}",
                    serde_json::to_string(&report).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
                );
            }
            if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
