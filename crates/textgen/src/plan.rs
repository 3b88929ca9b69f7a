//! What running a model will take, from its header, before anything is loaded.
//!
//! The formulas are llama.cpp's own arithmetic (its cache, the worst graph it reserves, its output rows); `tests/it/plan.rs` holds
//! them against what it reports for a real model.

use serde::Serialize;

use crate::gguf::Header;
use crate::settings::{Flash, LlamaSettings};

/// What running a model will take, computed from its header before anything is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Requests run at once.
    pub slots: u32,
    /// Tokens of each slot.
    pub context_tokens: u32,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Bytes of the key and value cache of all slots, an upper bound.
    pub cache_bytes: u64,
    /// Bytes of intermediate results and of the logits that come out.
    pub compute_bytes: u64,
}

impl Plan {
    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes
            .saturating_add(self.cache_bytes)
            .saturating_add(self.compute_bytes)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        write!(
            f,
            "{} slots of {} tokens: weights {} MiB + cache {} MiB + work space {} MiB = {} MiB",
            self.slots,
            self.context_tokens,
            mib(self.weight_bytes),
            mib(self.cache_bytes),
            mib(self.compute_bytes),
            mib(self.total_bytes())
        )
    }
}

/// Context that "choose for me" stops at.
const DEFAULT_CONTEXT: u32 = 4_096;
/// Smallest context of a slot.
const SMALLEST_CONTEXT: u32 = 256;
/// Cells that llama.cpp rounds a cache up to.
const CACHE_STEP: u64 = 256;
/// Most slots of an owner, and of "choose for me" with a GPU and without.
const MOST_SLOTS: u32 = 64;
const MOST_CHOSEN: [u32; 2] = [8, 4];

impl LlamaSettings {
    /// What this will take for the model of `header` with `free_bytes` of memory on the device; `on_gpu` where the
    /// work is done on one. Slots that were left open are as many as fit into nine tenths of it, at least one.
    pub fn plan(&self, header: &Header, free_bytes: Option<u64>, on_gpu: bool) -> Plan {
        let trained = u32::try_from(header.number("context_length").unwrap_or(0)).unwrap_or(u32::MAX);
        let context_tokens = match self.context_tokens {
            0 => trained.min(DEFAULT_CONTEXT),
            wanted => wanted.min(trained),
        }
        .max(SMALLEST_CONTEXT);
        let of = |slots: u32| self.plan_of(header, slots, context_tokens);
        if self.slots > 0 {
            return of(self.slots.min(MOST_SLOTS));
        }
        let room = free_bytes.map_or(u64::MAX, |free| free / 10 * 9);
        let most = MOST_CHOSEN[usize::from(!on_gpu)];
        let fitting = (2..=most).rev().map(of).find(|plan| plan.total_bytes() <= room);
        fitting.unwrap_or_else(|| of(1))
    }

    fn plan_of(&self, header: &Header, slots: u32, context_tokens: u32) -> Plan {
        let cells = u64::from(context_tokens) * u64::from(slots);
        let cells = cells.next_multiple_of(CACHE_STEP);
        let bits = f64::midpoint(self.cache_keys.bits(), self.cache_values.bits());
        Plan {
            slots,
            context_tokens,
            weight_bytes: header.weight_bytes(),
            cache_bytes: header.cache_bytes_per_token(bits).saturating_mul(cells),
            compute_bytes: self.compute_bytes(header, slots, cells),
        }
    }

    /// What a batch takes: the mask (for each token and cell 16 bits, without flash attention 32) all the way, and besides the
    /// most of three, in 32 bits: at the end a row of logits for each token (llama.cpp reserves them for all) and six of the
    /// embedding, in attention seven of the embedding and without flash attention every head's scores, in feed-forward three of
    /// its width and two of the embedding. What comes out is kept apart, a row of logits for each slot.
    fn compute_bytes(&self, header: &Header, slots: u32, cells: u64) -> u64 {
        let number = |key: &str| header.number(key).unwrap_or(0);
        let batch = u64::from(self.batch()).min(cells);
        let embedding = number("embedding_length");
        let vocabulary = header.vocabulary_size().unwrap_or(0);
        let experts = number("expert_feed_forward_length").saturating_mul(number("expert_used_count"));
        let forward = number("feed_forward_length").max(experts).min(1 << 24);
        let flash = self.flash_attention != Flash::Off;
        let mask_bytes = cells.saturating_mul(if flash { 2 } else { 4 });
        let heads = if flash { 0 } else { number("attention.head_count") };
        // Nothing overflows: widths are at most 2^24, and what is multiplied with a batch or with cells saturates.
        let end_bytes = 4 * (vocabulary + 6 * embedding);
        let attention_bytes = (4 * heads).saturating_mul(cells).saturating_add(4 * 7 * embedding);
        let forward_bytes = 4 * (3 * forward + 2 * embedding);
        let most = end_bytes.max(attention_bytes).max(forward_bytes);
        let rows = mask_bytes.saturating_add(most).saturating_mul(batch);
        rows.saturating_add(u64::from(slots).saturating_mul(4 * vocabulary))
    }
}

/// Memory that this machine can still give, where it says so.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1_024)
}
