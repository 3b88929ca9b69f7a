//! Real weights, which tests of several rooms read.

use std::path::PathBuf;

/// Where `./x` fetches weights to: `HORDE_WORKERS_MODELS`, or below the home folder.
pub fn models_dir() -> PathBuf {
    match std::env::var_os("HORDE_WORKERS_MODELS") {
        Some(folder) => folder.into(),
        None => std::env::home_dir()
            .expect("a home folder")
            .join(".cache/horde-workers/models"),
    }
}
