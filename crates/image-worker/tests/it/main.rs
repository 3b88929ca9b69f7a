//! The crate's promises.

#![expect(
    clippy::unwrap_used,
    reason = "what goes wrong in a helper fails the test that called it"
)]

mod backend;
mod broken;
mod configuration;
mod gate;
mod memory;
mod tiny;
mod wire;
