//! The crate's promises.

mod configuration;
mod gate;
mod memory;
mod tiny;
