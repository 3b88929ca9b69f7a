//! Tokens written per second and per CPU second: one by one, several at once, with a shared beginning.
//!
//! `cargo run -p textgen --example bench-scribe -- MODEL.gguf [--peer] [--json]`, one llama.cpp thread. Goals: eight at once at
//! least 1.05 times one by one with unrelated prompts, 1.6 times with a shared beginning; `--peer` also runs the same model
//! through two Python packages' llama.cpp (installed once): one job and eight at once (beside llama.cpp's own server with eight
//! slots) at least 0.95 times as fast, and the same greedy texts without flash attention; with it, the token where two texts part
//! is named with the gap of the two best logits. `--greedy` compares the greedy texts alone and fails unless every one is the
//! peer's, with flash attention too, which takes a llama.cpp built like the peer's (`just check-greedy`).
//! `--json` prints every figure as the last line.

mod peer;
mod python;
#[path = "../../tests/it/questions.rs"]
mod questions;
mod server;

use std::time::Instant;

use textgen::llama::{Flash, LlamaEngine, LlamaSettings};
use textgen::sampler::Sampling;
use textgen::{NoWatch, TextEngine, TextError, TextRequest};

const JOBS: usize = 8;
const TOKENS: u32 = 48;
const SCENE: &str = "You are a careful narrator in a long running role playing game. Keep the tone dark, keep the answers short, never \
    speak for the player, and describe what the player can see, hear and smell. The world is a ruined city by the sea. ";

struct Figure {
    name: &'static str,
    per_cpu_second: f64,
    per_second: f64,
    /// The texts, in the jobs' order.
    texts: Vec<String>,
}

fn main() -> Result<(), TextError> {
    let mut arguments = std::env::args().skip(1);
    let model = arguments
        .next()
        .ok_or_else(|| TextError::Model("name a GGUF file".into()))?;
    let (mut json, mut with_peer) = (false, false);
    for argument in arguments {
        match argument.as_str() {
            "--json" => json = true,
            "--peer" => with_peer = true,
            "--greedy" => return all_greedy_texts(&model),
            other => {
                return Err(TextError::Failed(format!(
                    "there is no `{other}`; use --peer, --greedy, --json"
                )));
            }
        }
    }
    let runs: [(&str, usize, bool); 6] = [
        ("one by one", 1, false),
        ("two at once", 2, false),
        ("four at once", 4, false),
        ("eight at once", 8, false),
        ("one by one, shared beginning, nothing kept", 0, true),
        ("eight at once, shared beginning", 8, true),
    ];
    let mut figures = Vec::new();
    for (name, slots, shared) in runs {
        let figure = run(&model, name, slots, shared)?;
        println!(
            "{name:<46} {:>7.1} tokens/CPU s {:>7.1} tokens/s",
            figure.per_cpu_second, figure.per_second
        );
        figures.push(figure);
    }
    let rate = |place: usize| figures[place].per_cpu_second;
    println!("{}", drift(&figures[0].texts, &figures[3].texts));
    let mut goals = vec![
        ("speedup_of_eight_at_once", rate(3) / rate(0), "x", 1.05),
        ("speedup_of_eight_with_a_shared_beginning", rate(5) / rate(4), "x", 1.6),
    ];
    // Where memory bounds the speed, as on cards, batching brings most.
    if textgen::llama::devices().iter().any(|device| device.gpu) {
        let speedup = figures[2].per_second / figures[0].per_second.max(1e-6);
        goals.push(("speedup_of_four_at_once_on_a_card", speedup, "x", 1.8));
    }
    if with_peer {
        let beside = peer::beside(&model, Flash::Auto)?;
        println!(
            "one job: {:.1} tokens/CPU s, the peer {:.1}; {} of {} greedy texts identical with flash attention",
            beside.ours, beside.theirs, beside.identical, beside.prompts
        );
        goals.push((
            "one_job_against_the_peer",
            beside.ours / beside.theirs.max(1e-6),
            "x",
            0.95,
        ));
        let plain = peer::beside(&model, Flash::Off)?;
        goals.push((
            "greedy_texts_identical_without_flash_attention",
            plain.identical as f64,
            "texts",
            plain.prompts as f64,
        ));
        for (name, shared) in [
            ("eight_at_once_against_the_server", false),
            ("eight_with_a_shared_beginning_against_the_server", true),
        ] {
            let at_once = server::at_once(&model, shared)?;
            println!(
                "{name}: {:.1} tokens/CPU s, llama.cpp's server {:.1}",
                at_once.ours, at_once.theirs
            );
            goals.push((name, at_once.ours / at_once.theirs.max(1e-6), "x", 0.95));
        }
    }
    for (name, value, unit, target) in &goals {
        println!(
            "{name}: {value:.2} {unit} (goal {target}) {}",
            if value >= target { "ok" } else { "MISSED" }
        );
    }
    if json {
        let runs = figures.iter().map(|figure| {
            (
                figure.name.replace([' ', ','], "_"),
                serde_json::json!({"value": figure.per_cpu_second, "unit": "tokens/CPU s", "target": null, "ok": true}),
            )
        });
        let goals = goals.iter().map(|(name, value, unit, target)| {
            (
                (*name).to_owned(),
                serde_json::json!({"value": value, "unit": unit, "target": target, "ok": value >= target}),
            )
        });
        println!("{}", serde_json::Value::Object(runs.chain(goals).collect()));
    }
    Ok(())
}

