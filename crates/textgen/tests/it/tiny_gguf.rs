//! A one-layer llama model in the true file layout, made in memory: for hostile files and for promises that need no wit.

use std::path::Path;

/// A value of the header.
#[derive(Clone)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
    /// Type number and bytes as they shall stand in the file.
    Raw(u32, Vec<u8>),
}

/// A tensor: name, shape, type, numbers.
#[derive(Clone)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub data: Vec<f32>,
}

/// A file before it is written; change what you like.
#[derive(Clone)]
pub struct Gguf {
    pub version: u32,
    pub meta: Vec<(String, Meta)>,
    pub tensors: Vec<TensorSpec>,
}

pub const WIDTH: u64 = 32;
const INNER: u64 = 64;
pub const CONTEXT: u32 = 512;

/// The model; its weights come from a small generator and mean nothing.
pub fn tiny() -> Gguf {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut kinds = vec![2, 3, 3];
    for byte in 0..256 {
        tokens.push(format!("<0x{byte:02X}>"));
        kinds.push(6);
    }
    for letter in 'a'..='z' {
        tokens.push(letter.to_string());
        tokens.push(format!("▁{letter}"));
        kinds.extend([1, 1]);
    }
    let n_tokens = tokens.len() as u64;
    let scores = (0..n_tokens).map(|rank| -(rank as f32)).collect();
    let text = |text: &str| Meta::Text(text.to_owned());
    let meta = vec![
        ("general.architecture", text("llama")),
        ("general.name", text("tiny")),
        ("llama.block_count", Meta::U32(1)),
        ("llama.context_length", Meta::U32(CONTEXT)),
        ("llama.embedding_length", Meta::U32(WIDTH as u32)),
        ("llama.feed_forward_length", Meta::U32(INNER as u32)),
        ("llama.attention.head_count", Meta::U32(2)),
        ("llama.attention.head_count_kv", Meta::U32(2)),
        ("llama.rope.dimension_count", Meta::U32(WIDTH as u32 / 2)),
        ("llama.attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("tokenizer.ggml.model", text("llama")),
        ("tokenizer.ggml.tokens", Meta::Texts(tokens)),
        ("tokenizer.ggml.scores", Meta::Floats(scores)),
        ("tokenizer.ggml.token_type", Meta::Ints(kinds)),
        ("tokenizer.ggml.bos_token_id", Meta::U32(1)),
        ("tokenizer.ggml.eos_token_id", Meta::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Meta::U32(0)),
    ];
    let mut state = 1u64;
    let mut tensor = |name: &str, shape: &[u64]| {
        let count = shape.iter().product::<u64>();
        let data = (0..count)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                if shape.len() == 1 {
                    1.0
                } else {
                    ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.6
                }
            })
            .collect();
        TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            kind: 0,
            data,
        }
    };
    let tensors = vec![
        tensor("token_embd.weight", &[WIDTH, n_tokens]),
        tensor("blk.0.attn_norm.weight", &[WIDTH]),
        tensor("blk.0.attn_q.weight", &[WIDTH, WIDTH]),
        tensor("blk.0.attn_k.weight", &[WIDTH, WIDTH]),
        tensor("blk.0.attn_v.weight", &[WIDTH, WIDTH]),
        tensor("blk.0.attn_output.weight", &[WIDTH, WIDTH]),
        tensor("blk.0.ffn_norm.weight", &[WIDTH]),
        tensor("blk.0.ffn_gate.weight", &[WIDTH, INNER]),
        tensor("blk.0.ffn_up.weight", &[WIDTH, INNER]),
        tensor("blk.0.ffn_down.weight", &[INNER, WIDTH]),
        tensor("output_norm.weight", &[WIDTH]),
        tensor("output.weight", &[WIDTH, n_tokens]),
    ];
    Gguf {
        version: 3,
        meta: meta.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        tensors,
    }
}

impl Gguf {
    /// With another value of `key`.
    pub fn with(mut self, key: &str, value: Meta) -> Self {
        self.meta.retain(|(name, _)| name != key);
        self.meta.push((key.to_owned(), value));
        self
    }

    /// Without `key`.
    pub fn without(mut self, key: &str) -> Self {
        self.meta.retain(|(name, _)| name != key);
        self
    }

    /// The file, and how many of its bytes are header.
    pub fn bytes(&self) -> (Vec<u8>, usize) {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.meta.len() as u64).to_le_bytes());
        for (key, value) in &self.meta {
            text(&mut out, key);
            meta(&mut out, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            for size in &tensor.shape {
                out.extend(size.to_le_bytes());
            }
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (tensor.data.len() as u64 * 4).next_multiple_of(32);
        }
        let header = out.len();
        out.resize(out.len().next_multiple_of(32), 0);
        for tensor in &self.tensors {
            out.extend(tensor.data.iter().flat_map(|number| number.to_le_bytes()));
            out.resize(out.len().next_multiple_of(32), 0);
        }
        (out, header)
    }

    /// Writes the file.
    #[cfg(feature = "llama")]
    pub fn write(&self, path: &Path) {
        std::fs::write(path, self.bytes().0).unwrap();
    }
}

#[cfg(not(feature = "llama"))]
const _: fn(&Path) = |_| {};

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn meta(out: &mut Vec<u8>, value: &Meta) {
    let list = |out: &mut Vec<u8>, kind: u32, len: usize| {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Meta::U32(number) => {
            out.extend(4u32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Meta::F32(number) => {
            out.extend(6u32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Meta::Text(value) => {
            out.extend(8u32.to_le_bytes());
            text(out, value);
        }
        Meta::Texts(values) => {
            list(out, 8, values.len());
            values.iter().for_each(|value| text(out, value));
        }
        Meta::Floats(values) => {
            list(out, 6, values.len());
            out.extend(values.iter().flat_map(|number| number.to_le_bytes()));
        }
        Meta::Ints(values) => {
            list(out, 5, values.len());
            out.extend(values.iter().flat_map(|number| number.to_le_bytes()));
        }
        Meta::Raw(kind, bytes) => {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        }
    }
}
