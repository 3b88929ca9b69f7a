//! Scribe's engine beside llama.cpp's own server with parallel slots, eight jobs at once on one thread each.

use serde::Deserialize;
use textgen::TextError;

use crate::python::{Package, Peer};
use crate::{JOBS, TOKENS, request, run};

const PACKAGE: Package = Package {
    name: "xllamacpp",
    version: "2026.10.11549",
};
const CONTEXT: u32 = 512;
/// Ours and theirs run in turn, so that what else the machine does meets both.
const ROUNDS: usize = 2;

/// What one side or the other wrote per CPU second with eight jobs at once.
pub struct AtOnce {
    /// Here.
    pub ours: f64,
    /// The server.
    pub theirs: f64,
}

#[derive(Deserialize)]
struct Round {
    tokens: u32,
    cpu_seconds: f64,
}

/// Eight jobs at once here and there; `shared`: with prompts that share their beginning.
pub fn at_once(model: &str, shared: bool) -> Result<AtOnce, TextError> {
    let (mut our_cost, mut their_cost) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        our_cost += 1.0 / run(model, "eight at once", JOBS, shared)?.per_cpu_second;
        // A fresh server, so that it has kept nothing of an earlier round, as ours has not.
        let mut peer = start(model)?;
        let prompts: Vec<String> = (0..JOBS).map(|job| request(job, shared).prompt).collect();
        let round: Round = peer.ask(&serde_json::json!({"prompts": prompts, "tokens": TOKENS, "ignore_eos": true}))?;
        their_cost += round.cpu_seconds / f64::from(round.tokens.max(1));
    }
    let rounds = ROUNDS as f64;
    Ok(AtOnce {
        ours: rounds / our_cost,
        theirs: rounds / their_cost,
    })
}

fn start(model: &str) -> Result<Peer, TextError> {
    let arguments = [model, &CONTEXT.to_string(), &JOBS.to_string()];
    Peer::start(&PACKAGE, include_str!("server.py"), &arguments)
}
