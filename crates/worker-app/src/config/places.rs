//! Where files lie when nobody says otherwise (XDG base directories).

use std::path::{Path, PathBuf};

/// The environment's base directories, read once so that tests can give their own.
#[derive(Clone, Debug)]
pub struct Places {
    /// `$XDG_CONFIG_HOME` or `~/.config`.
    pub config_home: PathBuf,
    /// `$XDG_STATE_HOME` or `~/.local/state`.
    pub state_home: PathBuf,
    /// `$XDG_CACHE_HOME` or `~/.cache`.
    pub cache_home: PathBuf,
    /// `$CREDENTIALS_DIRECTORY`, set by systemd for `LoadCredential=`.
    pub credentials: Option<PathBuf>,
    /// `$HOME`, for paths written with `~/`.
    pub home: Option<PathBuf>,
}

impl Places {
    /// Reads them through `get` (as `std::env::var`); `None` when neither an XDG variable nor `HOME` is set.
    pub fn from_env(get: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let set = |name: &str| get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = set("HOME");
        // The XDG specification tells to ignore relative values.
        let base = |name: &str, below_home: &str| {
            set(name)
                .filter(|path| path.is_absolute())
                .or_else(|| home.as_ref().map(|home| home.join(below_home)))
        };
        Some(Self {
            config_home: base("XDG_CONFIG_HOME", ".config")?,
            // systemd's StateDirectory= is the better place where it is given.
            state_home: set("STATE_DIRECTORY").or_else(|| base("XDG_STATE_HOME", ".local/state"))?,
            cache_home: base("XDG_CACHE_HOME", ".cache")?,
            credentials: set("CREDENTIALS_DIRECTORY"),
            home,
        })
    }

    /// `path` made absolute: `~/` is the home directory, anything else relative starts at the working directory.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        if let (Ok(below), Some(home)) = (path.strip_prefix("~"), &self.home) {
            return home.join(below);
        }
        std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
    }

    /// `~/.config/horde-workers/NAME.toml`.
    pub fn config_file(&self, name: &str) -> PathBuf {
        ours(&self.config_home).join(format!("{name}.toml"))
    }

    /// `~/.config/horde-workers/api-key`, shared by all workers of one owner.
    pub fn key_file(&self) -> PathBuf {
        ours(&self.config_home).join("api-key")
    }

    /// `~/.local/state/horde-workers/NAME`.
    pub fn state_dir(&self, name: &str) -> PathBuf {
        ours(&self.state_home).join(name)
    }

    /// `~/.cache/horde-workers/models`, shared by all workers.
    pub fn models_dir(&self) -> PathBuf {
        ours(&self.cache_home).join("models")
    }
}

fn ours(base: &Path) -> PathBuf {
    base.join("horde-workers")
}
