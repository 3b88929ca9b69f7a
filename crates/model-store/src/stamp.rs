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
        Self::recorded(path).filter(|stamp| stamp.holds(path))
    }

    /// The stamp beside `path`, whatever has become of the file since.
    fn recorded(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(stamp_path(path)).ok()?).ok()
    }

    /// Whether `path` still looks as it did when this was written: same size, time and inode.
    pub fn holds(&self, path: &Path) -> bool {
        Self::new(path, self.sha256).is_ok_and(|now| now == *self)
    }

    /// Writes the stamp. A failure costs time later, nothing else, and is not reported.
    pub fn write(&self, path: &Path) {
        if let Ok(text) = serde_json::to_vec(self) {
            let _ = fs::write(stamp_path(path), text);
        }
    }

    /// The sum of `path`, and whether it is right: the wanted one, or, where nobody knows it, the one that was recorded
    /// when the file was first there. A record of the first sum is never replaced by one of another sum.
    pub fn judge(path: &Path, wanted: Option<Sha256Sum>) -> io::Result<(Sha256Sum, bool)> {
        match Self::read(path) {
            Some(stamp) => Self::judge_sum(path, wanted, stamp.sha256),
            None => Self::judge_anew(path, wanted),
        }
    }

    /// As [`Self::judge`], and reads the file even if it looks as it did.
    pub fn judge_anew(path: &Path, wanted: Option<Sha256Sum>) -> io::Result<(Sha256Sum, bool)> {
        Self::judge_sum(path, wanted, Sha256Sum::of_file(path)?)
    }

    fn judge_sum(path: &Path, wanted: Option<Sha256Sum>, sum: Sha256Sum) -> io::Result<(Sha256Sum, bool)> {
        let is_right = match (wanted, Self::recorded(path)) {
            (Some(wanted), _) => wanted == sum,
            (None, Some(first)) => first.sha256 == sum,
            (None, None) => true,
        };
        if is_right || wanted.is_some() {
            Self::new(path, sum)?.write(path);
        }
        Ok((sum, is_right))
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
    fn where_nobody_knows_the_sum_the_first_one_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        fs::write(&path, b"one").unwrap();
        assert_eq!(Stamp::judge(&path, None).unwrap(), (Sha256Sum::of(b"one"), true));
        fs::write(&path, b"other").unwrap();
        let other = Sha256Sum::of(b"other");
        for _ in 0..2 {
            assert_eq!(Stamp::judge(&path, None).unwrap(), (other, false));
        }
        assert_eq!(Stamp::judge(&path, Some(other)).unwrap(), (other, true));
    }

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
