//! Text engines behind one seam: llama.cpp with continuous batching, or a server somebody already runs. Knows no Horde.
//!
//! [`TextEngine`] is the seam; [`TextRequest`] goes in, [`TextAnswer`] comes out. `llama` (feature `llama`) runs a
//! GGUF file inside this process.
//! [`sampler`] holds every sampler as a tested function over logits, [`gguf`] looks at a model file before
//! llama.cpp does.

pub mod bridge;
pub mod chat;
mod engine;
pub mod format;
pub mod gbnf;
pub mod gguf;
#[cfg(feature = "llama")]
pub mod llama;
mod plan;
mod request;
pub mod sampler;
pub mod settings;
pub mod stop;
pub mod utf8;
mod writer;

pub use engine::{EngineFacts, NoWatch, TextEngine, TextError, Watch};
pub use request::{Constraint, Finish, Formatting, Limits, TextAnswer, TextRequest, Timings};
