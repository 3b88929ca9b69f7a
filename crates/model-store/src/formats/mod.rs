//! The formats weights come in, each checked by its head before any engine's reader sees it.

mod checkpoint;
pub mod convert;
pub mod gguf;
pub mod ncnn;
pub mod onnx;
mod pickle;
pub mod safetensors;
pub mod sandbox;
pub mod tensors;
pub mod words;

use std::path::Path;

/// A file that must not reach an engine, and why.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It could not be read.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is cut off, or its head speaks of more than there is.
    #[error("{0}")]
    Truncated(String),
    /// A count or length beyond what any real file has.
    #[error("{what} is {found}, the limit is {limit}")]
    TooMuch { what: &'static str, found: u64, limit: u64 },
    /// The head contradicts itself or the format.
    #[error("{0}")]
    Malformed(String),
}

/// A format that engines read directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain tensors behind a JSON head.
    Safetensors,
    /// llama.cpp's container.
    Gguf,
}

impl Format {
    /// By the file's extension.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "safetensors" | "sft" => Some(Format::Safetensors),
            "gguf" => Some(Format::Gguf),
            _ => None,
        }
    }

    /// Reads the head of the file in bounded time and memory (50 ms, 32 MiB) and refuses what does not add up.
    pub fn precheck(self, path: &Path) -> Result<(), Refusal> {
        match self {
            Format::Safetensors => safetensors::read_head(path).map(drop),
            Format::Gguf => gguf::read_head(path).map(drop),
        }
    }
}
