//! Scribe's engine beside the same llama.cpp driven by a Python package, job by job in turn.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use textgen::llama::{LlamaEngine, LlamaSettings};
use textgen::sampler::Sampling;
use textgen::{NoWatch, TextEngine, TextError, TextRequest};

use crate::{cpu_seconds, failed};

const PACKAGE: &str = "cyllama==0.2.18";
const TOKENS: u32 = 48;
const CONTEXT: u32 = 512;
/// Where the two best tokens stand closer than this (in logits), the order of a sum decides between them.
const ROUNDING: f64 = 0.1;
const QUESTIONS: [&str; 10] = [
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "How many legs does a spider have?",
    "Explain photosynthesis to a child.",
    "What is the opposite of hot?",
    "Tell me a story about a lighthouse keeper.",
    "List the ingredients of pancakes.",
    "What does a blacksmith do?",
];

/// What the comparison found.
pub struct Beside {
    /// Tokens per CPU second here.
    pub ours: f64,
    /// Tokens per CPU second of the peer.
    pub theirs: f64,
    /// Prompts with the same text.
    pub identical: usize,
    /// Prompts whose texts part at a token between which and the next best lies no more than rounding.
    pub explained: usize,
    /// All prompts.
    pub prompts: usize,
}

/// Runs every prompt here and there, one after the other, on one thread each.
pub fn beside(model: &str) -> Result<Beside, TextError> {
    let mut peer = Peer::start(model)?;
    let settings = LlamaSettings {
        slots: 1,
        context_tokens: CONTEXT,
        threads: 1,
        prefill_tokens: CONTEXT,
        ..LlamaSettings::for_model(model)
    };
    let engine = LlamaEngine::load(settings, |_| true)?;
    let (mut our_tokens, mut our_cpu, mut their_tokens, mut their_cpu) = (0.0, 0.0, 0.0, 0.0);
    let (mut identical, mut explained) = (0, 0);
    // The first run of each warms caches and is not counted.
    engine.generate(TextRequest::new("Something else", 1, CONTEXT), &NoWatch)?;
    peer.answer("Something else", 1, None)?;
    for question in QUESTIONS {
        let prompt = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
        let request = TextRequest {
            sampling: Sampling::greedy(),
            ..TextRequest::new(prompt.clone(), TOKENS, CONTEXT)
        };
        let start = cpu_seconds();
        let ours = engine.generate(request, &NoWatch)?;
        our_cpu += cpu_seconds() - start;
        our_tokens += f64::from(ours.tokens);
        let theirs = peer.answer(&prompt, TOKENS, None)?;
        their_cpu += theirs.cpu_seconds;
        their_tokens += theirs.pieces.len() as f64;
        let Some(place) = first_difference(&ours.text, &theirs.pieces) else {
            identical += 1;
            continue;
        };
        let margin = peer
            .answer(&prompt, TOKENS, Some(place))?
            .margin
            .unwrap_or(f64::INFINITY);
        explained += usize::from(margin < ROUNDING);
        println!(
            "\"{question}\": the texts part at token {place} (the peer has {:?}), where the peer's two best stand {margin:.3} apart",
            theirs.pieces.get(place).map_or("", String::as_str)
        );
    }
    Ok(Beside {
        ours: our_tokens / our_cpu.max(1e-6),
        theirs: their_tokens / their_cpu.max(1e-6),
        identical,
        explained,
        prompts: QUESTIONS.len(),
    })
}

/// The first token of `pieces` that does not continue `text`, or their number where `text` is longer.
fn first_difference(text: &str, pieces: &[String]) -> Option<usize> {
    let mut rest = text;
    for (place, piece) in pieces.iter().enumerate() {
        match rest.strip_prefix(piece.as_str()) {
            Some(behind) => rest = behind,
            None => return Some(place),
        }
    }
    (!rest.is_empty()).then_some(pieces.len())
}

struct Peer {
    child: Child,
    jobs: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct Answer {
    pieces: Vec<String>,
    cpu_seconds: f64,
    margin: Option<f64>,
}

impl Peer {
    fn start(model: &str) -> Result<Self, TextError> {
        let mut child = Command::new(python()?)
            .arg("-c")
            .arg(include_str!("peer.py"))
            .args([model, &CONTEXT.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (jobs, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.ok_or_else(|| TextError::Failed("the peer has no output".into()))?);
        Ok(Self { child, jobs, answers })
    }

    fn answer(&mut self, prompt: &str, tokens: u32, margin_at: Option<usize>) -> Result<Answer, TextError> {
        let job = serde_json::json!({ "prompt": prompt, "tokens": tokens, "margin_at": margin_at });
        let jobs = self
            .jobs
            .as_mut()
            .ok_or_else(|| TextError::Failed("the peer has no input".into()))?;
        writeln!(jobs, "{job}").map_err(failed)?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(failed)?;
        serde_json::from_str(&line).map_err(|_| TextError::Failed("the peer ended before it answered".into()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.jobs.take());
        let _ = self.child.wait();
    }
}

/// A Python that has the package, in an environment of its own that is made once.
fn python() -> Result<PathBuf, TextError> {
    let home = std::env::var_os("HOME").ok_or_else(|| TextError::Failed("`HOME` is not set".into()))?;
    let folder = PathBuf::from(home).join(".cache/horde-workers/venvs/cyllama");
    let python = folder.join("bin/python");
    let has_it = |python: &PathBuf| {
        let asked = Command::new(python).args(["-c", "import cyllama"]).output();
        asked.is_ok_and(|output| output.status.success())
    };
    if !has_it(&python) {
        eprintln!("installing {PACKAGE} into {}", folder.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--no-deps", PACKAGE]))?;
    }
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), TextError> {
    // Nothing but the bench's own lines belongs on standard output.
    let output = command.output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(TextError::Failed(format!("{command:?}: {why}")))
}
