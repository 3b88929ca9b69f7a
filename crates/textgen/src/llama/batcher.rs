//! Continuous batching: requests join and leave between two calls of llama.cpp.
//!
//! Every turn of the loop builds one batch: the next token of every slot that writes, then as many prompt tokens of the
//! others as fit. A prompt that begins like something a slot still has in its cache takes over that beginning; one that
//! begins like a prompt being computed right now waits for it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use llama_cpp_2::DecodeError;
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;

use super::sequence::{Active, Follow, Job, Sequence, common};
use super::vocabulary::{Vocabulary, number};
use crate::engine::TextError;
use crate::request::Finish;
use crate::sampler::{Chain, NoCandidate};
use crate::writer::Writer;

/// A beginning shorter than this is not worth taking over or waiting for.
const WORTH_SHARING: usize = 16;

pub(super) struct Batcher<'m> {
    pub(super) context: LlamaContext<'m>,
    pub(super) vocabulary: Vocabulary<'m>,
    pub(super) jobs: Receiver<Job>,
    pub(super) sequences: Vec<Sequence>,
    pub(super) batch: LlamaBatch<'static>,
    pub(super) limits: BatchLimits,
    waiting: VecDeque<Job>,
    requests: u64,
}

/// Sizes that stay as they are while the engine runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct BatchLimits {
    /// Tokens of each slot.
    pub(super) context_tokens: usize,
    /// Most tokens of one batch.
    pub(super) batch_tokens: usize,
    /// Most prompt tokens of one batch.
    pub(super) prefill_tokens: usize,
    /// Whether a part of a cache can be kept and copied (recurrent models cannot).
    pub(super) can_share: bool,
}

impl<'m> Batcher<'m> {
    pub(super) fn new(
        context: LlamaContext<'m>,
        vocabulary: Vocabulary<'m>,
        jobs: Receiver<Job>,
        slots: u32,
        limits: BatchLimits,
    ) -> Self {
        let slots = i32::try_from(slots).unwrap_or(1).max(1);
        Self {
            context,
            vocabulary,
            jobs,
            sequences: (0..slots).map(Sequence::new).collect(),
            batch: LlamaBatch::new(limits.batch_tokens, slots),
            limits,
            waiting: VecDeque::new(),
            requests: 0,
        }
    }

    /// Serves requests until nobody can send any more.
    pub(super) fn run(&mut self) {
        while self.collect() {
            self.drop_cancelled();
            self.admit();
            let rows = self.fill_batch();
            if self.batch.n_tokens() == 0 {
                continue;
            }
            match self.context.decode(&mut self.batch) {
                Ok(()) => self.advance(&rows),
                Err(error) => self.fail_batch(&error),
            }
        }
    }

    /// Takes in new requests; waits for one when there is nothing to do. False when the engine is to end.
    fn collect(&mut self) -> bool {
        let idle = self.waiting.is_empty() && self.sequences.iter().all(|sequence| sequence.active.is_none());
        if idle {
            match self.jobs.recv() {
                Ok(job) => self.waiting.push_back(job),
                Err(_) => return false,
            }
        }
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.waiting.push_back(job),
                // What is running is finished first.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn drop_cancelled(&mut self) {
        for sequence in &mut self.sequences {
            if sequence.active.as_ref().is_some_and(|active| active.job.is_cancelled()) {
                sequence.finish(Err(TextError::Cancelled));
            }
        }
        for _ in 0..self.waiting.len() {
            match self.waiting.pop_front() {
                Some(job) if job.is_cancelled() => job.refuse(TextError::Cancelled),
                Some(job) => self.waiting.push_back(job),
                None => break,
            }
        }
    }

    fn admit(&mut self) {
        while self.sequences.iter().any(|sequence| sequence.active.is_none()) {
            let Some(job) = self.waiting.pop_front() else {
                return;
            };
            match self.prompt_of(&job) {
                Ok(prompt) => self.place(job, prompt),
                Err(error) => job.refuse(error),
            }
        }
    }

    /// The job's prompt, cut so that the answer fits behind it.
    fn prompt_of(&self, job: &Job) -> Result<Vec<LlamaToken>, TextError> {
        let answer = job.request.max_length as usize;
        let slot = self.limits.context_tokens;
        let room = slot.checked_sub(answer).filter(|room| *room > 0).ok_or_else(|| {
            TextError::Overflow(format!(
                "an answer of {answer} tokens leaves no room for a prompt in {slot} tokens"
            ))
        })?;
        // A request whose own context is no larger than its answer contradicts itself: it gets what the slot has.
        let wanted = (job.request.max_context_length as usize)
            .checked_sub(answer)
            .filter(|wanted| *wanted > 0);
        self.vocabulary
            .prompt(&job.request, wanted.map_or(room, |wanted| wanted.min(room)))
    }

