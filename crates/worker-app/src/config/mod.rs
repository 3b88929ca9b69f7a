//! The owner's configuration: read from four layers, checked once, resolved into one value without `Option`s.
//!
//! Layers, each over the one before: defaults, file, environment, flags. [`load`] is the way in.

mod key;
mod layers;
mod locate;
mod places;
mod raw;
mod resolve;
mod windows;

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

pub use key::{Key, KeySource};
pub use layers::{Loaded, Sources, load};
pub use places::Places;
pub use windows::Window;

/// The part of the configuration every worker has, resolved and within bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// Where the Horde's API is, with a trailing slash: `https://aihorde.net/api/`.
    pub horde_url: Url,
    /// The name shown by the Horde, unique there; checked by the server's own rules.
    pub worker_name: String,
    /// `NAME:VERSION:REST`, by which the Horde gives features.
    pub bridge_agent: String,
    /// Devices as the owner wrote them; `["auto"]` means the best one found.
    pub devices: Vec<String>,
    /// Jobs popped ahead per device, 0..=4.
    pub prefetch: usize,
    /// Whether the worker serves NSFW requests.
    pub nsfw: bool,
    /// Users served first, each `name#id`.
    pub priority_usernames: Vec<String>,
    /// Times of day, local, in which the worker pauses by itself.
    pub pause_between: Vec<Window>,
    /// How long running jobs may go on after a stop was asked for.
    pub grace: Duration,
    /// What is logged and how.
    pub log: LogSettings,
    /// State directory: lock, ledger, status, control.
    pub state_dir: PathBuf,
    /// Where models lie.
    pub models_dir: PathBuf,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A filter as `tracing` reads it: `info`, `debug`, `warn,worker_runtime=debug`.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

/// How the program reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// The live display on a terminal, text elsewhere.
    #[default]
    Auto,
    /// One line of text per event.
    Text,
    /// One JSON object per event.
    Json,
}
