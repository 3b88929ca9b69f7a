//! Reads the parts of a GGUF header, never further than the file goes.

use std::collections::HashSet;
use std::io::{BufReader, Read};

use super::GgufError;

/// A metadata value, as much of it as anybody asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any unsigned or non-negative signed number.
    Unsigned(u64),
    /// A negative number.
    Negative(i64),
    /// A floating-point number.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text of at most 1 MiB (chat templates are the longest).
    Text(String),
    /// A list of whole numbers (or floats and truth values, then without a largest).
    Numbers {
        /// How many.
        len: u64,
        /// Largest, where all are whole and not negative.
        largest: Option<u64>,
    },
    /// A list of texts.
    Texts {
        /// How many.
        len: u64,
        /// Whether no two are alike; only looked at for the vocabulary.
        distinct: bool,
    },
}

/// Longest key; the specification's own limit.
const MAX_KEY_BYTES: u64 = 65_535;
/// Longest single text.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// Longest list; the largest vocabularies have about 300,000 tokens and twice as many merges.
const MAX_LIST: u64 = 1 << 23;

pub(super) struct Reader<R> {
    source: BufReader<R>,
    /// Bytes that the file still holds.
    left: u64,
    position: u64,
    scratch: Vec<u8>,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(source: R, file_bytes: u64) -> Self {
        Self {
            source: BufReader::with_capacity(1 << 18, source),
            left: file_bytes,
            position: 0,
            scratch: Vec::new(),
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self) -> u64 {
        self.position + self.left
    }

    fn fill(&mut self, target: &mut [u8], what: &'static str) -> Result<(), GgufError> {
        self.take(target.len() as u64, what)?;
        self.source.read_exact(target).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => GgufError::Truncated(what),
            _ => GgufError::Io(error),
        })
    }

    fn take(&mut self, bytes: u64, what: &'static str) -> Result<(), GgufError> {
        self.left = self.left.checked_sub(bytes).ok_or(GgufError::Truncated(what))?;
        self.position += bytes;
        Ok(())
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things, refused above `most` or where the file could not hold them at one byte each.
    pub(super) fn count(&mut self, what: &'static str, most: u64) -> Result<u64, GgufError> {
        let count = self.u64(what)?;
        if count > most {
            return Err(GgufError::Invalid(format!("{what} is {count}, more than {most}")));
        }
        if count > self.left {
            return Err(GgufError::Truncated(what));
        }
        Ok(count)
    }

    pub(super) fn text(&mut self, what: &'static str, most: u64) -> Result<String, GgufError> {
        let length = self.count(what, most)?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes).map_err(|_| GgufError::Invalid(format!("{what} is no UTF-8")))
    }

    pub(super) fn key(&mut self) -> Result<String, GgufError> {
        let key = self.text("a metadata key", MAX_KEY_BYTES)?;
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(GgufError::Invalid("a metadata key is empty or no plain ASCII".into()));
        }
        Ok(key)
    }

    pub(super) fn value(&mut self, key: &str) -> Result<Value, GgufError> {
        const WHAT: &str = "a metadata value";
        let kind = self.u32("the type of a metadata value")?;
        match kind {
            8 => self.text(WHAT, MAX_TEXT_BYTES).map(Value::Text),
            9 => self.list(key == "tokenizer.ggml.tokens"),
            _ => self.number(kind),
        }
    }

    fn number(&mut self, kind: u32) -> Result<Value, GgufError> {
        const WHAT: &str = "a number";
        let signed = |number: i64| u64::try_from(number).map_or(Value::Negative(number), Value::Unsigned);
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.array::<1>(WHAT)?[0])),
            1 => signed(i64::from(i8::from_le_bytes(self.array(WHAT)?))),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.array(WHAT)?))),
            3 => signed(i64::from(i16::from_le_bytes(self.array(WHAT)?))),
            4 => Value::Unsigned(u64::from(self.u32(WHAT)?)),
            5 => signed(i64::from(i32::from_le_bytes(self.array(WHAT)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array(WHAT)?))),
            7 => match self.array::<1>(WHAT)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(GgufError::Invalid("a truth value is neither 0 nor 1".into())),
            },
            10 => Value::Unsigned(self.u64(WHAT)?),
            11 => signed(i64::from_le_bytes(self.array(WHAT)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(WHAT)?)),
            _ => return Err(GgufError::Invalid(format!("{kind} is no type of a metadata value"))),
        })
    }

    fn list(&mut self, is_vocabulary: bool) -> Result<Value, GgufError> {
        let kind = self.u32("the type of a list")?;
        let len = self.count("the length of a list", MAX_LIST)?;
        if kind == 9 {
            return Err(GgufError::Invalid("a list within a list".into()));
        }
        if kind == 8 {
            let mut seen = HashSet::new();
            for _ in 0..len {
                let bytes = self.count("a text of a list", MAX_TEXT_BYTES)?;
                if is_vocabulary {
                    let mut text = vec![0; bytes as usize];
                    self.fill(&mut text, "a token of the vocabulary")?;
                    seen.insert(text);
                } else {
                    self.skip(bytes, "a text of a list")?;
                }
            }
            let distinct = is_vocabulary && seen.len() as u64 == len;
            return Ok(Value::Texts { len, distinct });
        }
        let width: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            _ => return Err(GgufError::Invalid(format!("{kind} is no type of a list"))),
        };
        if len * width > self.left {
            return Err(GgufError::Truncated("a list of numbers"));
        }
        // Only short lists (one number per layer) are looked into.
        if len > 4_096 {
            self.skip(len * width, "a list of numbers")?;
            return Ok(Value::Numbers { len, largest: None });
        }
        let mut numbers = Vec::with_capacity(len as usize);
        for _ in 0..len {
            numbers.push(match self.number(kind)? {
                Value::Unsigned(number) => Some(number),
                _ => None,
            });
        }
        let whole: Option<Vec<u64>> = numbers.into_iter().collect();
        Ok(Value::Numbers {
            len,
            largest: whole.and_then(|numbers| numbers.into_iter().max()),
        })
    }

    fn skip(&mut self, bytes: u64, what: &'static str) -> Result<(), GgufError> {
        self.take(bytes, what)?;
        let mut left = bytes;
        self.scratch.resize(1 << 16, 0);
        while left > 0 {
            let part = left.min(self.scratch.len() as u64) as usize;
            self.source
                .read_exact(&mut self.scratch[..part])
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => GgufError::Truncated(what),
                    _ => GgufError::Io(error),
                })?;
            left -= part as u64;
        }
        Ok(())
    }
}
