//! What can go wrong inside the room, one variant per thing a caller might treat differently.

/// Why a network could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum VisionError {
    /// The file cannot be read as safetensors.
    #[error("cannot read weights from `{path}`: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// The reader's words.
        reason: String,
    },
    /// The keys belong to no architecture of this room.
    #[error("the weights' keys fit no known {kind} (first key: `{first_key}`)")]
    UnknownArchitecture {
        /// `upscaler`, `face restorer`, …
        kind: &'static str,
        /// In alphabetical order.
        first_key: String,
    },
    /// A tensor the architecture needs is not in the file.
    #[error("the weights have no tensor `{key}`")]
    Missing {
        /// Full key.
        key: String,
    },
    /// A tensor has a shape that the architecture cannot have.
    #[error("tensor `{key}` has shape {shape:?}, but {expected}")]
    Shape {
        /// Full key.
        key: String,
        /// As stored.
        shape: Vec<usize>,
        /// What would fit.
        expected: String,
    },
    /// A side file (configuration, tokenizer, word list) is broken.
    #[error("broken {what}: {reason}")]
    Side {
        /// Which file.
        what: String,
        /// The reader's words.
        reason: String,
    },
    /// The picture or a parameter cannot be worked on.
    #[error("{0}")]
    Input(String),
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The device failed: out of memory, a kernel error.
    #[error("the device failed: {0}")]
    Compute(#[from] candle_core::Error),
}

/// Shorthand of the room.
pub type Result<T> = std::result::Result<T, VisionError>;

impl From<imaging::SizeError> for VisionError {
    fn from(error: imaging::SizeError) -> Self {
        Self::Input(error.to_string())
    }
}
