//! Says where a value came from, and puts what is wrong with it into an owner's words.

use std::collections::BTreeMap;

use figment::Figment;

use super::file::File;
use super::layers::{DEFAULTS, FLAGS};
use super::raw::is_secret;
use crate::stop::Stop;
use crate::text::{nearest, printable};

const KEYS_ARE_LISTED: &str = "docs/OPERATING.md and the files in configs/ show every key";

/// Says where a value came from.
pub(super) struct Origin<'a> {
    pub(super) figment: &'a Figment,
    pub(super) file: Option<&'a File>,
    pub(super) env_names: &'a BTreeMap<String, String>,
}

impl Origin<'_> {
    /// `` `/path/file.toml`, line 3``, `` `HORDE_GRACE` in the environment`` or `the command line`.
    pub(super) fn of(&self, key: &str) -> String {
        let layer = self.layer(key);
        let by_env = self.env_names.get(key);
        if layer == FLAGS {
            FLAGS.to_owned()
        } else if let (Some(name), "the environment") = (by_env, layer.as_str()) {
            format!("`{name}` in the environment")
        } else if let Some(file) = self.file.filter(|file| file.shown() == layer) {
            file.at(&key.split('.').collect::<Vec<_>>())
        } else {
            layer
        }
    }

    /// Whether the value of `key` comes from the file.
    pub(super) fn is_from_file(&self, key: &str) -> bool {
        self.file.is_some_and(|file| file.shown() == self.layer(key))
    }

    fn layer(&self, key: &str) -> String {
        match (self.figment.find_metadata(key), key.rsplit_once('.')) {
            (Some(metadata), _) => metadata.name.to_string(),
            // An item of a list: the list knows.
            (None, Some((parent, _))) => self.layer(parent),
            (None, None) => DEFAULTS.to_owned(),
        }
    }

    /// A stop for `key` that names where it was set.
    pub(super) fn refuse(&self, key: &str, message: impl std::fmt::Display) -> Stop {
        Stop::config(format!("{}: `{key}` {message}", self.of(key)))
    }

    pub(super) fn explain(&self, error: figment::Error, section: Option<&str>) -> Stop {
        use figment::error::Kind;
        // Error paths may begin with the profile, and those of a section lack its name.
        let path: Vec<_> = error.path.iter().map(String::as_str).collect();
        let path = path.strip_prefix(&["default"]).unwrap_or(&path);
        let path: Vec<_> = section.into_iter().chain(path.iter().copied()).collect();
        let key = path.join(".");
        let secret = path.last().is_some_and(|last| is_secret(last));
        let shown = |actual: &figment::error::Actual| if secret { "this".to_owned() } else { shown(actual) };
        match &error.kind {
            Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
                let (wanted, hint) = wanted(expected);
                self.refuse(&key, format!("must be {wanted}, not {}", shown(actual)))
                    .hint(hint)
            }
            Kind::UnknownVariant(given, known) => {
                let known: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
                let given = shown(&figment::error::Actual::Str(given.clone()));
                self.refuse(&key, format!("cannot be {given}"))
                    .hint(format!("use one of {}", known.join(", ")))
            }
            Kind::UnknownField(field, known) => {
                let whole = if key.is_empty() {
                    field.clone()
                } else {
                    format!("{key}.{field}")
                };
                let stop = Stop::config(format!("{}: unknown key `{}`", self.of(&key), printable(&whole)));
                match nearest(field, known.iter().copied()) {
                    Some(near) => stop.hint(format!("did you mean `{near}`?")),
                    None => stop.hint(format!("known keys here: {}", known.join(", "))),
                }
            }
            Kind::MissingField(field) => {
                Stop::config(format!("{}: `{key}` lacks `{field}`", self.of(&key))).hint(KEYS_ARE_LISTED)
            }
            _ if secret => self.refuse(&key, "cannot be read").hint(KEYS_ARE_LISTED),
            Kind::Message(message) => self.refuse(&key, printable(message)).hint(KEYS_ARE_LISTED),
            kind => self.refuse(&key, printable(&kind.to_string())).hint(KEYS_ARE_LISTED),
        }
    }
}

/// A value in an error: short, on one line.
fn shown(actual: &figment::error::Actual) -> String {
    use figment::error::Actual;
    match actual {
        Actual::Str(text) => format!("the text `{}`", crate::text::truncated(&printable(text), 60)),
        Actual::Bool(value) => format!("`{value}`"),
        Actual::Unsigned(value) => format!("`{value}`"),
        Actual::Signed(value) => format!("`{value}`"),
        Actual::Float(value) => format!("`{value}`"),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a section".to_owned(),
        other => crate::text::truncated(&printable(&other.to_string()), 60),
    }
}

/// What serde wants, in an owner's words, and how to write it.
fn wanted(expected: &str) -> (String, &'static str) {
    let (wanted, hint) = match expected {
        "a boolean" => ("`true` or `false`", "write it without quotes: `key = true`"),
        "a string" | "path string" => ("text", "put it in quotes: `key = \"text\"`"),
        "a sequence" => ("a list", "put it in brackets: `key = [\"a\", \"b\"]`"),
        "i64" | "i32" | "i16" | "i8" => ("a whole number", "write it without quotes: `key = 3`"),
        "u64" | "u32" | "u16" | "u8" | "usize" => {
            ("a whole number of at least 0", "write it without quotes: `key = 3`")
        }
        "f32" | "f64" => ("a number", "write it without quotes: `key = 0.5`"),
        other => return (other.to_owned(), KEYS_ARE_LISTED),
    };
    (wanted.to_owned(), hint)
}
