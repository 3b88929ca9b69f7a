//! The environment's layer. Text stays text where text is wanted, so a key made of digits stays a key; variables nobody
//! knows are left alone.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::layers::Defaults;
use super::raw::Raw;
use crate::text::printable;

/// The environment's layer: only known keys, `NAME_KEY` before `HORDE_KEY`, empty values as if unset.
pub(super) fn environment<C: DeserializeOwned>(
    defaults: &Defaults,
    env: &BTreeMap<String, String>,
) -> (Value, BTreeMap<String, String>, Vec<String>) {
    let own_prefix = format!("{}_", defaults.name.to_uppercase());
    let set = |name: &str| {
        env.get(name)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    };
    let mut layer = serde_json::Map::new();
    let mut names = BTreeMap::new();
    let mut known = vec![format!("{own_prefix}CONFIG")];

    for key in defaults.common_keys() {
        let upper = key.to_uppercase();
        let shared = format!("HORDE_{}", upper.strip_prefix("HORDE_").unwrap_or(&upper));
        let mut candidates = vec![format!("{own_prefix}{upper}"), shared];
        if key == "models_dir" {
            candidates.push("HORDE_WORKERS_MODELS".to_owned());
        }
        known.push(candidates[0].clone());
        if let Some((name, text)) = candidates.iter().find_map(|name| set(name).map(|text| (name, text))) {
            let fits = |value: &Value| fits::<Raw>(&defaults.all, None, key, value);
            layer.insert(key.to_owned(), from_text(text, fits));
            names.insert(key.to_owned(), name.clone());
        }
    }
    let mut section = serde_json::Map::new();
    for key in defaults.section_keys() {
        let name = format!("{own_prefix}{}", key.to_uppercase());
        if let Some(text) = set(&name) {
            let fits = |value: &Value| fits::<C>(&defaults.all, Some(&defaults.name), key, value);
            section.insert(key.to_owned(), from_text(text, fits));
            names.insert(format!("{}.{key}", defaults.name), name.clone());
        }
        known.push(name);
    }
    if !section.is_empty() {
        layer.insert(defaults.name.clone(), Value::Object(section));
    }
    let warnings = env
        .keys()
        .filter(|name| name.starts_with(&own_prefix) && !known.contains(name))
        .map(|name| {
            let near = known
                .iter()
                .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
            let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            format!(
                "the environment variable `{}` means nothing here{near}",
                printable(name)
            )
        })
        .collect();
    (Value::Object(layer), names, warnings)
}

/// Text as text where text is wanted; else as a TOML value; else as a list separated by commas.
fn from_text(text: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let as_text = Value::String(text.to_owned());
    if fits(&as_text) {
        return as_text;
    }
    let as_toml = toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .and_then(|value| serde_json::to_value(value).ok());
    let as_list = Value::Array(
        text.split(',')
            .map(|item| Value::String(item.trim().to_owned()))
            .collect(),
    );
    let tries = [as_toml, Some(as_list)];
    tries.into_iter().flatten().find(|value| fits(value)).unwrap_or(as_text)
}

/// Whether the defaults with `key` replaced by `value` can be read.
fn fits<T: DeserializeOwned>(defaults: &Value, section: Option<&str>, key: &str, value: &Value) -> bool {
    let Some(mut part) = section.map_or(Some(defaults), |name| defaults.get(name)).cloned() else {
        return false;
    };
    if let Value::Object(part) = &mut part {
        part.insert(key.to_owned(), value.clone());
    }
    serde_json::from_value::<T>(part).is_ok()
}
