//! `status.json`: what the running worker tells, whole at every moment.

use std::path::Path;

use serde::{Deserialize, Serialize};
use worker_runtime::Status;

use crate::config::reason;
use crate::stop::{Code, Stop};

/// Its name in the state directory.
pub const STATUS_FILE: &str = "status.json";
/// A status file longer than this was not written by a worker.
const MAX_BYTES: u64 = 4 << 20;

/// The content of `status.json`. No prompt, no result, no key, no address of an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StatusFile {
    /// The program: `scribe`.
    pub program: String,
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The worker's name at the Horde.
    pub worker_name: String,
    /// As it presents itself to the Horde.
    pub bridge_agent: String,
    /// The Horde it serves.
    pub horde_url: String,
    /// What is counted: `tokens`, `steps`.
    pub unit: String,
    /// How far the process is confined, in words.
    pub sandbox: String,
    /// Log lines that were dropped because the disk or the terminal was too slow.
    pub log_lines_dropped: u64,
    /// Warnings and errors that were logged.
    pub log_warnings: u64,
    /// Where the log goes; `None` for standard error.
    pub log_file: Option<String>,
    /// The worker's state.
    pub status: Status,
}

/// Replaces the status file in `dir`.
pub fn write_status(dir: &Path, status: &StatusFile) -> std::io::Result<()> {
    let bytes = serde_json::to_vec_pretty(status).map_err(std::io::Error::other)?;
    super::write_atomically(&dir.join(STATUS_FILE), &bytes)
}

/// Reads the status file in `dir`; it may be of a worker that has ended.
pub fn read_status(dir: &Path) -> Result<StatusFile, Stop> {
    let path = dir.join(STATUS_FILE);
    let unreadable = |why: String| {
        Stop::new(Code::StateDir, format!("cannot read `{}`: {why}", path.display()))
            .hint("is `state_dir` the one of the running worker?")
    };
    let length = std::fs::metadata(&path)
        .map_err(|error| unreadable(reason(&error)))?
        .len();
    if length > MAX_BYTES {
        return Err(unreadable("it is too long".to_owned()));
    }
    let bytes = std::fs::read(&path).map_err(|error| unreadable(reason(&error)))?;
    let file: StatusFile =
        serde_json::from_slice(&bytes).map_err(|error| unreadable(format!("it is no status: {error}")))?;
    // Fields may be missing in a file of another version; a worker without a process was never one.
    if file.pid == 0 {
        Err(unreadable("it is no status".to_owned()))
    } else {
        Ok(file)
    }
}
