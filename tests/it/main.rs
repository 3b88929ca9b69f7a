//! The promises of whole workers, one file each.

mod alchemist;
mod arrows;
mod bad_jobs;
mod bridges;
mod dreamer;
#[path = "../../crates/textgen/tests/it/llama_server.rs"]
mod llama_server;
mod loras;
mod post;
mod refusals;
mod safety;
mod scribe;
