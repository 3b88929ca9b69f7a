//! The owner's configuration: read from four layers, checked once, resolved into one value without `Option`s.
//!
//! Layers, each over the one before: defaults, file, environment, flags. [`load`] is the way in.

mod environment;
mod file;
mod key;

mod layers;
mod locate;
mod origin;
mod places;
mod raw;
mod resolve;
mod windows;

use std::path::PathBuf;
use std::time::Duration;

use horde_client::agent::{BridgeAgent, WorkerName};
use url::Url;

pub(crate) use file::reason;
pub use key::{Key, KeySource};
pub use layers::{Loaded, Sources, load};
pub use places::Places;
pub use windows::Window;

/// The part of the configuration every worker has, resolved and within bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Common {
    /// Where the Horde's API is, with a trailing slash: `https://aihorde.net/api/`.
    pub horde_url: Url,
    /// The name shown by the Horde, unique there.
    pub worker_name: WorkerName,
    /// `NAME:VERSION:CONTACT`, by which the Horde gives features.
    pub bridge_agent: BridgeAgent,
    /// Proxy for the Horde and its object store; the environment's proxy variables are never looked at.
    pub proxy: Option<Url>,
    /// Devices as the owner wrote them; `["auto"]` means the best one found.
    pub devices: Vec<String>,
    /// Jobs popped ahead per device, 0..=2.
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

impl Common {
    /// Whether the Horde is on this machine, so that plain http and loopback sources are allowed.
    pub fn is_on_loopback(&self) -> bool {
        resolve::is_loopback(&self.horde_url)
    }
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
