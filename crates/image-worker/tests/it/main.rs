//! The promises of the image worker.

mod configuration;
mod gate;
