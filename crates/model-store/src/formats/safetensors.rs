//! Head of a safetensors file, read with limits of our own.
//!
//! The crate's reader takes 795 MB for a 53 MB head; here the head is at most 4 MiB with at most 20 000 tensors, and
//! the tensors must tile the file exactly: no overlap, no hole, no byte behind the last one.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::Refusal;

/// Longest head in bytes. The largest published image models stay below 1 MiB.
pub const MAX_HEAD_BYTES: u64 = 4 << 20;
/// Most tensors.
pub const MAX_TENSORS: usize = 20_000;
const MAX_DIMENSIONS: usize = 8;
const MAX_METADATA: usize = 1000;

/// What the head says, checked against the file's length.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorHead>,
    /// `__metadata__`, whatever the maker put there.
    pub metadata: BTreeMap<String, String>,
    /// Where tensor bytes begin in the file.
    pub data_start: u64,
}

/// One tensor as the head describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorHead {
    /// `F32`, `F16`, `BF16`, …
    pub dtype: String,
    /// Sizes, outermost first.
    pub shape: Vec<u64>,
    /// Byte range behind `data_start`.
    pub range: (u64, u64),
}

/// Reads and checks the head of `path`.
pub fn read_head(path: &Path) -> Result<Head, Refusal> {
    let mut file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    let mut length = [0u8; 8];
    if file_bytes < 8 {
        return Err(Refusal::Truncated(format!(
            "{file_bytes} bytes are no safetensors file"
        )));
    }
    file.read_exact(&mut length)?;
    let head_bytes = u64::from_le_bytes(length);
    if head_bytes > MAX_HEAD_BYTES {
        return Err(Refusal::TooMuch {
            what: "the length of the head",
            found: head_bytes,
            limit: MAX_HEAD_BYTES,
        });
    }
    let data_start = 8 + head_bytes;
    if data_start > file_bytes {
        return Err(Refusal::Truncated(format!(
            "the head is {head_bytes} bytes long, the file {file_bytes}"
        )));
    }
    let mut head = vec![0u8; usize::try_from(head_bytes).unwrap_or(usize::MAX)];
    file.read_exact(&mut head)?;
    parse_head(&head, file_bytes - data_start).map(|head| Head { data_start, ..head })
}

/// Checks a head against the number of bytes that follow it.
pub fn parse_head(head: &[u8], data_bytes: u64) -> Result<Head, Refusal> {
    let Raw { tensors, metadata } =
        serde_json::from_slice(head).map_err(|e| Refusal::Malformed(format!("the head is no JSON: {e}")))?;
    let mut ranges = Vec::with_capacity(tensors.len());
    for (name, tensor) in &tensors {
        let fault = |what: &str| Refusal::Malformed(format!("tensor `{}` {what}", clip(name)));
        let bits = dtype_bits(&tensor.dtype).ok_or_else(|| fault("has an unknown type"))?;
        if tensor.shape.0.len() > MAX_DIMENSIONS {
            return Err(fault("has too many dimensions"));
        }
        let elements = tensor
            .shape
            .0
            .iter()
            .try_fold(1u64, |product, size| product.checked_mul(*size));
        let bits = elements
            .and_then(|elements| elements.checked_mul(bits))
            .ok_or_else(|| fault("is larger than any memory"))?;
        let (start, end) = tensor.data_offsets;
        if !bits.is_multiple_of(8) || end.checked_sub(start) != Some(bits / 8) {
            return Err(fault("does not fill its byte range"));
        }
        ranges.push((start, end));
    }
    ranges.sort_unstable();
    let mut at = 0;
    for (start, end) in ranges {
        if start != at {
            return Err(Refusal::Malformed(format!(
                "tensors {} at byte {at}",
                if start < at { "overlap" } else { "leave a hole" }
            )));
        }
        at = end;
    }
    if at != data_bytes {
        return Err(Refusal::Truncated(format!(
            "tensors take {at} bytes, the file has {data_bytes} for them"
        )));
    }
    let tensors = tensors.into_iter().map(|(name, raw)| {
        let tensor = TensorHead {
            dtype: raw.dtype.into_owned(),
            shape: raw.shape.0,
            range: raw.data_offsets,
        };
        (name.into_owned(), tensor)
    });
    Ok(Head {
        tensors: tensors.collect(),
        metadata,
        data_start: 0,
    })
}

/// Bits of one element; 4-bit types are packed by two.
pub fn dtype_bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

struct Raw<'a> {
    tensors: Vec<(Cow<'a, str>, RawTensor<'a>)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape that stops reading behind its ninth size, so that a head of digits costs nothing.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Sizes;
        impl<'de> Visitor<'de> for Sizes {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of at most 8 sizes")
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut sizes = Vec::new();
                while let Some(size) = seq.next_element()? {
                    if sizes.len() == MAX_DIMENSIONS {
                        return Err(serde::de::Error::custom("a shape with more than 8 dimensions"));
                    }
                    sizes.push(size);
                }
                Ok(Shape(sizes))
            }
        }
        deserializer.deserialize_seq(Sizes)
    }
}

/// Texts by name, as the format has it: other values could be as large as a head and many times that in memory.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Metadata;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("metadata of texts")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let (mut texts, mut n_entries) = (BTreeMap::new(), 0);
                while let Some((key, text)) = map.next_entry()? {
                    n_entries += 1;
                    if n_entries > MAX_METADATA {
                        return Err(serde::de::Error::custom("overloaded with metadata"));
                    }
                    texts.insert(key, text);
                }
                Ok(Metadata(texts))
            }
        }
        deserializer.deserialize_map(Texts)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<'a>(std::marker::PhantomData<&'a ()>);
        impl<'de: 'a, 'a> Visitor<'de> for Entries<'a> {
            type Value = Raw<'a>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw<'a>, A::Error> {
                use serde::de::Error;
                let mut raw = Raw {
                    tensors: Vec::new(),
                    metadata: BTreeMap::new(),
                };
                let mut seen: HashSet<Cow<'a, str>> = HashSet::new();
                while let Some(Name(name)) = map.next_key::<Name<'a>>()? {
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!(
                            "ambiguous: `{}` stands there twice",
                            clip(&name)
                        )));
                    }
                    if name == "__metadata__" {
                        let metadata: Option<Metadata> = map.next_value()?;
                        raw.metadata = metadata.map(|metadata| metadata.0).unwrap_or_default();
                        continue;
                    }
                    if raw.tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("too long: more than {MAX_TENSORS} tensors")));
                    }
                    raw.tensors.push((name, map.next_value()?));
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Entries(std::marker::PhantomData))
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

fn clip(name: &str) -> String {
    name.chars().take(80).collect()
}
