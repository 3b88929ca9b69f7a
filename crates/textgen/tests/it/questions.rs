//! Ten questions that are answered greedily, by the tests and by the bench beside other builds of llama.cpp.

use std::path::PathBuf;

use textgen::TextRequest;
use textgen::llama::{Flash, LlamaSettings};
use textgen::sampler::Sampling;

/// Tokens of prompt and answer.
pub const CONTEXT: u32 = 512;
/// Most tokens of an answer.
pub const TOKENS: u32 = 48;
/// The questions.
pub const QUESTIONS: [&str; 10] = [
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "How many legs does a spider have?",
    "Explain photosynthesis to a child.",
    "What is the opposite of hot?",
    "Tell me a story about a lighthouse keeper.",
    "List the ingredients of pancakes.",
    "What does a blacksmith do?",
];

/// The questions as the demo model is asked them.
pub fn prompts() -> [String; 10] {
    QUESTIONS.map(|question| format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"))
}

/// One slot on one thread that reads a prompt at once.
pub fn settings(model: impl Into<PathBuf>, flash_attention: Flash) -> LlamaSettings {
    LlamaSettings {
        slots: 1,
        context_tokens: CONTEXT,
        threads: 1,
        prefill_tokens: CONTEXT,
        flash_attention,
        ..LlamaSettings::for_model(model)
    }
}

/// A prompt to be answered greedily.
pub fn request(prompt: &str) -> TextRequest {
    TextRequest {
        sampling: Sampling::greedy(),
        ..TextRequest::new(prompt, TOKENS, CONTEXT)
    }
}