/// Whether every greedy text is the peer's, without flash attention and with it.
fn all_greedy_texts(model: &str) -> Result<(), TextError> {
    for (name, flash) in [("without", Flash::Off), ("with", Flash::Auto)] {
        let beside = peer::beside(model, flash)?;
        println!(
            "{} of {} greedy texts identical {name} flash attention",
            beside.identical, beside.prompts
        );
        if beside.identical < beside.prompts {
            return Err(TextError::Failed("greedy texts differ from the peer's".into()));
        }
    }
    Ok(())
}

fn failed(error: std::io::Error) -> TextError {
    TextError::Failed(error.to_string())
}

/// Eight jobs; zero slots mean one slot whose kept beginning is washed out before each job.
fn run(model: &str, name: &'static str, slots: usize, shared: bool) -> Result<Figure, TextError> {
    let settings = LlamaSettings {
        slots: slots.max(1) as u32,
        context_tokens: 512,
        threads: 1,
        prefill_tokens: 512,
        ..LlamaSettings::for_model(model)
    };
    let engine = LlamaEngine::load(settings, |_| true)?;
    let (mut cpu, mut wall, mut tokens, mut texts) = (0.0, 0.0, 0, Vec::new());
    if slots <= 1 {
        for job in 0..JOBS {
            if slots == 0 {
                engine.generate(TextRequest::new("Something else", 1, 512), &NoWatch)?;
            }
            let (start, start_cpu) = (Instant::now(), cpu_seconds());
            let answer = engine.generate(request(job, shared), &NoWatch)?;
            tokens += answer.tokens;
            texts.push(answer.text);
            wall += start.elapsed().as_secs_f64();
            cpu += cpu_seconds() - start_cpu;
        }
    } else {
        let (start, start_cpu) = (Instant::now(), cpu_seconds());
        let answers: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = (0..JOBS)
                .map(|job| {
                    scope.spawn({
                        let (engine, request) = (&engine, request(job, shared));
                        move || engine.generate(request, &NoWatch)
                    })
                })
                .collect();
            running.into_iter().filter_map(|thread| thread.join().ok()).collect()
        });
        for answer in answers {
            let answer = answer?;
            tokens += answer.tokens;
            texts.push(answer.text);
        }
        wall += start.elapsed().as_secs_f64();
        cpu += cpu_seconds() - start_cpu;
    }
    Ok(Figure {
        name,
        per_cpu_second: f64::from(tokens) / cpu.max(1e-6),
        per_second: f64::from(tokens) / wall.max(1e-6),
        texts,
    })
}

/// How far greedy texts stay the same among others: the size of a batch changes llama.cpp's rounding.
fn drift(alone: &[String], among_others: &[String]) -> String {
    let pairs = || alone.iter().zip(among_others);
    let same = pairs().filter(|(a, b)| a == b).count();
    let parted = pairs().filter(|(a, b)| a != b);
    let kept: Vec<usize> = parted
        .map(|(a, b)| a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count())
        .collect();
    format!(
        "{same} of {} greedy texts of {TOKENS} tokens are the same alone and among eight; the others part after {kept:?} characters",
        alone.len()
    )
}

/// The job with this number; `shared`: its prompt begins as the others' do.
fn request(job: usize, shared: bool) -> TextRequest {
    let scene = if shared {
        SCENE.to_owned()
    } else {
        format!(
            "Story {}: {}",
            job * 31,
            SCENE.replace("city", ["port", "hall"][job % 2])
        )
    };
    let prompt = format!(
        "{scene}Scene {job}: the player walks into room number {} and looks around. ",
        job * 7 + 3
    );
    TextRequest {
        ban_eos: true,
        sampling: Sampling::greedy(),
        ..TextRequest::new(prompt, TOKENS, 512)
    }
}

/// CPU time of this process so far, from /proc/self/stat (ticks of 10 ms); zero where there is none.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in brackets may hold spaces; user and system time are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace()
        .collect();
    let ticks: f64 = fields
        .iter()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}
