//! The parts that answers of all pops share: ids, upload targets, skip counts and messages.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::ids::GenerationId;
use crate::kind::{Generation, Message};
use crate::secret::SignedUrl;

/// Longest lease that is believed, in seconds: a day. The server's own longest is under four hours, and a larger number
/// must not reach the arithmetic of deadlines.
const LONGEST_LEASE_SECONDS: u64 = 24 * 60 * 60;

/// A message as it stands on the wire.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct WireMessage {
    id: Value,
    message: Value,
    origin: Value,
}

/// `ids`, or the older `id` where the list is missing; an id named twice counts once.
pub(crate) fn ids(ids: Vec<String>, id: Option<String>) -> Vec<String> {
    let named = if ids.is_empty() { id.into_iter().collect() } else { ids };
    let mut unique: Vec<String> = Vec::new();
    for id in named {
        if !id.is_empty() && !unique.contains(&id) {
            unique.push(id);
        }
    }
    unique
}

/// Pairs ids with upload targets in order; a missing or unreadable target is `None`.
pub(crate) fn generations(ids: Vec<String>, uploads: Vec<String>) -> Vec<Generation> {
    let mut uploads = uploads.into_iter();
    ids.into_iter()
        .map(|id| Generation {
            id: GenerationId(id),
            upload: uploads
                .next()
                .and_then(|address| address.parse().ok())
                .map(SignedUrl::new),
        })
        .collect()
}

/// A lease as told, at most a day.
pub(crate) fn lease(seconds: u64) -> Duration {
    Duration::from_secs(seconds.min(LONGEST_LEASE_SECONDS))
}

/// Skip counts; what is not a number is left out.
pub(crate) fn counts(skipped: BTreeMap<String, Value>) -> BTreeMap<String, i64> {
    skipped
        .into_iter()
        .filter_map(|(reason, count)| Some((reason, count.as_i64()?)))
        .collect()
}

/// Messages with a text.
pub(crate) fn messages(messages: Vec<WireMessage>) -> Vec<Message> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    messages
        .iter()
        .filter_map(|one| {
            let message = text(&one.message)?;
            let id = text(&one.id).unwrap_or_else(|| one.id.to_string());
            Some(Message {
                id,
                message,
                origin: text(&one.origin),
            })
        })
        .collect()
}
