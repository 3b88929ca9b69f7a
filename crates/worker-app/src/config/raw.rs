//! The common part as it is written, one field per key.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::LogFormat;

/// Every common key with its default. Field names are the keys of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Raw {
    pub horde_url: String,
    pub proxy: Option<String>,
    pub api_key: Option<String>,
    pub api_key_file: Option<PathBuf>,
    pub allow_readable_key: bool,
    pub worker_name: Option<String>,
    pub bridge_agent: Option<String>,
    pub devices: Vec<String>,
    pub prefetch: i64,
    pub nsfw: bool,
    pub priority_usernames: Vec<String>,
    pub pause_between: Vec<String>,
    pub grace: String,
    pub log: String,
    pub log_format: LogFormat,
    pub state_dir: Option<PathBuf>,
    pub models_dir: Option<PathBuf>,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            horde_url: "https://aihorde.net/api/".to_owned(),
            proxy: None,
            api_key: None,
            api_key_file: None,
            allow_readable_key: false,
            worker_name: None,
            bridge_agent: None,
            devices: vec!["auto".to_owned()],
            prefetch: 1,
            nsfw: true,
            priority_usernames: Vec::new(),
            pause_between: Vec::new(),
            grace: "90s".to_owned(),
            log: "info".to_owned(),
            log_format: LogFormat::Auto,
            state_dir: None,
            models_dir: None,
        }
    }
}

/// Keys whose values are never shown, in the common part and in every section.
pub(super) fn is_secret(key: &str) -> bool {
    key == "api_key" || key.ends_with("_key") || key.ends_with("_token") || key == "token" || key.ends_with("password")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_stands_in_the_manual_and_in_the_file_setup_fills_in() {
        let manual = include_str!("../../../../docs/OPERATING.md");
        let file = include_str!("../../../../configs/scribe.toml");
        let keys = serde_json::to_value(Raw::default()).unwrap();
        for key in keys.as_object().unwrap().keys() {
            assert!(
                manual.contains(&format!("| `{key}` |")),
                "docs/OPERATING.md lacks `{key}`"
            );
            let is_told = file
                .lines()
                .any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")));
            // A key in the configuration is possible, not recommended.
            assert!(is_told || key == "api_key", "configs/scribe.toml lacks `{key}`");
        }
    }
}