    /// Gives the job a slot, with as much of its prompt taken over from the caches as can be.
    fn place(&mut self, job: Job, prompt: Vec<LlamaToken>) {
        self.requests += 1;
        // The last token is always computed: its logits are needed.
        let reach = &prompt[..prompt.len() - 1];
        let (source, kept) = self.longest_cached(reach);
        let follow = self
            .longest_coming(reach)
            .filter(|follow| follow.tokens >= kept + WORTH_SHARING);
        let in_place = kept > 0 && follow.is_none() && self.sequences[source].active.is_none();
        let target = if in_place { source } else { self.idle_longest_unused() };
        let tokens = if follow.is_some() {
            self.clear(target);
            0
        } else {
            self.take_over(source, target, kept)
        };
        let request = &job.request;
        let history: Vec<u32> = prompt.iter().copied().filter_map(number).collect();
        let mut chain = Chain::new(request.sampling.clone(), job.seed, &history);
        if request.sampling.dry.multiplier > 0.0 {
            chain = chain.with_breakers(self.vocabulary.holding(&request.sampling.dry.breakers));
        }
        // A form that is complete must be able to end.
        if request.ban_eos && job.guide.is_none() {
            chain = chain.with_banned(self.vocabulary.ends());
        }
        let writer = Writer::new(request);
        let sequence = &mut self.sequences[target];
        sequence.used = self.requests;
        sequence.active = Some(Active {
            job,
            prompt,
            follow,
            chain,
            writer,
            next: None,
            written: 0,
            started: Instant::now(),
            first_token: None,
            reused: tokens,
        });
    }

    /// The slot whose cache begins most like `prompt`, and how many tokens of it can be used.
    fn longest_cached(&self, prompt: &[LlamaToken]) -> (usize, usize) {
        let best = (0..self.sequences.len())
            .map(|index| (index, common(&self.sequences[index].cache, prompt)))
            .max_by_key(|(index, tokens)| (*tokens, self.sequences[*index].active.is_none()))
            .unwrap_or((0, 0));
        // Where a sliding window has dropped the beginning it cannot be shared.
        let whole = |index: usize| self.context.kv_cache_seq_pos_min(self.sequences[index].id) == 0;
        if !self.limits.can_share || best.1 < WORTH_SHARING || !whole(best.0) {
            return (best.0, 0);
        }
        best
    }

    /// The slot that is computing a prompt which begins most like `prompt`.
    fn longest_coming(&self, prompt: &[LlamaToken]) -> Option<Follow> {
        if !self.limits.can_share {
            return None;
        }
        let coming = self
            .sequences
            .iter()
            .enumerate()
            .filter(|(_, sequence)| sequence.left_to_prefill() > 0);
        coming
            .filter_map(|(leader, sequence)| {
                let tokens = common(&sequence.active.as_ref()?.prompt, prompt);
                Some(Follow { leader, tokens })
            })
            .max_by_key(|follow| follow.tokens)
    }

    fn idle_longest_unused(&self) -> usize {
        let idle = (0..self.sequences.len()).filter(|index| self.sequences[*index].active.is_none());
        idle.min_by_key(|index| (!self.sequences[*index].cache.is_empty(), self.sequences[*index].used))
            .expect("a slot is placed only where one is idle")
    }

    /// Makes the cache of `target` the first `tokens` of the cache of `source`; returns how many it holds then.
    fn take_over(&mut self, source: usize, target: usize, tokens: usize) -> usize {
        let (from, to) = (self.sequences[source].id, self.sequences[target].id);
        let end = u32::try_from(tokens).unwrap_or(0);
        let done = if tokens == 0 {
            false
        } else if source == target {
            self.context.kv_cache_seq_rm(to, Some(end), None).is_ok()
        } else {
            self.clear(target);
            self.context.kv_cache_seq_cp(from, to, Some(0), Some(end)).is_ok()
        };
        if !done {
            self.clear(target);
            return 0;
        }
        let cache = self.sequences[source].cache[..tokens].to_vec();
        self.sequences[target].cache = cache;
        tokens
    }

    fn clear(&mut self, target: usize) {
        let sequence = &mut self.sequences[target];
        sequence.cache.clear();
        // Removing a whole sequence cannot fail; a positive result is all that can come.
        let _ = self.context.kv_cache_seq_rm(sequence.id, None, None);
    }

    /// Ends the waiting of slots whose beginning has been computed meanwhile, or will not be.
    fn resolve_followers(&mut self) {
        for index in 0..self.sequences.len() {
            let Some(active) = &self.sequences[index].active else {
                continue;
            };
            let Some(follow) = active.follow else {
                continue;
            };
            let leader = &self.sequences[follow.leader];
            let prompt = &active.prompt[..follow.tokens];
            let ready = common(&leader.cache, prompt);
            let coming = leader.left_to_prefill() > 0
                && leader
                    .active
                    .as_ref()
                    .is_some_and(|leading| common(&leading.prompt, prompt) == follow.tokens);
            if ready < follow.tokens && coming {
                continue;
            }
            let tokens = if ready >= WORTH_SHARING {
                self.take_over(follow.leader, index, ready)
            } else {
                0
            };
            if let Some(active) = &mut self.sequences[index].active {
                active.follow = None;
                active.reused = tokens;
            }
        }
    }

