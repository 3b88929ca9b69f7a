//! Reads request bodies as strictly as the real server: JSON objects, no `null`, booleans that are booleans, ranges.

use serde_json::{Map, Value};

use crate::answer::{Answer, invalid};

/// A request body.
pub struct Body(pub Map<String, Value>);

type Checked<T> = Result<T, Box<Answer>>;

impl Body {
    /// Parses a body; anything but an object is refused with a message alone.
    pub fn parse(bytes: &[u8]) -> Checked<Self> {
        if bytes.contains(&0) {
            return Err(crate::answer::refuse(
                400,
                "NulByteInPayload",
                "The payload holds a NUL byte",
            ));
        }
        let plain = |text: &str| Box::new(Answer::json(400, &serde_json::json!({ "message": text })));
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(map)) => {
                if let Some((key, _)) = map.iter().find(|(_, value)| value.is_null()) {
                    return Err(invalid(key, "None is not of the type this field has"));
                }
                Ok(Self(map))
            }
            _ => Err(plain(
                "The browser (or proxy) sent a request that this server could not understand.",
            )),
        }
    }

    /// A string that must be there.
    pub fn required_text(&self, key: &str) -> Checked<String> {
        self.text(key)?
            .ok_or_else(|| invalid(key, &format!("'{key}' is a required property")))
    }

    /// A string.
    pub fn text(&self, key: &str) -> Checked<Option<String>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(invalid(key, &format!("{other} is not of type 'string'"))),
        }
    }

    /// A real JSON boolean.
    pub fn flag(&self, key: &str, default: bool) -> Checked<bool> {
        match self.0.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(invalid(key, &format!("{other} is not of type 'boolean'"))),
        }
    }

    /// A whole number within a range.
    pub fn integer(&self, key: &str, range: std::ops::RangeInclusive<i64>) -> Checked<Option<i64>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(value) => match value.as_i64() {
                Some(number) if range.contains(&number) => Ok(Some(number)),
                Some(number) => Err(invalid(key, &format!("{number} is outside of {range:?}"))),
                None => Err(invalid(key, &format!("{value} is not of type 'integer'"))),
            },
        }
    }

    /// A list of strings.
    pub fn texts(&self, key: &str) -> Checked<Vec<String>> {
        match self.0.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(entries)) => entries
                .iter()
                .enumerate()
                .map(|(index, entry)| {
                    entry
                        .as_str()
                        .map(str::to_owned)
                        .ok_or_else(|| invalid(&format!("{key}.{index}"), &format!("{entry} is not of type 'string'")))
                })
                .collect(),
            Some(other) => Err(invalid(key, &format!("{other} is not of type 'array'"))),
        }
    }

    /// An object, empty where missing.
    pub fn object(&self, key: &str) -> Checked<Map<String, Value>> {
        match self.0.get(key) {
            None => Ok(Map::new()),
            Some(Value::Object(map)) => match map.iter().find(|(_, value)| value.is_null()) {
                Some((inner, _)) => Err(invalid(
                    &format!("{key}.{inner}"),
                    "None is not of the type this field has",
                )),
                None => Ok(map.clone()),
            },
            Some(other) => Err(invalid(key, &format!("{other} is not of type 'object'"))),
        }
    }
}

const METADATA_TYPES: [&str; 9] = [
    "lora",
    "ti",
    "censorship",
    "source_image",
    "source_mask",
    "extra_source_images",
    "batch_index",
    "information",
    "aesthetic_score",
];
const METADATA_VALUES: [&str; 6] = [
    "download_failed",
    "parse_failed",
    "baseline_mismatch",
    "csam",
    "nsfw",
    "see_ref",
];

/// Checks `gen_metadata` and returns it. More than fifty entries is not the schema's business: it costs the job.
pub fn metadata(body: &Body) -> Checked<Vec<Value>> {
    let Some(value) = body.0.get("gen_metadata") else {
        return Ok(Vec::new());
    };
    let entries = value
        .as_array()
        .ok_or_else(|| invalid("gen_metadata", "is not of type 'array'"))?;
    for (index, entry) in entries.iter().enumerate() {
        let word = |key: &str| entry.get(key).and_then(Value::as_str);
        if !word("type").is_some_and(|word| METADATA_TYPES.contains(&word)) {
            return Err(invalid(
                &format!("gen_metadata.{index}.type"),
                "is not one of the known types",
            ));
        }
        if !word("value").is_some_and(|word| METADATA_VALUES.contains(&word)) {
            return Err(invalid(
                &format!("gen_metadata.{index}.value"),
                "is not one of the known values",
            ));
        }
        match entry.get("ref") {
            None => {}
            Some(Value::String(text)) if text.chars().count() <= 255 => {}
            Some(_) => {
                return Err(invalid(
                    &format!("gen_metadata.{index}.ref"),
                    "is too long or not of type 'string'",
                ));
            }
        }
    }
    Ok(entries.clone())
}
