//! Finds the API key: systemd credential, key file, environment, configuration file, in this order. Never the command
//! line, which every user of the machine can read.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use horde_client::secret::ApiKey;

use super::Places;
use super::file::reason;
use super::origin::Origin;
use super::raw::Raw;
use crate::stop::Stop;

/// The key of the Horde's anonymous user.
const ANONYMOUS: &str = "0000000000";
/// Name of the systemd credential.
const CREDENTIAL: &str = "horde-api-key";
/// Longer than any key the Horde gives (22 characters).
const MAX_KEY_BYTES: usize = 128;

/// The owner's key and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Prints as `****`.
    pub api_key: ApiKey,
    /// Where it was found.
    pub source: KeySource,
}

/// Where a key was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// `LoadCredential=horde-api-key:…` of systemd.
    Credential(PathBuf),
    /// `api_key_file`, or its default place.
    File(PathBuf),
    /// A variable of this name.
    Environment(String),
    /// `api_key` in this configuration file.
    Config(PathBuf),
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Credential(path) => write!(f, "the systemd credential `{}`", path.display()),
            Self::File(path) => write!(f, "the key file `{}`", path.display()),
            Self::Environment(name) => write!(f, "`{name}` in the environment"),
            Self::Config(path) => write!(f, "`{}`", path.display()),
        }
    }
}

impl Key {
    /// The first key found, or why it cannot be used.
    pub(super) fn find(
        raw: &Raw,
        places: &Places,
        origin: &Origin<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Stop> {
        let (text, source) = find_text(raw, places, origin, warnings)?;
        Self::parse(&text, source)
    }

    /// A key from text; refuses what cannot be one. Never shows it.
    pub fn parse(text: &str, source: KeySource) -> Result<Self, Stop> {
        let text = text.trim();
        let refuse = |why: &str| {
            Stop::config(format!("the API key in {source} {why}"))
                .hint("register at https://aihorde.net/register and copy the key as it is shown there")
        };
        if text.is_empty() {
            return Err(refuse("is empty"));
        }
        if text == ANONYMOUS {
            return Err(Stop::config(format!("the API key in {source} is the anonymous one"))
                .hint("the Horde lets no anonymous user run a worker; register at https://aihorde.net/register"));
        }
        if text.len() > MAX_KEY_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refuse(
                "cannot be a key: it is too long or has blanks or other strange characters",
            ));
        }
        Ok(Self {
            api_key: ApiKey::new(text),
            source,
        })
    }
}

fn find_text(
    raw: &Raw,
    places: &Places,
    origin: &Origin<'_>,
    warnings: &mut Vec<String>,
) -> Result<(String, KeySource), Stop> {
    let credential = places.credentials.as_ref().map(|directory| directory.join(CREDENTIAL));
    if let Some(path) = credential.filter(|path| path.exists()) {
        return Ok((read(&path)?, KeySource::Credential(path)));
    }
    let (key_file, was_named) = match &raw.api_key_file {
        Some(path) => (places.absolute(path), true),
        None => (places.key_file(), false),
    };
    if was_named || key_file.exists() {
        let text = read(&key_file)?;
        refuse_readable(&key_file, raw.allow_readable_key, warnings)?;
        return Ok((text, KeySource::File(key_file)));
    }
    match &raw.api_key {
        Some(text) if origin.is_from_file("api_key") => {
            let path = origin.file.map(|file| file.path.clone()).unwrap_or_default();
            refuse_readable(&path, raw.allow_readable_key, warnings)?;
            Ok((text.clone(), KeySource::Config(path)))
        }
        Some(text) => {
            let name = origin.env_names.get("api_key").cloned();
            Ok((text.clone(), KeySource::Environment(name.unwrap_or_default())))
        }
        None => Err(Stop::config("no API key is configured").hint(format!(
            "put your key into `{}` (mode 0600) or into `HORDE_API_KEY`; get one at https://aihorde.net/register",
            places.key_file().display()
        ))),
    }
}

fn read(path: &Path) -> Result<String, Stop> {
    let cannot = |why: String| {
        Stop::config(format!("cannot read the key file `{}`: {why}", path.display()))
            .hint("the file holds the key alone, on one line, readable by the worker's user")
    };
    let length = std::fs::metadata(path).map_err(|error| cannot(reason(&error)))?.len();
    if length > 4096 {
        return Err(cannot("it is too long to hold a key".to_owned()));
    }
    let bytes = std::fs::read(path).map_err(|error| cannot(reason(&error)))?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    String::from_utf8(bytes.to_vec()).map_err(|_| cannot("it is not text".to_owned()))
}

/// A file with a key that every user can read is refused, one that the group can read is worth a warning.
fn refuse_readable(path: &Path, allowed: bool, warnings: &mut Vec<String>) -> Result<(), Stop> {
    let Ok(metadata) = std::fs::metadata(path) else {
        return Ok(());
    };
    let mode = metadata.mode() & 0o777;
    let shown = path.display();
    if mode & 0o004 != 0 && !allowed {
        return Err(Stop::config(format!(
            "`{shown}` holds the API key and every user of this machine can read it (mode {mode:04o})"
        ))
        .hint(format!("`chmod 600 {shown}`, or set `allow_readable_key = true`")));
    }
    if mode & 0o044 != 0 {
        warnings.push(format!(
            "`{shown}` holds the API key and can be read by others (mode {mode:04o})"
        ));
    }
    Ok(())
}