    /// Fills the batch; returns which slot's logits stand in which row.
    fn fill_batch(&mut self) -> Vec<(usize, i32)> {
        self.resolve_followers();
        self.batch.clear();
        let mut rows = Vec::with_capacity(self.sequences.len());
        for (index, sequence) in self.sequences.iter_mut().enumerate() {
            let Some(token) = sequence.active.as_mut().and_then(|active| active.next.take()) else {
                continue;
            };
            let row = self.batch.n_tokens();
            push(&mut self.batch, sequence, token, true);
            rows.push((index, row));
        }
        let writing = rows.len();
        let mut room = self
            .limits
            .batch_tokens
            .saturating_sub(writing)
            .min(self.limits.prefill_tokens);
        let mut prefilling: Vec<usize> = (0..self.sequences.len())
            .filter(|index| {
                let sequence = &self.sequences[*index];
                let waits = sequence.active.as_ref().is_none_or(|active| active.follow.is_some());
                !waits && sequence.left_to_prefill() > 0 && !rows.iter().any(|(writer, _)| writer == index)
            })
            .collect();
        // Short prompts first: they get out of the way, and a long one still gets its share of every batch.
        prefilling.sort_by_key(|index| self.sequences[*index].left_to_prefill());
        for (place, index) in prefilling.iter().enumerate() {
            let share = room.div_ceil(prefilling.len() - place);
            let sequence = &mut self.sequences[*index];
            let part = sequence.left_to_prefill().min(share);
            for _ in 0..part {
                let Some(active) = &sequence.active else {
                    break;
                };
                let at = sequence.cache.len();
                let (token, last) = (active.prompt[at], at + 1 == active.prompt.len());
                if last {
                    rows.push((*index, self.batch.n_tokens()));
                }
                push(&mut self.batch, sequence, token, last);
            }
            room -= part;
        }
        rows
    }

    /// Chooses the next token of every slot whose logits were computed.
    fn advance(&mut self, rows: &[(usize, i32)]) {
        for (index, row) in rows {
            let logits = self.context.get_logits_ith(*row);
            let sequence = &mut self.sequences[*index];
            let Some(active) = &mut sequence.active else {
                continue;
            };
            let (token, is_complete) = match choose(active, logits) {
                Ok(chosen) => chosen,
                Err(error) => {
                    sequence.finish(Err(error));
                    // Whatever made these numbers may be in the cache.
                    self.clear(*index);
                    continue;
                }
            };
            active.first_token.get_or_insert_with(Instant::now);
            active.written += 1;
            active.job.shared.done.store(active.written, Ordering::Relaxed);
            let finish = if self.vocabulary.is_end(token) {
                Some(Finish::Eos)
            } else {
                let token = LlamaToken(i32::try_from(token).unwrap_or(0));
                let mut piece = Vec::with_capacity(16);
                self.vocabulary.piece(token, &mut piece);
                active.next = Some(token);
                if active.writer.push(&piece) {
                    Some(Finish::Stop)
                } else if is_complete {
                    Some(Finish::Eos)
                } else {
                    (active.written >= active.job.request.max_length).then_some(Finish::Length)
                }
            };
            if let Some(finish) = finish {
                sequence.finish(Ok(finish));
                if !self.limits.can_share {
                    self.clear(*index);
                }
            }
        }
    }

    /// A batch could not be computed: what was in it is not known any more, and its requests fail.
    fn fail_batch(&mut self, error: &DecodeError) {
        tracing::warn!(%error, "llama.cpp could not compute a batch");
        for index in 0..self.sequences.len() {
            self.sequences[index].finish(Err(TextError::Failed(error.to_string())));
            self.clear(index);
        }
    }
}

/// The next token of a request, and whether its form is complete with it.
fn choose(active: &mut Active, logits: &[f32]) -> Result<(u32, bool), TextError> {
    let failed = |error: NoCandidate| TextError::Failed(error.to_string());
    let Some(guide) = &mut active.job.guide else {
        return Ok((active.chain.choose(logits).map_err(failed)?, false));
    };
    let allowed = guide.allowed()?;
    let is_allowed = |token: u32| (token as usize) < allowed.len() && allowed.is_allowed(token);
    let token = active.chain.choose_among(logits, is_allowed).map_err(failed)?;
    Ok((token, guide.accept(token)?))
}

/// Adds a token at the end of the sequence, in the batch and in what its cache will hold.
fn push(batch: &mut LlamaBatch<'static>, sequence: &mut Sequence, token: LlamaToken, logits: bool) {
    let position = i32::try_from(sequence.cache.len()).expect("a context is shorter than 2^31");
    batch
        .add(token, position, &[sequence.id], logits)
        .expect("the batch holds what its limits allow");
    sequence.cache.push(token);
}
