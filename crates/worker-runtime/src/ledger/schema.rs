//! The tables, their version, and what happens to a file that is no database any more.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::{Durability, LedgerError};

const VERSION: i64 = 2;

/// From the first version to the second.
const ADD_FAULT_MODEL: &str = "ALTER TABLE generation ADD COLUMN fault_model TEXT";

const TABLES: &str = "
CREATE TABLE generation (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    popped_at_ms INTEGER NOT NULL,
    ttl_ms INTEGER NOT NULL,
    -- popped, generated, uploaded | submitted, accepted, faulted, expired
    state TEXT NOT NULL,
    sha256 BLOB,
    reward REAL,
    reason TEXT,
    closed_at_ms INTEGER,
    -- Model that a hand-back has to name.
    fault_model TEXT
) STRICT;
CREATE INDEX generation_open ON generation (kind) WHERE closed_at_ms IS NULL;
CREATE INDEX generation_closed ON generation (closed_at_ms);
CREATE TABLE tally (
    hour INTEGER PRIMARY KEY,
    submitted INTEGER NOT NULL DEFAULT 0,
    faulted INTEGER NOT NULL DEFAULT 0,
    expired INTEGER NOT NULL DEFAULT 0,
    kudos REAL NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) STRICT;
";

/// A database that could not be read and was moved aside.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ledger could not be read ({reason}) and was moved to `{}`; jobs taken before are lost to this worker", moved_to.display())]
pub struct Quarantined {
    /// Where it is now.
    pub moved_to: PathBuf,
    /// What was wrong with it.
    pub reason: String,
}

pub(super) fn open(path: &Path, durability: Durability) -> Result<(Connection, Option<Quarantined>), LedgerError> {
    match try_open(path, durability) {
        Ok(db) => Ok((db, None)),
        Err(LedgerError::Database(error)) if is_torn(&error) => {
            let moved_to = move_aside(path).map_err(|source| LedgerError::Disk {
                path: path.to_owned(),
                source,
            })?;
            let db = try_open(path, durability)?;
            Ok((
                db,
                Some(Quarantined {
                    moved_to,
                    reason: error.to_string(),
                }),
            ))
        }
        Err(error) => Err(error),
    }
}

fn try_open(path: &Path, durability: Durability) -> Result<Connection, LedgerError> {
    super::spool::make_private_file(path)?;
    let mut db = Connection::open(path)?;
    db.busy_timeout(Duration::from_secs(5))?;
    let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        let torn = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(torn, Some(verdict)).into());
    }
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(
        None,
        "synchronous",
        if durability == Durability::Full { "FULL" } else { "OFF" },
    )?;
    let found: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match found {
        VERSION => {}
        0 => {
            let write = db.transaction()?;
            write.execute_batch(TABLES)?;
            write.pragma_update(None, "user_version", VERSION)?;
            write.commit()?;
        }
        1 => {
            let write = db.transaction()?;
            write.execute_batch(ADD_FAULT_MODEL)?;
            write.pragma_update(None, "user_version", VERSION)?;
            write.commit()?;
        }
        _ => return Err(LedgerError::TooNew { found, known: VERSION }),
    }
    Ok(db)
}

fn is_torn(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        // A database cut inside its schema opens, and then lacks tables or has them twice.
        || matches!(error, rusqlite::Error::SqliteFailure(_, Some(text)) if text.contains("malformed") || text.contains("already exists"))
}

fn move_aside(path: &Path) -> std::io::Result<PathBuf> {
    let moved_to = (1..1000)
        .map(|n| path.with_extension(format!("torn-{n}")))
        .find(|free| !free.exists())
        .ok_or(std::io::ErrorKind::AlreadyExists)?;
    std::fs::rename(path, &moved_to)?;
    for suffix in ["-wal", "-shm"] {
        let mut side = path.as_os_str().to_owned();
        side.push(suffix);
        match std::fs::remove_file(side) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(moved_to)
}
