//! Looks at a GGUF file before llama.cpp does, which aborts or allocates without bounds on some broken headers.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little-endian. Every count and
//! length is checked against what the file can hold before anything is allocated for it, every tensor must lie inside
//! the file, and the numbers that llama.cpp divides by or sizes arrays with must be sane.

mod reader;
mod tensors;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use reader::Reader;
pub use reader::Value;
pub use tensors::Tensor;

/// Why a file is not a model we load. The message names the place, never a value of unbounded length.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be read at all.
    #[error("cannot read the file: {0}")]
    Io(#[from] std::io::Error),
    /// It does not begin like a GGUF file.
    #[error("not a GGUF file (it begins with {0:02x?})")]
    NotGguf([u8; 4]),
    /// A version or byte order we do not read.
    #[error("GGUF version {0} is not supported (2 and 3 are)")]
    Version(u32),
    /// It ends in the middle of something.
    #[error("the file ends within {0}: it is incomplete")]
    Truncated(&'static str),
    /// Something in it cannot be true.
    #[error("{0}")]
    Invalid(String),
}

/// What a header says, checked.
#[derive(Debug)]
pub struct Header {
    /// Metadata; long arrays are kept only as their length.
    pub values: HashMap<String, Value>,
    /// Every tensor of the file.
    pub tensors: Vec<Tensor>,
    /// Bytes of the whole file.
    pub file_bytes: u64,
}

/// Most metadata entries of a file; real ones have about 50.
const MAX_VALUES: u64 = 10_000;
/// Most tensors of a file; the largest known have about 3,000.
const MAX_TENSORS: u64 = 100_000;

/// Reads and checks the header of `path`.
pub fn check_file(path: &Path) -> Result<Header, GgufError> {
    let file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    check(file, file_bytes)
}

/// Reads and checks a header from `source`, which holds `file_bytes` bytes.
pub fn check(source: impl std::io::Read, file_bytes: u64) -> Result<Header, GgufError> {
    let mut reader = Reader::new(source, file_bytes);
    let magic = reader.array::<4>("the magic number")?;
    if &magic != b"GGUF" {
        return Err(GgufError::NotGguf(magic));
    }
    let version = reader.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version(version));
    }
    let n_tensors = reader.count("the number of tensors", MAX_TENSORS)?;
    let n_values = reader.count("the number of metadata entries", MAX_VALUES)?;
    let mut values = HashMap::new();
    for _ in 0..n_values {
        let key = reader.key()?;
        let value = reader.value(&key)?;
        if values.insert(key.clone(), value).is_some() {
            return Err(GgufError::Invalid(format!("metadata key `{key}` stands twice")));
        }
    }
    let tensors = tensors::read(&mut reader, n_tensors, alignment(&values)?)?;
    let header = Header {
        values,
        tensors,
        file_bytes,
    };
    header.check_numbers()?;
    Ok(header)
}

fn alignment(values: &HashMap<String, Value>) -> Result<u64, GgufError> {
    match values.get("general.alignment") {
        None => Ok(32),
        Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() && (8..=1 << 20).contains(alignment) => {
            Ok(*alignment)
        }
        Some(_) => Err(GgufError::Invalid(
            "general.alignment is no power of two from 8 to 1048576".into(),
        )),
    }
}

/// Numbers that every text model has, with the range in which llama.cpp neither aborts nor divides by zero.
const RANGES: &[(&str, u64, u64)] = &[
    ("block_count", 1, 512),
    ("context_length", 1, 1 << 28),
    ("embedding_length", 1, 1 << 20),
    ("feed_forward_length", 0, 1 << 24),
    ("attention.head_count", 1, 1 << 14),
    ("attention.head_count_kv", 0, 1 << 14),
    ("attention.key_length", 1, 1 << 16),
    ("attention.value_length", 1, 1 << 16),
    ("attention.sliding_window", 0, 1 << 28),
    ("rope.dimension_count", 0, 1 << 16),
    ("expert_count", 0, 1 << 10),
    ("expert_used_count", 0, 1 << 10),
    ("vocab_size", 1, 1 << 24),
];

/// Architectures in GGUF files that continue no text.
const NOT_TEXT: &[&str] = &[
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "jina-bert-v2",
    "jina-bert-v3",
    "t5",
    "t5encoder",
    "clip",
    "wavtokenizer-dec",
    "whisper",
    "flux",
    "sd1",
    "sdxl",
    "sd3",
    "wan",
    "gemma-embedding",
    "neo-bert",
    "modern-bert",
];

