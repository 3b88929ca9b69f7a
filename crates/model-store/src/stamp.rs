//! A note beside a verified file, so that 17 GB need not be hashed at every start.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Sum;

/// The sum a file had when it was last read whole, and what it looked like then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Sum of the whole file.
    pub sha256: Sha256Sum,
    /// Size in bytes.
    pub size_bytes: u64,
    modified_ns: i128,
    inode: u64,
}

impl Stamp {
    /// Describes `path` as it is now.
    pub fn new(path: &Path, sha256: Sha256Sum) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self {
            sha256,
            size_bytes: meta.len(),
            modified_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            inode: meta.ino(),
        })
    }

    /// The stamp beside `path`, if the file still looks as it did when the stamp was written.
    pub fn read(path: &Path) -> Option<Self> {
        let stamp: Self = serde_json::from_slice(&fs::read(stamp_path(path)).ok()?).ok()?;
        (Self::new(path, stamp.sha256).ok()? == stamp).then_some(stamp)
    }

    /// Writes the stamp. A failure costs time later, nothing else, and is not reported.
    pub fn write(&self, path: &Path) {
        if let Ok(text) = serde_json::to_vec(self) {
            let _ = fs::write(stamp_path(path), text);
        }
    }

    /// The sum of `path`: from the stamp when that still holds, otherwise by reading the file.
    pub fn sum_of(path: &Path) -> io::Result<Sha256Sum> {
        if let Some(stamp) = Self::read(path) {
            return Ok(stamp.sha256);
        }
        let sum = Sha256Sum::of_file(path)?;
        Self::new(path, sum)?.write(path);
        Ok(sum)
    }
}

/// `.NAME.sum` in the same directory.
pub(crate) fn stamp_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".sum");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        fs::write(&path, b"one").unwrap();
        assert_eq!(Stamp::sum_of(&path).unwrap(), Sha256Sum::of(b"one"));
        assert!(Stamp::read(&path).is_some());
        fs::write(&path, b"other").unwrap();
        assert!(Stamp::read(&path).is_none());
        assert_eq!(Stamp::sum_of(&path).unwrap(), Sha256Sum::of(b"other"));
    }
}
