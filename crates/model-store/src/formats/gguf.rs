//! Head of a GGUF file, read before llama.cpp sees it: llama.cpp aborts the process on what it does not like.
//!
//! Layout after the specification in ggml's `docs/gguf.md`: magic, version, counts, key-values, tensor descriptions,
//! padding, data. Nothing is stored that is not returned, so memory stays in the kilobytes apart from the tensor list.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use super::Refusal;

/// Most key-value pairs; real files have a few dozen.
const MAX_PAIRS: u64 = 4096;
/// Most tensors.
const MAX_TENSORS: u64 = 20_000;
/// Longest key.
const MAX_KEY_BYTES: u64 = 65_535;
/// Longest text; chat templates take tens of kilobytes.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// Most elements of an array; the largest vocabularies have about 300 000 tokens.
const MAX_ELEMENTS: u64 = 4 << 20;
/// Longest head altogether: vocabulary, merges and scores of the largest models take below 32 MiB.
const MAX_HEAD_BYTES: u64 = 128 << 20;
/// ggml's own limit on tensor names, with the closing zero.
const MAX_NAME_BYTES: u64 = 63;
const MAX_DIMENSIONS: u32 = 4;

/// What the head says that others want to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// `general.architecture`, such as `llama`.
    pub architecture: Option<String>,
    /// `general.name`.
    pub name: Option<String>,
    /// `<architecture>.context_length`: tokens the model was trained for.
    pub context_length: Option<u64>,
    /// `<architecture>.block_count`: layers.
    pub block_count: Option<u64>,
    /// Is there a chat template?
    pub has_chat_template: bool,
    /// Number of tensors.
    pub tensors: u64,
    /// Elements of all tensors: the parameter count.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

/// Reads and checks the head of `path`.
pub fn read_head(path: &Path) -> Result<Head, Refusal> {
    let file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    Reader {
        input: BufReader::with_capacity(1 << 16, file),
        at: 0,
        file_bytes,
    }
    .head()
}

struct Reader {
    input: BufReader<File>,
    at: u64,
    file_bytes: u64,
}

impl Reader {
    fn head(mut self) -> Result<Head, Refusal> {
        if &self.bytes::<4>()? != b"GGUF" {
            return Err(Refusal::Malformed("it does not begin with `GGUF`".into()));
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(Refusal::Malformed(format!("version {version} is not 2 or 3")));
        }
        let n_tensors = self.count("the number of tensors", MAX_TENSORS)?;
        let n_pairs = self.count("the number of key-values", MAX_PAIRS)?;
        let mut head = Head {
            tensors: n_tensors,
            ..Head::default()
        };
        let mut alignment = 32;
        let mut keys = HashSet::new();
        for _ in 0..n_pairs {
            let key = self.text("a key", MAX_KEY_BYTES)?;
            let value = self.value()?;
            match (key.as_str(), value) {
                ("general.alignment", Value::Number(number)) => alignment = number,
                ("general.architecture", Value::Text(text)) => head.architecture = Some(text),
                ("general.name", Value::Text(text)) => head.name = Some(text),
                ("tokenizer.chat_template", _) => head.has_chat_template = true,
                (key, Value::Number(number)) if key.ends_with(".context_length") => head.context_length = Some(number),
                (key, Value::Number(number)) if key.ends_with(".block_count") => head.block_count = Some(number),
                _ => {}
            }
            if !keys.insert(key.clone()) {
                return Err(Refusal::Malformed(format!("key `{}` stands there twice", clip(&key))));
            }
        }
        if !alignment.is_power_of_two() || !(8..=1 << 16).contains(&alignment) {
            return Err(Refusal::Malformed(format!(
                "an alignment of {alignment} is not possible"
            )));
        }
        self.tensors(head, n_tensors, alignment)
    }

