//! The promises of this room: forms become results in the wire's shapes, and bad sources become faults.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod backend;
mod bad_input;
mod configuration;
mod crafted;
mod engine;
mod forms;
mod lanes;
mod models;
mod strange;
mod verified;
mod world;
