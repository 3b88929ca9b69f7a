//! The promises of this room: the numbers of the reference, on tiny models of every architecture.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../src/bin/vision-fidelity/runner.rs"]
mod runner;

mod faces;
mod fidelity;
mod hostile;
mod made_up;
mod post;
mod prompts;
mod real;
mod robustness;
mod safety;
mod upscalers;