    fn tensors(mut self, mut head: Head, n_tensors: u64, alignment: u64) -> Result<Head, Refusal> {
        let mut names = HashSet::new();
        let mut ranges = Vec::new();
        for _ in 0..n_tensors {
            let name = self.text("a tensor's name", MAX_NAME_BYTES)?;
            let fault = |what: &str| Refusal::Malformed(format!("tensor `{}` {what}", clip(&name)));
            let n_dimensions = self.u32()?;
            if n_dimensions > MAX_DIMENSIONS {
                return Err(fault("has too many dimensions"));
            }
            let mut elements = 1u64;
            let mut row = 1u64;
            for dimension in 0..n_dimensions {
                let size = self.u64()?;
                if dimension == 0 {
                    row = size;
                }
                elements = elements
                    .checked_mul(size)
                    .filter(|elements| *elements <= i64::MAX as u64)
                    .ok_or_else(|| fault("is larger than any memory"))?;
            }
            let (block, block_bytes) = type_size(self.u32()?).ok_or_else(|| fault("has an unknown type"))?;
            if !row.is_multiple_of(block) {
                return Err(fault("has rows that are no whole number of blocks"));
            }
            let bytes = (elements / block)
                .checked_mul(block_bytes)
                .ok_or_else(|| fault("is larger than any memory"))?;
            let offset = self.u64()?;
            if !offset.is_multiple_of(alignment) {
                return Err(fault("is not aligned"));
            }
            let end = offset.checked_add(bytes).ok_or_else(|| fault("ends behind any file"))?;
            if !names.insert(name.clone()) {
                return Err(fault("stands there twice"));
            }
            ranges.push((offset, end));
            head.parameters = head.parameters.saturating_add(elements);
            head.tensor_bytes = head.tensor_bytes.saturating_add(bytes);
        }
        let data_start = self.at.next_multiple_of(alignment);
        let data_bytes = self.file_bytes.saturating_sub(data_start);
        ranges.sort_unstable();
        if ranges.windows(2).any(|pair| pair[0].1 > pair[1].0) {
            return Err(Refusal::Malformed("tensors overlap".into()));
        }
        match ranges.last() {
            Some((_, end)) if *end > data_bytes => Err(Refusal::Truncated(format!(
                "tensors take {end} bytes, the file has {data_bytes} for them"
            ))),
            _ => Ok(head),
        }
    }

    fn value(&mut self) -> Result<Value, Refusal> {
        let kind = self.u32()?;
        match kind {
            8 => self.text("a text", MAX_TEXT_BYTES).map(Value::Text),
            9 => {
                let element = self.u32()?;
                let count = self.count("the length of an array", MAX_ELEMENTS)?;
                match (element, scalar_bytes(element)) {
                    (8, _) => {
                        for _ in 0..count {
                            let length = self.count("a text", MAX_TEXT_BYTES)?;
                            self.skip(length)?;
                        }
                    }
                    (_, Some(bytes)) => self.skip(count * bytes)?,
                    (9, None) => return Err(Refusal::Malformed("an array of arrays".into())),
                    _ => return Err(Refusal::Malformed(format!("an array of unknown type {element}"))),
                }
                Ok(Value::Other)
            }
            4 => self.u32().map(|number| Value::Number(number.into())),
            10 => self.u64().map(Value::Number),
            _ => {
                let bytes =
                    scalar_bytes(kind).ok_or_else(|| Refusal::Malformed(format!("a value of unknown type {kind}")))?;
                self.skip(bytes)?;
                Ok(Value::Other)
            }
        }
    }

    fn text(&mut self, what: &'static str, limit: u64) -> Result<String, Refusal> {
        let length = self.count(what, limit)?;
        self.need(length)?;
        let mut bytes = vec![0u8; usize::try_from(length).unwrap_or(usize::MAX)];
        self.input.read_exact(&mut bytes)?;
        self.at += length;
        String::from_utf8(bytes).map_err(|_| Refusal::Malformed(format!("{what} is not UTF-8")))
    }

    fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, Refusal> {
        let found = self.u64()?;
        if found > limit {
            return Err(Refusal::TooMuch { what, found, limit });
        }
        Ok(found)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Refusal> {
        self.need(bytes)?;
        match i64::try_from(bytes) {
            Ok(step) => self.input.seek_relative(step)?,
            Err(_) => drop(self.input.seek(SeekFrom::Start(self.at + bytes))?),
        }
        self.at += bytes;
        Ok(())
    }

    fn need(&self, bytes: u64) -> Result<(), Refusal> {
        let end = self.at.saturating_add(bytes);
        if end > self.file_bytes {
            return Err(Refusal::Truncated(format!(
                "the head ends behind the file's {} bytes",
                self.file_bytes
            )));
        }
        if end > MAX_HEAD_BYTES {
            return Err(Refusal::TooMuch {
                what: "the length of the head",
                found: end,
                limit: MAX_HEAD_BYTES,
            });
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        self.need(N as u64)?;
        let mut bytes = [0u8; N];
        self.input.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.bytes().map(u64::from_le_bytes)
    }
}

enum Value {
    Text(String),
    Number(u64),
    Other,
}

fn scalar_bytes(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// Elements and bytes of one block of a ggml type (`ggml_type` in ggml.h, block structs in ggml-common.h).
pub fn type_size(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),
        1 | 25 | 30 => (1, 2),
        24 => (1, 1),
        27 | 28 => (1, 8),
        2 | 20 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        10 => (256, 84),
        11 | 21 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        16 | 35 => (256, 66),
        17 => (256, 74),
        18 => (256, 98),
        19 => (256, 50),
        22 => (256, 82),
        23 => (256, 136),
        29 => (256, 56),
        34 => (256, 54),
        39 => (32, 17),
        _ => return None,
    })
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
