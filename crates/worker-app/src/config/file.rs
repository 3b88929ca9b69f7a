//! The configuration file: found, read within bounds, parsed, and searched for keys nobody knows.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::layers::{Defaults, Sources};
use super::locate;
use crate::stop::Stop;
use crate::text::{nearest, printable};

/// A configuration longer than this is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The file as read.
pub(super) struct File {
    pub(super) path: PathBuf,
    text: String,
    pub(super) value: Value,
}

impl File {
    /// Reads the file asked for, or the default one if it is there.
    pub(super) fn read(name: &str, sources: &Sources) -> Result<Option<Self>, Stop> {
        let path = match &sources.file {
            Some(path) => sources.places.absolute(path),
            None => {
                let path = sources.places.config_file(name);
                if !path.exists() {
                    return Ok(None);
                }
                path
            }
        };
        let text = read_text(name, &path)?;
        let value = parse(&path, &text)?;
        Ok(Some(Self { path, text, value }))
    }

    pub(super) fn shown(&self) -> String {
        format!("`{}`", self.path.display())
    }

    /// `` `/path/file.toml`, line 3``
    pub(super) fn at(&self, path: &[&str]) -> String {
        match locate::line_of(&self.text, path) {
            Some(line) => format!("{}, line {line}", self.shown()),
            None => self.shown(),
        }
    }

    pub(super) fn refuse_unknown_keys(&self, defaults: &Defaults) -> Result<(), Stop> {
        self.walk(&self.value, &defaults.all, &mut Vec::new(), defaults)
    }

    fn walk<'a>(&self, given: &'a Value, known: &Value, path: &mut Vec<&'a str>, all: &Defaults) -> Result<(), Stop> {
        let (Value::Object(given), Value::Object(known)) = (given, known) else {
            return Ok(());
        };
        // An empty default table is a map with free keys; serde looks at those.
        if known.is_empty() && !path.is_empty() {
            return Ok(());
        }
        for (key, value) in given {
            path.push(key);
            match known.get(key) {
                None => return Err(self.unknown(path, known, all)),
                Some(Value::Object(_)) if !value.is_object() => {
                    let key = path.join(".");
                    return Err(
                        Stop::config(format!("{}: `{key}` must be a section `[{key}]`", self.at(path)))
                            .hint(format!("write `[{key}]` on a line of its own and its keys below")),
                    );
                }
                Some(inner) => self.walk(value, inner, path, all)?,
            }
            path.pop();
        }
        Ok(())
    }

    fn unknown(&self, path: &[&str], known: &serde_json::Map<String, Value>, all: &Defaults) -> Stop {
        let key = path.last().copied().unwrap_or_default();
        let stop = Stop::config(format!(
            "{}: unknown key `{}`",
            self.at(path),
            printable(&path.join("."))
        ));
        let elsewhere = |place: String| format!("`{key}` belongs {place}");
        if path.len() == 1 && all.section_keys().any(|known| known == key) {
            stop.hint(elsewhere(format!("in the section `[{}]`", all.name)))
        } else if path.len() > 1 && all.common_keys().any(|known| known == key) {
            stop.hint(elsewhere("above the first section".to_owned()))
        } else if let Some(near) = nearest(key, known.keys().map(String::as_str)) {
            stop.hint(format!("did you mean `{near}`?"))
        } else {
            let mut names: Vec<_> = known.keys().map(|key| format!("`{key}`")).collect();
            names.sort();
            stop.hint(format!("known keys here: {}", names.join(", ")))
        }
    }
}

/// The text of the file: bounded, UTF-8, without a byte order mark. CRLF and tabs are TOML's own business.
fn read_text(name: &str, path: &Path) -> Result<String, Stop> {
    let shown = path.display();
    let metadata = std::fs::metadata(path).map_err(|error| {
        let stop = Stop::config(format!("cannot read the configuration `{shown}`: {}", reason(&error)));
        match error.kind() {
            std::io::ErrorKind::NotFound => stop.hint(format!("`{name} setup` writes a configuration")),
            _ => stop.hint("check the owner and the mode of the file and of its directories"),
        }
    })?;
    if metadata.is_dir() {
        return Err(Stop::config(format!("the configuration `{shown}` is a directory")).hint("name the file itself"));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(Stop::config(format!(
            "the configuration `{shown}` is longer than {MAX_FILE_BYTES} bytes"
        ))
        .hint("is this the right file?"));
    }
    let bytes = std::fs::read(path).map_err(|error| {
        Stop::config(format!("cannot read the configuration `{shown}`: {}", reason(&error)))
            .hint("check the owner and the mode of the file")
    })?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let before = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let line = locate::line_at(&before, before.len());
            Err(Stop::config(format!("`{shown}`, line {line}: the file is not UTF-8"))
                .hint("save it as UTF-8 text in your editor"))
        }
    }
}

/// An I/O error in words, without the number of the system call.
pub(crate) fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::StorageFull => "no space left on the disk".to_owned(),
        std::io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".to_owned(),
        _ => error.to_string(),
    }
}

/// Parses TOML. The parser's own rendering shows the line, which may hold the key; only its message is used.
fn parse(path: &Path, text: &str) -> Result<Value, Stop> {
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| locate::line_at(text, span.start));
        let mut message = error.message().lines().next().unwrap_or("syntax error").to_owned();
        // The name of a key is no secret.
        if let (true, Some(key)) = (message == "duplicate key", error.span().and_then(|span| text.get(span))) {
            message = format!("duplicate key `{key}`");
        }
        Stop::config(format!("`{}`, line {line}: {}", path.display(), printable(&message)))
            .hint("the file is TOML: `key = \"text\"`, `key = 3`, `key = [\"a\", \"b\"]`, one per line")
    })?;
    serde_json::to_value(table)
        .map_err(|error| Stop::config(format!("`{}`: {}", path.display(), printable(&error.to_string()))))
}
