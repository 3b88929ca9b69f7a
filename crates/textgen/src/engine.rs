//! The seam between whoever brings requests and whatever makes text.

use crate::chat::ChatTemplate;
use crate::request::{TextAnswer, TextRequest};

/// Something that continues text. One engine serves up to [`EngineFacts::slots`] requests at once.
pub trait TextEngine: Send + Sync {
    /// What it serves at the moment; a bridge asks its backend again when the answer is old.
    ///
    /// # Errors
    /// Says in words for the owner why nothing can be served now (a backend that is down, or busy with its owner).
    fn facts(&self) -> Result<EngineFacts, TextError>;

    /// Continues `request.prompt`. Blocks until the text is complete, looks at `watch` at least every 200 ms.
    fn generate(&self, request: TextRequest, watch: &dyn Watch) -> Result<TextAnswer, TextError>;
}

/// What an engine tells of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineFacts {
    /// The model's own name, as the file or the backend gives it.
    pub model: String,
    /// The other program and its version, where it says them, such as `KoboldCpp 1.76`.
    pub program: Option<String>,
    /// Tokens of prompt and answer together that one request may use.
    pub context_tokens: u32,
    /// Longest answer the engine allows, where it has a limit of its own.
    pub max_length: Option<u32>,
    /// Requests it runs at once, at least 1.
    pub slots: usize,
    /// How its model takes conversations, where that is known.
    pub chat: Option<ChatTemplate>,
}

/// How a caller follows a running request and ends it early.
pub trait Watch: Sync {
    /// `done` of at most `total` tokens are written.
    fn progress(&self, done: u32, total: u32);
    /// True once the text is not wanted any more.
    fn is_cancelled(&self) -> bool;
}

/// For callers who only wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWatch;

impl Watch for NoWatch {
    fn progress(&self, _done: u32, _total: u32) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Why there is no text. Messages never hold a prompt or an answer.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// The caller asked to stop.
    #[error("the request was cancelled")]
    Cancelled,
    /// This request cannot be served by this engine; others can.
    #[error("the request does not fit: {0}")]
    Unfit(String),
    /// Its prompt and answer are longer than the context that it or the engine has; others can be served.
    #[error("the request does not fit: {0}")]
    Overflow(String),
    /// The grammar or schema of the request cannot be kept to; others can be served.
    #[error("the grammar cannot be used: {0}")]
    Grammar(String),
    /// The engine failed at this request (numbers that are none, a full cache).
    #[error("the engine failed: {0}")]
    Failed(String),
    /// No engine is there any more: its thread has ended or its backend does not answer.
    #[error("the engine is not available: {0}")]
    Unavailable(String),
    /// The model file is missing or not acceptable.
    #[error("the model cannot be used: {0}")]
    Model(String),
}
