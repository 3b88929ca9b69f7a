//! How llama.cpp loads and runs a model, and what that will take.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::gguf::Header;

/// Settings of the embedded engine. Zero or absent means "choose for me".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlamaSettings {
    /// The GGUF file (of a split model the first part); chosen by whoever loads, not written among the settings.
    #[serde(skip)]
    pub model: PathBuf,
    /// Requests run at once, 1..=64; 0 chooses from memory: up to 8 with a GPU, up to 4 without.
    pub slots: u32,
    /// Tokens of prompt and answer for each slot; 0 takes the model's own, at most 4096.
    pub context_tokens: u32,
    /// Most tokens in one call of llama.cpp, 32..=512.
    pub batch_tokens: u32,
    /// Prompt tokens per call while others wait, 16..=`batch_tokens`; 0 measures what takes half a second.
    pub prefill_tokens: u32,
    /// Threads; 0 takes all cores, at most 16.
    pub threads: u32,
    /// Layers on the GPU; absent means all.
    pub gpu_layers: Option<u32>,
    /// Indices of the devices to use, as llama.cpp lists them; empty means all.
    pub devices: Vec<usize>,
    /// The GPU that holds what is not split.
    pub main_gpu: Option<u32>,
    /// How several GPUs share a model.
    pub split: Split,
    /// Flash attention.
    pub flash_attention: Flash,
    /// Type of cached keys.
    pub cache_keys: CacheType,
    /// Type of cached values; smaller than f16 needs flash attention.
    pub cache_values: CacheType,
    /// Map the file instead of reading it.
    pub mmap: bool,
    /// Keep the model in memory, never in swap.
    pub mlock: bool,
}

/// How several GPUs share a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// One GPU holds all of it.
    None,
    /// Whole layers.
    #[default]
    Layer,
    /// Rows of matrices.
    Row,
}

/// When flash attention is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flash {
    /// Where the device supports it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Type of the numbers in the key and value cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheType {
    /// 32 bits.
    F32,
    /// 16 bits.
    #[default]
    F16,
    /// 16 bits with the range of 32.
    Bf16,
    /// 8.5 bits.
    Q8_0,
    /// 5.5 bits.
    Q5_0,
    /// 4.5 bits.
    Q4_0,
}

impl CacheType {
    /// Bits per cached number, block scales included.
    pub fn bits(self) -> f64 {
        match self {
            Self::F32 => 32.0,
            Self::F16 | Self::Bf16 => 16.0,
            Self::Q8_0 => 8.5,
            Self::Q5_0 => 5.5,
            Self::Q4_0 => 4.5,
        }
    }
}

impl Default for LlamaSettings {
    fn default() -> Self {
        Self {
            model: PathBuf::new(),
            slots: 0,
            context_tokens: 0,
            batch_tokens: 512,
            prefill_tokens: 0,
            threads: 0,
            gpu_layers: None,
            devices: Vec::new(),
            main_gpu: None,
            split: Split::default(),
            flash_attention: Flash::default(),
            cache_keys: CacheType::default(),
            cache_values: CacheType::default(),
            mmap: true,
            mlock: false,
        }
    }
}

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
    /// Bytes of intermediate results, a rough estimate.
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
            "{} slots of {} tokens: weights {} MiB + cache {} MiB + work space about {} MiB = {} MiB",
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

impl LlamaSettings {
    /// Settings for one file, everything else by default.
    pub fn for_model(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            ..Self::default()
        }
    }

    /// What this will take for the model of `header` with `free_bytes` of memory on the device; `on_gpu` where the
    /// work is done on one.
    pub fn plan(&self, header: &Header, free_bytes: Option<u64>, on_gpu: bool) -> Plan {
        let trained = u32::try_from(header.number("context_length").unwrap_or(0)).unwrap_or(u32::MAX);
        let context_tokens = match self.context_tokens {
            0 => trained.min(DEFAULT_CONTEXT),
            wanted => wanted.min(trained),
        }
        .max(SMALLEST_CONTEXT);
        let bits = f64::midpoint(self.cache_keys.bits(), self.cache_values.bits());
        let slot_bytes = header
            .cache_bytes_per_token(bits)
            .saturating_mul(u64::from(context_tokens));
        let weight_bytes = header.weight_bytes();
        let embedding = header.number("embedding_length").unwrap_or(0);
        let vocabulary = header.vocabulary_size().unwrap_or(0);
        // Logits of a batch and about 24 activations of each token, in 32 bits.
        let compute_bytes = u64::from(self.batch()) * 4 * (embedding * 24) + vocabulary * 4 * 64;
        let slots = match self.slots {
            0 => {
                let most: u32 = if on_gpu { 8 } else { 4 };
                let for_cache = free_bytes
                    .map(|free| (free / 10 * 9).saturating_sub(weight_bytes.saturating_add(compute_bytes)))
                    .unwrap_or(u64::MAX);
                let fitting = for_cache / slot_bytes.max(1);
                most.min(u32::try_from(fitting).unwrap_or(u32::MAX)).max(1)
            }
            wanted => wanted.min(64),
        };
        Plan {
            slots,
            context_tokens,
            weight_bytes,
            cache_bytes: slot_bytes.saturating_mul(u64::from(slots)),
            compute_bytes,
        }
    }

    /// Tokens of one batch, within its range.
    pub fn batch(&self) -> u32 {
        self.batch_tokens.clamp(32, 512)
    }

    /// Threads to use.
    pub fn thread_count(&self) -> i32 {
        let cores = std::thread::available_parallelism()
            .map_or(1, std::num::NonZero::get)
            .min(16);
        let threads = if self.threads == 0 {
            cores
        } else {
            self.threads.min(256) as usize
        };
        i32::try_from(threads).unwrap_or(1)
    }
}

/// Memory that this machine can still give, where it says so.
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1_024)
}
