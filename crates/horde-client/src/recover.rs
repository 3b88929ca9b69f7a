//! Reads the answer of a pop so that no id it names is ever lost.

use serde_json::Value;

use crate::client::bad_body;
use crate::error::ApiError;
use crate::ids::GenerationId;
use crate::kind::{Generation, JobKind, Popped, PoppedJob};

/// Length of an id on the wire: a UUID in its usual form.
const ID_LENGTH: usize = 36;

/// Decodes an answer. One that does not decode but names ids becomes a job whose payload could not be read; one without
/// any id is an error.
pub fn read_pop<K: JobKind>(body: &[u8]) -> Result<Popped<K::Payload>, ApiError> {
    let error = match serde_json::from_slice::<K::PopResponse>(body) {
        Ok(response) => return Ok(K::split(response)),
        Err(error) => error,
    };
    let text = String::from_utf8_lossy(body);
    let ids = match serde_json::from_slice::<Value>(body) {
        Ok(value) => ids_of_value(&value),
        Err(_) => ids_of_fragment(&text),
    };
    if ids.is_empty() {
        return Err(bad_body(&error));
    }
    let generations = ids
        .into_iter()
        .map(|id| Generation {
            id: GenerationId(id),
            upload: None,
        })
        .collect();
    let job = PoppedJob {
        generations,
        model: None,
        fault_model: chat_model_of_fragment(&text),
        ttl: None,
        payload: Err(bad_body(&error).to_string()),
    };
    Ok(Popped {
        jobs: vec![job],
        skipped: Default::default(),
        messages: Vec::new(),
    })
}

/// `ids`, else `id`, at the top level and in `forms`.
fn ids_of_value(value: &Value) -> Vec<String> {
    let own = |value: &Value| -> Vec<String> {
        let listed: Vec<String> = value["ids"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        if listed.is_empty() {
            value["id"].as_str().map(str::to_owned).into_iter().collect()
        } else {
            listed
        }
    };
    let mut ids = own(value);
    ids.extend(value["forms"].as_array().into_iter().flatten().flat_map(own));
    ids.retain(|id| is_id(id));
    ids.dedup();
    ids
}

/// Ids in a cut body: strings shaped like ids that follow the keys `id` or `ids`, but not those of operators' messages.
fn ids_of_fragment(text: &str) -> Vec<String> {
    let (before, after) = text.split_once("\"messages\"").unwrap_or((text, ""));
    let after = after.split_once(']').map_or("", |(_, after)| after);
    let mut ids = ids_of_part(before);
    ids.extend(ids_of_part(after));
    ids.sort();
    ids.dedup();
    ids
}

fn ids_of_part(text: &str) -> Vec<String> {
    let mut ids = Vec::new();
    for key in ["\"id\"", "\"ids\""] {
        for (at, _) in text.match_indices(key) {
            let rest = text[at + key.len()..]
                .trim_start()
                .strip_prefix(':')
                .map(str::trim_start)
                .unwrap_or_default();
            let list = rest
                .strip_prefix('[')
                .map_or(rest.split([',', '}']).next().unwrap_or_default(), |list| {
                    list.split(']').next().unwrap_or_default()
                });
            ids.extend(list.split('"').filter(|part| is_id(part)).map(str::to_owned));
        }
    }
    ids
}

/// The model of a chat job in a cut body, as far as it says that it is one.
fn chat_model_of_fragment(text: &str) -> Option<String> {
    let after = |key: &str| {
        text.split_once(key)?
            .1
            .trim_start()
            .strip_prefix(':')
            .map(str::trim_start)
    };
    if !after("\"chat\"")?.starts_with("true") {
        return None;
    }
    let model = after("\"model\"")?.strip_prefix('"')?.split('"').next()?;
    Some(model.to_owned())
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}
