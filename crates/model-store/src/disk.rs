//! Free space: how much there is, and how much must be left over.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Free bytes of the file system that holds a directory; replaceable so that tests can fill a disk.
pub type FreeSpace = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// Bytes an ordinary user may still write to the file system that holds `path` or its nearest existing parent.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let existing = nearest_existing(path);
    let stat = nix::sys::statvfs::statvfs(&existing).map_err(io::Error::from)?;
    #[expect(clippy::useless_conversion, reason = "the field widths differ between platforms")]
    Ok(u64::from(stat.blocks_available()).saturating_mul(u64::from(stat.fragment_size())))
}

/// The real file system's answer.
pub fn real_free_space() -> FreeSpace {
    Arc::new(free_bytes)
}

/// True for the errors that mean "no room": full, over quota, or over the process's file size limit.
pub fn is_out_of_space(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// True for the errors that mean "this place cannot be written to by us".
pub fn is_not_writable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory
    )
}

fn nearest_existing(path: &Path) -> PathBuf {
    let mut at = path;
    loop {
        if at.exists() {
            return at.to_owned();
        }
        match at.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => at = parent,
            _ => return PathBuf::from("."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_asked_of_the_nearest_existing_parent() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("not/yet/there");
        assert!(free_bytes(&deep).unwrap() > 0);
    }
}
