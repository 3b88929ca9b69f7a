//! One slot: what of its text is in llama.cpp's cache, and the request it works at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;

use llama_cpp_2::token::LlamaToken;

use super::guide::Guide;
use crate::engine::TextError;
use crate::request::{Finish, TextAnswer, TextRequest, Timings};
use crate::sampler::Chain;
use crate::writer::Writer;

/// A request on its way to the engine's thread.
pub(super) struct Job {
    pub(super) request: TextRequest,
    /// What the answer must keep to.
    pub(super) guide: Option<Guide>,
    pub(super) seed: u64,
    pub(super) reply: Sender<Result<TextAnswer, TextError>>,
    pub(super) shared: Arc<Shared>,
    pub(super) submitted: Instant,
}

/// What the caller and the engine's thread both look at while a request runs.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) cancelled: AtomicBool,
    pub(super) done: AtomicU32,
}

impl Job {
    pub(super) fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::Relaxed)
    }

    pub(super) fn refuse(self, error: TextError) {
        // The caller may have gone; then nobody wants to know.
        let _ = self.reply.send(Err(error));
    }
}

/// One slot. Its number is llama.cpp's sequence id.
pub(super) struct Sequence {
    pub(super) id: i32,
    /// Tokens whose keys and values are cached, from position 0 on; kept after the request for the next one.
    pub(super) cache: Vec<LlamaToken>,
    pub(super) active: Option<Active>,
    /// When it was last given a request, in requests.
    pub(super) used: u64,
}

/// A request that has a slot.
pub(super) struct Active {
    pub(super) job: Job,
    pub(super) prompt: Vec<LlamaToken>,
    /// Another slot computes this beginning at the moment; wait for it instead of computing it again.
    pub(super) follow: Option<Follow>,
    pub(super) chain: Chain,
    pub(super) writer: Writer,
    /// The token that was chosen and has not been given to the model yet.
    pub(super) next: Option<LlamaToken>,
    pub(super) written: u32,
    pub(super) started: Instant,
    pub(super) first_token: Option<Instant>,
    pub(super) reused: usize,
}

/// Whose beginning is waited for, and how much of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Follow {
    /// Index of the other slot.
    pub(super) leader: usize,
    /// Tokens in common.
    pub(super) tokens: usize,
}

impl Sequence {
    pub(super) fn new(id: i32) -> Self {
        Self {
            id,
            cache: Vec::new(),
            active: None,
            used: 0,
        }
    }

    /// Prompt tokens that still have to be computed; none once the text is being written.
    pub(super) fn left_to_prefill(&self) -> usize {
        match &self.active {
            Some(active) if active.next.is_none() => active.prompt.len().saturating_sub(self.cache.len()),
            _ => 0,
        }
    }

    /// Ends the request; the slot is free again.
    pub(super) fn finish(&mut self, result: Result<Finish, TextError>) {
        let Some(active) = self.active.take() else {
            return;
        };
        let now = Instant::now();
        let first_token = active.first_token.unwrap_or(now);
        let answer = result.map(|finish| TextAnswer {
            text: active.writer.finish(),
            tokens: active.written,
            finish,
            prompt_tokens: u32::try_from(active.prompt.len()).unwrap_or(u32::MAX),
            seed: active.job.seed,
            timings: Timings {
                queued: active.started.duration_since(active.job.submitted),
                prefill: first_token.duration_since(active.started),
                decode: now.duration_since(first_token),
                reused_tokens: u32::try_from(active.reused).unwrap_or(u32::MAX),
            },
        });
        // The caller may have gone; then nobody wants to know.
        let _ = active.job.reply.send(answer);
    }
}

/// How many tokens `a` and `b` have in common at their beginnings.
pub(super) fn common(a: &[LlamaToken], b: &[LlamaToken]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}
