//! Names that strangers chose and paths on our disk: the first never become the second unchecked.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A relative path that stays below the directory it is joined to: ordinary components of ordinary characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SafePath(String);

/// Why a path is not used.
#[derive(Debug, thiserror::Error)]
#[error("`{path}` is not used as a path: {reason}")]
pub struct UnsafePath {
    path: String,
    reason: &'static str,
}

/// Names that mean devices on Windows shares, with any extension.
const DEVICE_NAMES: [&str; 6] = ["con", "prn", "aux", "nul", "com", "lpt"];

impl SafePath {
    /// Checks `text`, which uses `/` between components.
    pub fn new(text: &str) -> Result<Self, UnsafePath> {
        let refuse = |reason| UnsafePath {
            path: text.chars().take(80).collect::<String>().escape_debug().to_string(),
            reason,
        };
        if text.is_empty() || text.len() > 1024 {
            return Err(refuse("it is empty or longer than 1024 bytes"));
        }
        for component in text.split('/') {
            if component.is_empty() || component.len() > 200 {
                return Err(refuse("a component is empty or longer than 200 bytes"));
            }
            if component.starts_with('.') || component.ends_with(['.', ' ']) || component.starts_with(' ') {
                return Err(refuse("a component begins or ends with a dot or a space"));
            }
            // Look-alike slashes and invisible characters serve no honest name.
            if component.chars().any(|c| {
                c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|' | '\u{2044}' | '\u{2215}' | '\u{29f8}' | '\u{ff0f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            }) {
                return Err(refuse("a component has a character that no file name needs"));
            }
            let stem = component.split('.').next().unwrap_or("").to_ascii_lowercase();
            let base = stem.trim_end_matches(|c: char| c.is_ascii_digit());
            if DEVICE_NAMES.contains(&base) && stem.len() <= base.len() + 1 {
                return Err(refuse("a component is the name of a device"));
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The text with `/` between components.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Joined below `dir`.
    pub fn below(&self, dir: &Path) -> PathBuf {
        self.0
            .split('/')
            .fold(dir.to_owned(), |path, component| path.join(component))
    }

    /// The last component.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for SafePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for SafePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SafePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_leave_or_confuse_are_refused() {
        let long = "a/".repeat(3000);
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a/./b",
            "a//b",
            "a/",
            ".hidden",
            "a\0b",
            "a\nb",
            "C:\\x",
            "a\\b",
            "CON",
            "nul.txt",
            "com1",
            "LPT9.bin",
            "a\u{2215}b",
            "a\u{ff0f}b",
            "x\u{202e}gpj.exe",
            "name.",
            "name ",
            long.as_str(),
        ] {
            assert!(SafePath::new(bad).is_err(), "{bad:?}");
        }
        for good in [
            "a.safetensors",
            "sub/dir/4x-AnimeSharp.pth",
            "Ünïcode モデル.ckpt",
            "console.bin",
            "comma.txt",
        ] {
            assert_eq!(
                SafePath::new(good).unwrap().below(Path::new("/m")),
                Path::new("/m").join(good)
            );
        }
    }

    proptest! {
        #[test]
        fn no_name_ever_leaves_the_directory(name in "\\PC{0,60}|[./\\\\a-c]{0,12}") {
            if let Ok(path) = SafePath::new(&name) {
                let joined = path.below(Path::new("/models"));
                prop_assert!(joined.starts_with("/models"));
                prop_assert!(joined.components().all(|c| !matches!(c, std::path::Component::ParentDir)));
            }
        }
    }
}
