//! The promises of the program around a worker.

#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong in a helper fails the test that called it"
)]

mod bad_configuration;
mod configuration;
mod display;
mod echo;
mod help;
mod key;
mod start;
mod state;
mod worker;
