//! The header of a safetensors file, read without ever holding much more than its own size.

use std::{collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

/// A header of 16 MiB describes 100,000 tensors; the largest real ones have 6,000 and some megabytes of training notes.
pub const MAX_BYTES: u64 = 16 << 20;
/// Most tensors of a file.
const MAX_TENSORS: usize = 1 << 16;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// What a header tells.
#[derive(Default)]
pub struct Header {
    /// By name.
    pub tensors: HashMap<String, Described>,
    /// Free text; entries that are no text are left out.
    pub metadata: HashMap<String, String>,
}

/// One tensor.
#[derive(Deserialize)]
pub struct Described {
    /// As the format calls it.
    pub dtype: String,
    /// At most 8 dimensions.
    #[serde(deserialize_with = "dimensions")]
    pub shape: Vec<usize>,
    /// First byte and the one after the last, counted from the end of the header.
    pub data_offsets: [usize; 2],
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Entries)
    }
}

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                let texts: HashMap<String, Text> = map.next_value()?;
                header
                    .metadata
                    .extend(texts.into_iter().filter_map(|(name, text)| Some((name, text.0?))));
                continue;
            }
            if header.tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            header.tensors.insert(name, map.next_value()?);
        }
        Ok(header)
    }
}

/// Text, or `None` for anything else, which is not kept.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyText)
    }
}

struct AnyText;

impl<'de> Visitor<'de> for AnyText {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text(Some(text.to_owned())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Text, A::Error> {
        while values.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<Text, A::Error> {
        while values.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text(None))
    }
}

fn dimensions<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    deserializer.deserialize_seq(Dimensions)
}

struct Dimensions;

impl<'de> Visitor<'de> for Dimensions {
    type Value = Vec<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shape")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Vec<usize>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = values.next_element()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(A::Error::custom(format!(
                    "a tensor of more than {MAX_DIMENSIONS} dimensions"
                )));
            }
            shape.push(dimension);
        }
        Ok(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> bool {
        Header::parse(text.as_bytes()).is_err()
    }

    #[test]
    fn what_is_no_tensor_is_refused_and_what_is_no_text_left_out() {
        let text = r#"{"__metadata__":{"a":"b","c":[1,[2]],"d":{"e":1},"f":null,"g":1.5},
            "x":{"dtype":"I8","shape":[],"data_offsets":[0,1],"more":true}}"#;
        let header = Header::parse(text.as_bytes()).expect("a good header");
        assert_eq!(
            header.metadata.into_iter().collect::<Vec<_>>(),
            [("a".to_owned(), "b".to_owned())]
        );
        assert_eq!(header.tensors["x"].data_offsets, [0, 1]);
        assert!(refused("[]"));
        assert!(refused(r#"{"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,1]}}"#));
        assert!(refused(r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#));
        assert!(refused(
            r#"{"x":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#
        ));
        assert!(refused(r#"{"x":{"shape":[1],"data_offsets":[0,4]}}"#));
        assert!(refused(&format!("{{\"x\":{}", "[".repeat(100_000))));
    }

    #[test]
    fn too_many_tensors_are_refused() {
        let entries: Vec<String> = (0..=MAX_TENSORS)
            .map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#))
            .collect();
        assert!(refused(&format!("{{{}}}", entries.join(","))));
    }
}
