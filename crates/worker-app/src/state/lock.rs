//! One worker per state directory: an advisory lock that vanishes with its holder, so no stale pid file is ever trusted.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::reason;
use crate::stop::{Code, Stop};

const LOCK_FILE: &str = "lock";
/// A command that asks who holds the lock takes it for a moment; a start waits that long.
const PATIENCE: Duration = Duration::from_millis(300);

/// The state directory, held until dropped or until the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    dir: PathBuf,
    _file: File,
}

impl Lock {
    /// Creates the directory if need be (mode 0700), tries to write there, and takes it: 73 where it cannot be used,
    /// 75 where another worker holds it.
    pub fn take(dir: &Path) -> Result<Self, Stop> {
        let unusable = |error: &std::io::Error| {
            Stop::new(
                Code::StateDir,
                format!(
                    "the state directory `{}` cannot be used: {}",
                    dir.display(),
                    reason(error)
                ),
            )
            .hint("make it writable for the worker's user, or name another one with `state_dir`")
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| unusable(&error))?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(dir.join(LOCK_FILE))
            .map_err(|error| unusable(&error))?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => return Err(held(dir, read_pid(&mut file))),
                Err(TryLockError::Error(error)) => return Err(unusable(&error)),
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(|error| unusable(&error))?;
        Ok(Self {
            dir: dir.to_owned(),
            _file: file,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The process that holds `dir` now: `None` when nobody does, `Some(None)` when it has not written its pid yet.
pub fn holder(dir: &Path) -> Option<Option<u32>> {
    let mut file = File::open(dir.join(LOCK_FILE)).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(read_pid(&mut file)),
        _ => None,
    }
}

fn held(dir: &Path, pid: Option<u32>) -> Stop {
    let pid = pid.map_or_else(|| "an unknown pid".to_owned(), |pid| format!("pid {pid}"));
    Stop::new(
        Code::Instance,
        format!("another worker ({pid}) holds the state directory `{}`", dir.display()),
    )
    .hint("stop it first, or give this one its own `state_dir` and `worker_name`")
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
