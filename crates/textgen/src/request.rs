//! What is asked and what is answered, as plain data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sampler::Sampling;

/// One text to continue.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextRequest {
    /// The text so far, special tokens of the model written out. Cut from the left where it is too long.
    pub prompt: String,
    /// Most tokens to write, at least 1.
    pub max_length: u32,
    /// Tokens of prompt and answer together; the prompt is cut to `max_context_length - max_length` tokens.
    pub max_context_length: u32,
    /// How the next token is chosen.
    #[serde(default)]
    pub sampling: Sampling,
    /// Texts that end the answer; see [`Limits`].
    #[serde(default)]
    pub stop: Vec<String>,
    /// Keep the stop text at the end of the answer, as the KoboldAI convention has it. Default true.
    #[serde(default = "yes")]
    pub include_stop: bool,
    /// Never end at the model's end-of-text token. Default false.
    #[serde(default)]
    pub ban_eos: bool,
    /// Start of the random stream; a random one when absent. The same request with the same seed gives the same text.
    #[serde(default)]
    pub seed: Option<u64>,
    /// Changes to the finished text.
    #[serde(default)]
    pub formatting: Formatting,
    /// Fail where the prompt is too long, instead of cutting it. Default false.
    #[serde(default)]
    pub refuse_overflow: bool,
    /// What the answer must look like, whatever the model would rather say.
    #[serde(default)]
    pub constraint: Option<Constraint>,
}

/// A form that every answer keeps to. One that cannot be built is [`crate::TextError::Grammar`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// llama.cpp's grammar language; see [`crate::gbnf`] for its bounds.
    Gbnf(String),
    /// JSON that a schema accepts.
    JsonSchema(serde_json::Value),
}

fn yes() -> bool {
    true
}

impl TextRequest {
    /// A request with every other field at its default.
    pub fn new(prompt: impl Into<String>, max_length: u32, max_context_length: u32) -> Self {
        Self {
            prompt: prompt.into(),
            max_length,
            max_context_length,
            sampling: Sampling::default(),
            stop: Vec::new(),
            include_stop: true,
            ban_eos: false,
            seed: None,
            formatting: Formatting::default(),
            refuse_overflow: false,
            constraint: None,
        }
    }

    /// Puts every value into its range; what cannot be repaired is left out. Never fails.
    pub fn clamped(mut self) -> Self {
        self.max_length = self.max_length.clamp(1, Limits::MAX_LENGTH);
        self.max_context_length = self.max_context_length.clamp(1, Limits::MAX_CONTEXT);
        self.sampling = self.sampling.clamped();
        let mut stop: Vec<String> = Vec::new();
        let mut total_bytes = 0;
        for text in self.stop {
            if stop.len() == Limits::STOPS {
                break;
            }
            // A longer text is left out, not shortened: a shortened one would end answers that nobody wanted ended.
            let fits = text.len() <= Limits::STOP_BYTES && total_bytes + text.len() <= Limits::STOP_TOTAL_BYTES;
            if fits && !text.is_empty() && !stop.contains(&text) {
                total_bytes += text.len();
                stop.push(text);
            }
        }
        self.stop = stop;
        self
    }
}

/// Bounds of a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits;

impl Limits {
    /// Most tokens of one answer.
    pub const MAX_LENGTH: u32 = 16_384;
    /// Most tokens of context.
    pub const MAX_CONTEXT: u32 = 1 << 20;
    /// Most stop texts; more are left out.
    pub const STOPS: usize = 128;
    /// Longest stop text in bytes; longer ones are left out.
    pub const STOP_BYTES: usize = 2_000;
    /// Bytes of all stop texts together.
    pub const STOP_TOTAL_BYTES: usize = 64 << 10;
}

/// Changes to the finished text, each off by default. See [`crate::format`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Formatting {
    /// Cut at the first line end.
    pub single_line: bool,
    /// Cut an unfinished last sentence.
    pub trim_incomplete: bool,
    /// Several line ends in a row become one.
    pub remove_blank_lines: bool,
    /// Remove `#/@%{}+=~|\^<>`.
    pub remove_special: bool,
    /// Put a space in front of the prompt where it does not begin with white space.
    pub add_leading_space: bool,
}

/// The continuation, never with the prompt in it, always whole characters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextAnswer {
    /// The text, formatted.
    pub text: String,
    /// Tokens written, with the end token.
    pub tokens: u32,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt after cutting.
    pub prompt_tokens: u32,
    /// The seed that was used.
    pub seed: u64,
    /// Where the time went.
    pub timings: Timings,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// A stop text was written.
    Stop,
    /// `max_length` tokens were written.
    Length,
    /// The model ended by itself.
    Eos,
}

/// Where the time of one request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timings {
    /// Waiting for a slot.
    pub queued: Duration,
    /// From the slot to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// Prompt tokens that were taken from an earlier or running request with the same beginning.
    pub reused_tokens: u32,
}
