//! How llama.cpp loads and runs a model.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::plan::{Plan, available_memory};

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

impl LlamaSettings {
    /// Settings for one file, everything else by default.
    pub fn for_model(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            ..Self::default()
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
