//! The state directory: who holds it, what the worker tells, what it is told. Files only, no socket.

mod control;
mod lock;
mod status_file;

pub use control::{Inbox, Order, Taken, give, not_running};
pub use lock::{Lock, holder};
pub use status_file::{STATUS_FILE, StatusFile, read_status, write_status};

use std::io::Write;
use std::path::Path;

/// Writes `bytes` beside `path` and renames it there, so that a reader sees the old file or the new one.
///
/// # Errors
/// The file system's.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = std::fs::File::create(&beside)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}
