//! The promises of this room: forms become results in the wire's shapes, and bad sources become faults.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod backend;
mod configuration;
mod engine;
