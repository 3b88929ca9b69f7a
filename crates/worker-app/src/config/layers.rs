//! Reads the four layers and lays them over each other.
//!
//! Traps handled here: a file that does not exist is an error where it was asked for; the path is taken as it is and
//! never searched in parent directories; environment values are taken as text where text is wanted, so a key made of
//! digits stays a key; variables nobody knows are left alone; error paths lose the profile they begin with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::key::Key;
use super::raw::{Raw, is_secret};
use super::{Common, Places, locate, resolve};
use crate::stop::Stop;
use crate::text::{nearest, printable};

/// A configuration longer than this is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;
const KEYS_ARE_LISTED: &str = "docs/OPERATING.md and the files in configs/ show every key";
const FLAGS: &str = "the command line";
const DEFAULTS: &str = "defaults";

/// Where the layers come from; tests give their own.
#[derive(Clone, Debug)]
pub struct Sources {
    /// `--config`, or `NAME_CONFIG`; must exist when given.
    pub file: Option<PathBuf>,
    /// Base directories.
    pub places: Places,
    /// The environment.
    pub env: BTreeMap<String, String>,
    /// Flags of the command line, by common key.
    pub flags: serde_json::Map<String, Value>,
}

/// A whole configuration.
#[derive(Debug)]
pub struct Loaded<C> {
    /// The common part.
    pub common: Common,
    /// The worker's own section.
    pub section: C,
    /// The key, or why there is none. Verbs that do not speak to the Horde ignore it.
    pub key: Result<Key, Stop>,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// Whether the owner named the worker; without a name it cannot run.
    pub is_named: bool,
    /// What looks wrong and is not.
    pub warnings: Vec<String>,
}

/// Loads the configuration of the worker `name` (version `version`) whose own section is `C`.
pub fn load<C>(name: &str, version: &str, sources: &Sources) -> Result<Loaded<C>, Stop>
where
    C: Serialize + DeserializeOwned + Default,
{
    let defaults = Defaults::of::<C>(name)?;
    let file = File::read(name, sources)?;
    if let Some(file) = &file {
        file.refuse_unknown_keys(&defaults)?;
    }
    let (env, env_names, mut warnings) = environment::<C>(&defaults, &sources.env);

    let mut figment = Figment::from(Layer::new(DEFAULTS, &defaults.all)?);
    if let Some(file) = &file {
        figment = figment.merge(Layer::new(&file.shown(), &file.value)?);
    }
    figment = figment
        .merge(Layer::new("the environment", &env)?)
        .merge(Layer::new(FLAGS, &Value::Object(sources.flags.clone()))?);

    let origin = Origin {
        figment: &figment,
        file: file.as_ref(),
        env_names: &env_names,
    };
    let raw: Raw = figment.extract().map_err(|error| origin.explain(error, None))?;
    let section: C = figment
        .focus(name)
        .extract()
        .map_err(|error| origin.explain(error, Some(name)))?;
    let common = resolve::common(&raw, name, version, &sources.places, &origin)?;
    let key = Key::find(&raw, &sources.places, &origin, &mut warnings);
    Ok(Loaded {
        is_named: raw.worker_name.is_some(),
        common,
        section,
        key,
        file: file.map(|file| file.path),
        warnings,
    })
}

/// The serialised defaults: both the lowest layer and the list of known keys.
struct Defaults {
    name: String,
    all: Value,
}

impl Defaults {
    fn of<C: Serialize + Default>(name: &str) -> Result<Self, Stop> {
        let broken = |error: serde_json::Error| Stop::failed(format!("the built-in defaults are broken: {error}"));
        let mut all = serde_json::to_value(Raw::default()).map_err(broken)?;
        let section = serde_json::to_value(C::default()).map_err(broken)?;
        if let Value::Object(all) = &mut all {
            all.insert(name.to_owned(), section);
        }
        Ok(Self {
            name: name.to_owned(),
            all,
        })
    }

    fn common_keys(&self) -> impl Iterator<Item = &str> {
        keys(&self.all).filter(|key| *key != self.name)
    }

    fn section_keys(&self) -> impl Iterator<Item = &str> {
        self.all.get(&self.name).into_iter().flat_map(keys)
    }
}

fn keys(value: &Value) -> impl Iterator<Item = &str> {
    value.as_object().into_iter().flatten().map(|(key, _)| key.as_str())
}

/// The file as read.
pub(super) struct File {
    pub(super) path: PathBuf,
    text: String,
    value: Value,
}

impl File {
    /// Reads the file asked for, or the default one if it is there.
    fn read(name: &str, sources: &Sources) -> Result<Option<Self>, Stop> {
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

    fn shown(&self) -> String {
        format!("`{}`", self.path.display())
    }

    /// `` `/path/file.toml`, line 3``
    fn at(&self, path: &[&str]) -> String {
        match locate::line_of(&self.text, path) {
            Some(line) => format!("{}, line {line}", self.shown()),
            None => self.shown(),
        }
    }

    fn refuse_unknown_keys(&self, defaults: &Defaults) -> Result<(), Stop> {
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

/// The environment's layer: only known keys, `NAME_KEY` before `HORDE_KEY`, empty values as if unset.
fn environment<C: DeserializeOwned>(
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

/// One layer for figment.
struct Layer {
    name: String,
    dict: Dict,
}

impl Layer {
    fn new(name: &str, value: &Value) -> Result<Self, Stop> {
        let dict = figment::value::Value::serialize(value)
            .ok()
            .and_then(figment::value::Value::into_dict)
            .ok_or_else(|| Stop::failed(format!("the layer {name} is no table")))?;
        Ok(Self {
            name: name.to_owned(),
            dict,
        })
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// Says where a value came from.
pub(super) struct Origin<'a> {
    figment: &'a Figment,
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

    fn explain(&self, error: figment::Error, section: Option<&str>) -> Stop {
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
