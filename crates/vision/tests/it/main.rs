//! The promises of this room: the numbers of the reference, on tiny models of every architecture.

#[path = "../../src/bin/vision-fidelity/runner.rs"]
mod runner;

mod fidelity;
mod robustness;
mod upscalers;
