//! What this crate promises: samplers by reference values, model files by a hostile corpus, engines by real models.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing where it did")]

mod bridge;
mod gguf;
mod grammar;
mod kobold_server;
mod llama_server;
mod models;
#[cfg(feature = "llama")]
mod peer;
#[cfg(feature = "llama")]
mod plain_loop;
mod plan;
mod questions;
mod real_backend;
mod real_kobold;
#[cfg(feature = "llama")]
mod real_model;
mod recorded_kobold;
mod samplers;
mod tiny_gguf;
#[cfg(feature = "llama")]
mod tiny_model;
