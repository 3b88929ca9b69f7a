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
    /// A tensor holds what no weight can be.
    #[error("tensor `{key}` holds {what}\nhint: the file is damaged or was made for something else; fetch it again")]
    Values {
        /// Full key.
        key: String,
        /// What it holds.
        what: String,
    },
    /// Tensors that are sound one by one make no network together, or one that computes nothing.
    #[error("the weights make no network: {0}")]
    Misfit(String),
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
    /// The result would have more pixels than are made here, or a side beyond what WebP can say.
    #[error("the result would be too large: {width}x{height} pixels")]
    TooLarge {
        /// Pixels.
        width: u64,
        /// Pixels.
        height: u64,
    },
    /// Even the smallest tiles would hold more than may be held. It may work later, or on another machine.
    #[error(
        "enlarging {width}x{height} pixels holds {} MB at least, and {} MB may be held\nhint: close other programs or take smaller pictures",
        .needed_bytes.div_ceil(1_000_000),
        .room_bytes / 1_000_000
    )]
    NoRoom {
        /// Of the source, in pixels.
        width: u32,
        /// Of the source, in pixels.
        height: u32,
        /// What the smallest tiles would hold.
        needed_bytes: usize,
        /// [`crate::upscale::Tiling::max_bytes`].
        room_bytes: usize,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// The device failed: out of memory, a kernel error.
    #[error("the device failed: {0}")]
    Compute(#[from] candle_core::Error),
}

impl VisionError {
    /// Whether the request itself is at fault: it would fail on every machine and at any time.
    pub fn is_of_request(&self) -> bool {
        matches!(self, Self::Input(_) | Self::TooLarge { .. })
    }
}

/// Shorthand of the room.
pub type Result<T> = std::result::Result<T, VisionError>;

impl From<imaging::SizeError> for VisionError {
    fn from(error: imaging::SizeError) -> Self {
        Self::Input(error.to_string())
    }
}