impl Header {
    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// `general.name`, where the file has one.
    pub fn name(&self) -> Option<&str> {
        self.text("general.name")
    }

    /// `tokenizer.chat_template`, where the file has one.
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
    }

    /// A text value.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.values.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A number of the architecture, e.g. `block_count`; of an array (one number per layer) the largest.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.values.get(&format!("{}.{key}", self.architecture()))? {
            Value::Unsigned(number) => Some(*number),
            Value::Numbers { largest, .. } => *largest,
            _ => None,
        }
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary_size(&self) -> Option<u64> {
        match self.values.get("tokenizer.ggml.tokens")? {
            Value::Texts { len, .. } => Some(*len),
            _ => None,
        }
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }

    /// Bytes of key and value cache for one token of context, when each cached number takes `bits_per_number` bits.
    /// An upper bound: layers with a sliding window need less.
    pub fn cache_bytes_per_token(&self, bits_per_number: f64) -> u64 {
        let layers = self.number("block_count").unwrap_or(0);
        let heads = self.number("attention.head_count").unwrap_or(1).max(1);
        let kv_heads = self.number("attention.head_count_kv").unwrap_or(heads);
        let head_length = self.number("embedding_length").unwrap_or(0) / heads;
        let key = self.number("attention.key_length").unwrap_or(head_length);
        let value = self.number("attention.value_length").unwrap_or(head_length);
        let numbers = layers as f64 * kv_heads as f64 * (key + value) as f64;
        (numbers * bits_per_number / 8.0).ceil() as u64
    }

    /// Whether [`Self::cache_bytes_per_token`] is what the cache takes: every layer keeps keys and values of every token.
    pub fn is_cache_exact(&self) -> bool {
        let has = |key: &str| self.number(key).unwrap_or(0) > 0;
        ![
            "attention.sliding_window",
            "attention.kv_lora_rank",
            "full_attention_interval",
            "ssm.state_size",
            "wkv.head_size",
            "shortconv.l_cache",
        ]
        .into_iter()
        .any(has)
    }

    fn check_numbers(&self) -> Result<(), GgufError> {
        let invalid = |message: String| Err(GgufError::Invalid(message));
        let architecture = self.architecture();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if architecture.is_empty() || architecture.len() > 64 || !architecture.chars().all(plain) {
            return invalid("general.architecture is missing or no plain name".into());
        }
        if NOT_TEXT.contains(&architecture) {
            return invalid(format!("a model of architecture `{architecture}` does not write text"));
        }
        if self.tensors.is_empty() {
            return invalid("the file holds no tensors".into());
        }
        for (key, low, high) in RANGES {
            let full = format!("{architecture}.{key}");
            // Of a list (one number per layer) single layers may have none of something.
            let number = match self.values.get(&full) {
                None => continue,
                Some(Value::Unsigned(number)) => *number,
                Some(Value::Numbers {
                    largest: Some(largest), ..
                }) => *largest,
                Some(_) => return invalid(format!("{full} is no whole number")),
            };
            if !(*low..=*high).contains(&number) {
                return invalid(format!("{full} is {number} (from {low} to {high} is possible)"));
            }
        }
        for key in ["block_count", "embedding_length", "context_length"] {
            if self.number(key).is_none() {
                return invalid(format!("{architecture}.{key} is missing"));
            }
        }
        self.check_vocabulary()
    }

    fn check_vocabulary(&self) -> Result<(), GgufError> {
        let invalid = |message: String| Err(GgufError::Invalid(message));
        if self.text("tokenizer.ggml.model").is_none() {
            return invalid("tokenizer.ggml.model is missing: the file holds no tokenizer".into());
        }
        let Some(Value::Texts {
            len: n_tokens,
            distinct,
        }) = self.values.get("tokenizer.ggml.tokens")
        else {
            return invalid("tokenizer.ggml.tokens is missing or no list of texts".into());
        };
        if !distinct {
            return invalid("a token stands twice in the vocabulary".into());
        }
        if *n_tokens == 0 {
            return invalid("the vocabulary is empty".into());
        }
        for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
            match self.values.get(key) {
                None => {}
                Some(Value::Numbers { len, .. }) if len == n_tokens => {}
                Some(_) => return invalid(format!("{key} is no list with one number per token")),
            }
        }
        for (key, value) in &self.values {
            if key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id") {
                match value {
                    // Converters write all ones for "none".
                    Value::Unsigned(id) if id < n_tokens || *id == u64::from(u32::MAX) => {}
                    _ => return invalid(format!("{key} is no token of the vocabulary")),
                }
            }
        }
        Ok(())
    }
}
