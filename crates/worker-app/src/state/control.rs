//! `control/`: commands as files. A command is written beside its place and renamed there; the worker removes it when it
//! has taken it, and the giver takes the removal as the answer.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use worker_runtime::Command;

use super::holder;
use crate::config::reason;
use crate::stop::{Code, Stop};

const CONTROL_DIR: &str = "control";
/// A command file longer than this is none.
const MAX_BYTES: u64 = 4096;
/// Most commands taken in one look; the rest waits for the next.
const MAX_AT_ONCE: usize = 16;
/// The worker looks four times a second; a busy machine gets some more.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What an owner can tell a running worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Rest: finish what is held (or hand it back, when `now`), then free the devices.
    Pause {
        /// Seconds; without them until `resume`.
        for_s: Option<u64>,
        /// Hand back what is held.
        #[serde(default)]
        now: bool,
    },
    /// Serve again.
    Resume,
    /// Take nothing new, finish what is held, exit.
    Finish,
    /// Hand back what waits, finish what ends soon, exit.
    Stop,
}

impl From<Order> for Command {
    fn from(order: Order) -> Self {
        match order {
            Order::Pause { for_s, now } => Self::Pause {
                for_: for_s.map(Duration::from_secs),
                now,
            },
            Order::Resume => Self::Resume,
            Order::Finish => Self::Finish,
            Order::Stop => Self::Stop,
        }
    }
}

/// The running worker took the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The worker's process, where known.
    pub pid: Option<u32>,
}

/// Nothing holds `dir` (75).
pub fn not_running(name: &str, dir: &Path) -> Stop {
    Stop::new(
        Code::Instance,
        format!("no {name} runs with the state directory `{}`", dir.display()),
    )
    .hint(format!(
        "start it with `{name}`, or name its directory with `--state-dir`"
    ))
}

/// Gives `order` to the worker that holds `dir` and waits until it has taken it.
pub fn give(dir: &Path, order: Order) -> Result<Taken, Stop> {
    let Some(pid) = holder(dir) else {
        return Err(not_running("worker", dir).hint("start it, or name its directory with `--state-dir`"));
    };
    let path = put(dir, order).map_err(|error| {
        Stop::new(
            Code::StateDir,
            format!(
                "cannot write into `{}`: {}",
                dir.join(CONTROL_DIR).display(),
                reason(&error)
            ),
        )
        .hint(match error.kind() {
            std::io::ErrorKind::StorageFull => "make room; SIGTERM reaches the worker without a disk",
            _ => "orders must be given by the user the worker runs as",
        })
    })?;
    let give_up = Instant::now() + ANSWER_WITHIN;
    while Instant::now() < give_up {
        if !path.exists() {
            return Ok(Taken { pid });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // Taken back, so that it does not strike a later worker by surprise.
    match std::fs::remove_file(&path) {
        Err(_) => Ok(Taken { pid }),
        Ok(()) => {
            let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            Err(Stop::new(
                Code::Instance,
                format!(
                    "the worker{pid} did not take the order within {} s",
                    ANSWER_WITHIN.as_secs()
                ),
            )
            .hint("it may be starting, ending or stuck; look at its log"))
        }
    }
}

fn put(dir: &Path, order: Order) -> std::io::Result<PathBuf> {
    let control = dir.join(CONTROL_DIR);
    create(&control)?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Names sort in the order in which commands were given.
    let path = control.join(format!("{:020}-{}.json", since_epoch.as_nanos(), std::process::id()));
    super::write_atomically(&path, &serde_json::to_vec(&order).map_err(std::io::Error::other)?)?;
    Ok(path)
}

fn create(control: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(control)
}

/// The worker's side.
#[derive(Debug)]
pub struct Inbox {
    control: PathBuf,
}

impl Inbox {
    /// Opens the inbox of a state directory that the caller holds; orders given to an earlier worker are forgotten.
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        let control = dir.join(CONTROL_DIR);
        create(&control)?;
        for entry in std::fs::read_dir(&control)?.flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        Ok(Self { control })
    }

    /// Orders given since the last look, oldest first; what is no order is removed and told as an error.
    pub fn take(&self) -> Vec<Result<Order, String>> {
        let Ok(entries) = std::fs::read_dir(&self.control) else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_order(path))
            .collect();
        paths.sort();
        paths.truncate(MAX_AT_ONCE);
        paths
            .into_iter()
            .filter_map(|path| {
                let order = read(&path);
                // An order that cannot be removed would be taken again and again.
                std::fs::remove_file(&path).is_ok().then_some(order)
            })
            .collect()
    }
}

fn is_order(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    !name.starts_with('.') && name.ends_with(".json")
}

fn read(path: &Path) -> Result<Order, String> {
    let no_order = |why: &dyn std::fmt::Display| format!("a file in `{CONTROL_DIR}` is no order: {why}");
    let metadata = std::fs::symlink_metadata(path).map_err(|error| no_order(&error))?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(no_order(&"not a short file"));
    }
    let bytes = std::fs::read(path).map_err(|error| no_order(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| no_order(&error))
}
