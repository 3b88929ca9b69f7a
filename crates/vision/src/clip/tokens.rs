//! Words to CLIP's tokens.

use std::path::Path;

use tokenizers::Tokenizer;

use crate::error::{Result, VisionError};

/// The one tokenizer of all of OpenAI's weights; one copy serves the whole house.
const OPENAI: &[u8] = include_bytes!("../../../diffusion/assets/clip_tokenizer.json");

/// CLIP's byte-pair tokenizer, from a `tokenizer.json`.
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    start: u32,
    end: u32,
}

impl ClipTokenizer {
    /// That of OpenAI's weights.
    pub fn openai() -> Result<Self> {
        Self::from_bytes(OPENAI)
    }

    /// The one beside weights, or else that of OpenAI's.
    pub fn beside(weights: &Path) -> Result<Self> {
        let path = weights.with_file_name("tokenizer.json");
        if path.is_file() {
            Self::open(&path)
        } else {
            Self::openai()
        }
    }

    /// Reads a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let broken = |reason: String| VisionError::Side {
            what: format!("tokenizer `{}`", path.display()),
            reason,
        };
        let bytes = std::fs::read(path).map_err(|e| broken(e.to_string()))?;
        Self::from_bytes(&bytes).map_err(|e| broken(e.to_string()))
    }

    /// The same from memory.
    pub fn from_bytes(json: &[u8]) -> Result<Self> {
        let broken = |reason: String| VisionError::Side {
            what: "CLIP tokenizer".into(),
            reason,
        };
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(|e| broken(e.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| broken(e.to_string()))?;
        let special = |token: &str| {
            tokenizer
                .token_to_id(token)
                .ok_or_else(|| broken(format!("it has no token `{token}`")))
        };
        let (start, end) = (special("<|startoftext|>")?, special("<|endoftext|>")?);
        Ok(Self { tokenizer, start, end })
    }

    /// Start token, words, end token, at most `context_len` in all (the end token is always kept).
    pub fn encode(&self, text: &str, context_len: usize) -> Result<Vec<u32>> {
        let encoded = self
            .tokenizer
            .encode(text, false)
            .map_err(|e| VisionError::Input(format!("the text cannot be tokenized: {e}")))?;
        let room = context_len.saturating_sub(2);
        let words = encoded.get_ids().iter().copied().take(room);
        Ok([self.start].into_iter().chain(words).chain([self.end]).collect())
    }
}
