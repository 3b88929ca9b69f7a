//! Scribe's engine beside the same llama.cpp driven by a Python package, job by job in turn.

use serde::Deserialize;
use textgen::llama::{Flash, LlamaEngine};
use textgen::{NoWatch, TextEngine, TextError, TextRequest};

use crate::cpu_seconds;
use crate::python::{Package, Peer};
use crate::questions::{CONTEXT, QUESTIONS, TOKENS, prompts, request, settings};

const PACKAGE: Package = Package {
    name: "cyllama",
    version: "0.2.18",
};

/// What the comparison found.
pub struct Beside {
    /// Tokens per CPU second here.
    pub ours: f64,
    /// Tokens per CPU second of the peer.
    pub theirs: f64,
    /// Prompts with the same text.
    pub identical: usize,
    /// All prompts.
    pub prompts: usize,
}

/// Runs every prompt here and there, one after the other, on one thread each.
///
/// Without flash attention ([`Flash::Off`]) the texts are the same. With it ([`Flash::Auto`]) they part from the peer's where the
/// two best tokens stand close, unless llama.cpp is built without contracted floating-point operations, as the peer's package is:
/// GCC otherwise joins products and sums of `ggml_compute_forward_flash_attn_ext_f16_one_chunk` into fused operations, which
/// round once instead of twice, and its accumulators of half precision carry the difference on.
pub fn beside(model: &str, flash_attention: Flash) -> Result<Beside, TextError> {
    let flash = if flash_attention == Flash::Off { "0" } else { "-1" };
    let mut peer = Peer::start(&PACKAGE, include_str!("peer.py"), &[model, &CONTEXT.to_string(), flash])?;
    let engine = LlamaEngine::load(settings(model, flash_attention), |_| true)?;
    let prompts = prompts();
    let (mut our_tokens, mut our_cpu, mut their_tokens, mut their_cpu) = (0.0, 0.0, 0.0, 0.0);
    let mut identical = 0;
    // The first run of each warms caches and is not counted.
    engine.generate(TextRequest::new("Something else", 1, CONTEXT), &NoWatch)?;
    ask(&mut peer, "Something else", 1, None)?;
    for (question, prompt) in QUESTIONS.iter().zip(&prompts) {
        let start = cpu_seconds();
        let ours = engine.generate(request(prompt), &NoWatch)?;
        our_cpu += cpu_seconds() - start;
        our_tokens += f64::from(ours.tokens);
        let theirs = ask(&mut peer, prompt, TOKENS, None)?;
        their_cpu += theirs.cpu_seconds;
        their_tokens += theirs.pieces.len() as f64;
        let Some((place, rest)) = first_difference(&ours.text, &theirs.pieces) else {
            identical += 1;
            continue;
        };
        let gap = ask(&mut peer, prompt, TOKENS, Some(place))?.margin.unwrap_or(f64::NAN);
        println!(
            "\"{question}\": the texts part at token {place}: the peer has {:?}, we have {:?}; the peer's two best logits stand {gap:.3} apart",
            theirs.pieces.get(place).map_or("", String::as_str),
            rest.chars().take(12).collect::<String>()
        );
    }
    Ok(Beside {
        ours: our_tokens / our_cpu.max(1e-6),
        theirs: their_tokens / their_cpu.max(1e-6),
        identical,
        prompts: QUESTIONS.len(),
    })
}

fn ask(peer: &mut Peer, prompt: &str, tokens: u32, margin_at: Option<usize>) -> Result<Answer, TextError> {
    peer.ask(&serde_json::json!({ "prompt": prompt, "tokens": tokens, "margin_at": margin_at }))
}

/// The first token of `pieces` that does not continue `text` (their number where `text` is longer), and the text from there.
fn first_difference<'a>(text: &'a str, pieces: &[String]) -> Option<(usize, &'a str)> {
    let mut rest = text;
    for (place, piece) in pieces.iter().enumerate() {
        match rest.strip_prefix(piece.as_str()) {
            Some(behind) => rest = behind,
            None => return Some((place, rest)),
        }
    }
    (!rest.is_empty()).then_some((pieces.len(), rest))
}

#[derive(Deserialize)]
struct Answer {
    pieces: Vec<String>,
    cpu_seconds: f64,
    margin: Option<f64>,
}
