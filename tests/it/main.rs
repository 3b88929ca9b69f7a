//! The promises of whole workers, one file each.

mod alchemist;
mod arrows;
mod bad_jobs;
mod bad_models;
mod bad_texts;
mod bridges;
mod chat;
mod dreamer;
mod idle;
#[path = "../../crates/textgen/tests/it/kobold_server.rs"]
mod kobold_server;
#[path = "../../crates/textgen/tests/it/llama_server.rs"]
mod llama_server;
mod loras;
mod post;
mod real_kobold;
mod refusals;
mod safety;
mod safety_failures;
mod safety_ways;
mod scribe;
mod scripted;
