//! A file in the making: `NAME.part` with its journal `NAME.part.json`, locked against other processes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plan::FetchPlan;
use super::ranges::Ranges;
use crate::digest::Sha256Sum;

/// What the journal says. Written without waiting for the disk, since a killed process loses no page cache;
/// after a crash of the machine (another boot) only `synced` is believed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Journal {
    pub total_bytes: Option<u64>,
    pub sha256: Option<Sha256Sum>,
    /// Strong `ETag` of the source; decides whether to go on where no sum is known.
    pub etag: Option<String>,
    boot: String,
    pub done: Ranges,
    synced: Ranges,
}

impl Journal {
    /// Takes over what an earlier copy of this journal knows to be on the disk.
    pub(crate) fn adopt_synced(&mut self, saved: Journal) {
        self.synced = saved.synced;
    }
}

/// The open, locked part file.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub file: Arc<File>,
    path: PathBuf,
    journal_path: PathBuf,
}

/// The outcome of opening.
pub(crate) enum Opened {
    Ours(Box<(Part, Journal)>),
    /// Another process holds it.
    Busy,
}

impl Part {
    /// Opens or creates the part file of `plan`, takes its lock and reads what the journal vouches for.
    pub(crate) fn open(plan: &FetchPlan) -> io::Result<Opened> {
        let path = beside(&plan.dest, ".part");
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Opened::Busy),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The former holder may have renamed or removed what we opened: then the lock is on the wrong file.
            let same = fs::metadata(&path).is_ok_and(|now| {
                file.metadata()
                    .is_ok_and(|ours| (now.ino(), now.dev()) == (ours.ino(), ours.dev()))
            });
            if !same {
                continue;
            }
            let part = Self {
                file: Arc::new(file),
                journal_path: beside(&plan.dest, ".part.json"),
                path,
            };
            let journal = part.read_journal(plan)?;
            return Ok(Opened::Ours(Box::new((part, journal))));
        }
    }

    fn read_journal(&self, plan: &FetchPlan) -> io::Result<Journal> {
        let fresh = Journal {
            total_bytes: plan.size_bytes,
            sha256: plan.sha256,
            boot: boot_id(),
            ..Journal::default()
        };
        let length = self.file.metadata()?.len();
        let Some(old) = fs::read(&self.journal_path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Journal>(&text).ok())
        else {
            return Ok(fresh);
        };
        let same_file = match (plan.sha256, old.sha256) {
            (Some(wanted), Some(had)) => wanted == had,
            (None, None) => old.etag.is_some(),
            _ => false,
        };
        let same_size = plan.size_bytes.is_none() || plan.size_bytes == old.total_bytes;
        let believed = if old.boot == fresh.boot { &old.done } else { &old.synced };
        match believed.clone().checked(old.total_bytes.unwrap_or(0).min(length)) {
            Some(done) if same_file && same_size => Ok(Journal {
                synced: old.synced.checked(length).unwrap_or_default(),
                boot: fresh.boot,
                done,
                ..old
            }),
            _ => Ok(fresh),
        }
    }

    /// Writes the journal. With `sync`, the bytes it vouches for are on the disk first.
    pub(crate) fn write_journal(&self, journal: &mut Journal, sync: bool) -> io::Result<()> {
        if sync {
            self.file.sync_data()?;
            journal.synced = journal.done.clone();
        }
        let temporary = beside(&self.journal_path, ".new");
        fs::write(&temporary, serde_json::to_vec(journal)?)?;
        fs::rename(&temporary, &self.journal_path)
    }

    /// Bytes of disk the part already takes.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.blocks().saturating_mul(512))
    }

    /// Reserves room for `total` bytes, so that a full disk is known before the first byte is fetched.
    pub(crate) fn reserve(&self, total: u64) -> io::Result<()> {
        let Ok(length) = i64::try_from(total) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        if length == 0 {
            return self.file.set_len(0);
        }
        #[cfg(target_os = "linux")]
        {
            use nix::errno::Errno;
            use nix::fcntl::{FallocateFlags, fallocate};
            match fallocate(&self.file, FallocateFlags::empty(), 0, length) {
                // Not every file system can reserve.
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.file.set_len(total)
    }

    /// Forgets everything: the next byte is byte zero.
    pub(crate) fn reset(&self) -> io::Result<()> {
        let _ = fs::remove_file(&self.journal_path);
        self.file.set_len(0)
    }

    /// Puts the finished file under its final name, durably, and removes the journal.
    pub(crate) fn finish(self, dest: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, dest)?;
        if let Some(dir) = dest.parent() {
            File::open(dir)?.sync_all()?;
        }
        let _ = fs::remove_file(&self.journal_path);
        Ok(())
    }

    /// Removes part and journal: nothing of it is worth keeping.
    pub(crate) fn discard(self) {
        let _ = fs::remove_file(&self.journal_path);
        let _ = fs::remove_file(&self.path);
    }

    /// A second handle to the same file, for a blocking thread; the lock lasts until the last one is dropped.
    pub(crate) fn handle(&self) -> Self {
        self.clone()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// `path` with `suffix` added to its last component.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| String::new(), |id| id.trim().to_owned())
}
