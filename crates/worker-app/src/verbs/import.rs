//! Takes over what it can from the `bridgeData.yaml` of the Horde's Python workers: a flat YAML file, of which only the
//! forms those files use are read (`key: value`, lists, comments, quotes). The rest is named, never guessed at.

use std::path::Path;

use crate::config::reason;
use crate::stop::{Code, Stop};

/// A configuration longer than this is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Names that came with the file and are nobody's.
const DEFAULT_NAME_STARTS: [&str; 2] = ["an awesome", "my awesome"];

/// What was found and has a counterpart here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// `api_key`; the anonymous one is left out.
    pub api_key: Option<String>,
    /// `NAME_name` or `worker_name`; names that come with the file are left out.
    pub worker_name: Option<String>,
    /// `priority_usernames`.
    pub priority_usernames: Vec<String>,
    /// `nsfw`.
    pub nsfw: Option<bool>,
    /// `queue_size`, at most 2 here.
    pub prefetch: Option<u8>,
    /// Keys that were set and have no counterpart, in the file's order.
    pub left_out: Vec<String>,
}

/// Reads `path` for the worker `program`.
pub fn import(path: &Path, program: &str) -> Result<Imported, Stop> {
    let cannot = |why: String| {
        Stop::new(Code::Usage, format!("cannot import `{}`: {why}", path.display()))
            .hint("name the `bridgeData.yaml` of horde-worker-reGen or AI-Horde-Worker")
    };
    let length = std::fs::metadata(path).map_err(|error| cannot(reason(&error)))?.len();
    if length > MAX_FILE_BYTES {
        return Err(cannot("it is too long".to_owned()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| cannot(reason(&error)))?;
    Ok(from_yaml(&text, program))
}

/// A value of the file.
#[derive(Debug, PartialEq)]
enum Value {
    Text(String),
    List(Vec<String>),
}

fn from_yaml(text: &str, program: &str) -> Imported {
    let mut imported = Imported::default();
    let own_name = format!("{program}_name");
    for (key, value) in entries(text) {
        match (key.as_str(), value) {
            ("api_key", Value::Text(key)) => imported.api_key = Some(key).filter(|key| key != "0000000000"),
            (name, Value::Text(worker)) if name == own_name || name == "worker_name" => {
                let lower = worker.to_lowercase();
                let is_default = DEFAULT_NAME_STARTS.iter().any(|start| lower.starts_with(start));
                // The worker's own key stands over the one for all.
                if !is_default && (name == own_name || imported.worker_name.is_none()) {
                    imported.worker_name = Some(worker);
                }
            }
            ("priority_usernames", Value::List(names)) => imported.priority_usernames = names,
            ("nsfw", Value::Text(word)) => imported.nsfw = switch(&word),
            ("queue_size", Value::Text(number)) => imported.prefetch = number.parse().ok().map(|n: u8| n.min(2)),
            // Names of the other workers are no loss.
            ("dreamer_name" | "scribe_name" | "alchemist_name", _) => {}
            _ => imported.left_out.push(key),
        }
    }
    imported
}

/// The top-level entries that have a value, in order. What is nested comes as an entry without a usable value.
fn entries(text: &str) -> Vec<(String, Value)> {
    let mut entries: Vec<(String, Value)> = Vec::new();
    // The key whose value stands on the lines below it.
    let mut open: Option<(String, Vec<String>)> = None;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for line in text.lines() {
        let line = without_comment(line);
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed == "---" {
            continue;
        }
        if let (Some(item), Some((_, items))) = (trimmed.strip_prefix("- "), &mut open) {
            items.push(unquoted(item));
            continue;
        }
        if line.starts_with([' ', '\t']) {
            continue;
        }
        entries.extend(open.take().map(|(key, items)| (key, Value::List(items))));
        let Some((key, value)) = trimmed.split_once(':') else {
            continue;
        };
        let (key, value) = (unquoted(key), value.trim());
        if value.is_empty() {
            open = Some((key, Vec::new()));
        } else if let Some(list) = value.strip_prefix('[').and_then(|value| value.strip_suffix(']')) {
            let items = list.split(',').map(unquoted).filter(|item| !item.is_empty()).collect();
            entries.push((key, Value::List(items)));
        } else {
            entries.push((key, Value::Text(unquoted(value))));
        }
    }
    entries.extend(open.map(|(key, items)| (key, Value::List(items))));
    entries.retain(|(_, value)| *value != Value::List(Vec::new()) && *value != Value::Text(String::new()));
    entries
}

/// The line up to a `#` that begins a comment: at the start or after a blank, outside quotes.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, character) in line.char_indices() {
        match (quote, character) {
            (None, '#') if before.is_whitespace() => return &line[..at],
            // A quote inside a word is an apostrophe.
            (None, '"' | '\'') if before.is_whitespace() || matches!(before, '[' | ',') => quote = Some(character),
            (Some(open), character) if open == character => quote = None,
            _ => {}
        }
        before = character;
    }
    line
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = ['"', '\'']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote).and_then(|text| text.strip_suffix(*quote)));
    inner.unwrap_or(text).to_owned()
}

/// YAML's words for yes and no.
fn switch(word: &str) -> Option<bool> {
    match word.to_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\u{feff}## Common\r\nhorde_url: \"https://aihorde.net\"\r\napi_key: 'abc#def' # mine\r\n\
        priority_usernames: # friends\r\n  - somebody#1234\r\n  - \"other#5\" # too\r\nmax_threads: 1\r\nqueue_size: 4\r\n\
        dreamer_name: An Awesome Dreamer\r\nscribe_name: \"Bob's scribe\"\r\nnsfw: no\r\nblacklist: []\r\n\
        models_to_load:\r\n  - \"top 2\"\r\nforms: [caption, 'nsfw']\r\nnested:\r\n  inner: 1\r\n";

    #[test]
    fn what_has_a_counterpart_is_taken_and_the_rest_is_named() {
        let imported = from_yaml(FILE, "scribe");
        let expected = Imported {
            api_key: Some("abc#def".to_owned()),
            worker_name: Some("Bob's scribe".to_owned()),
            priority_usernames: vec!["somebody#1234".to_owned(), "other#5".to_owned()],
            nsfw: Some(false),
            prefetch: Some(2),
            left_out: ["horde_url", "max_threads", "models_to_load", "forms"]
                .map(str::to_owned)
                .to_vec(),
        };
        assert_eq!(imported, expected);
    }

    #[test]
    fn names_and_keys_that_came_with_the_file_are_nobodys() {
        let imported = from_yaml("api_key: \"0000000000\"\ndreamer_name: An Awesome Dreamer\n", "dreamer");
        assert_eq!(imported, Imported::default());
    }

    #[test]
    fn nonsense_is_no_panic() {
        for text in [
            "",
            ":",
            "- a",
            "a",
            "a: [",
            "[]: []",
            "'",
            "a: '",
            "\t- x",
            "a:\n- ",
            "é: é#é",
        ] {
            from_yaml(text, "scribe");
        }
    }
}
