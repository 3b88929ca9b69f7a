//! Finished results on disk until they are handed in: one private file per generation, written aside and renamed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use horde_client::ids::GenerationId;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::{Durability, LedgerError};

/// What it takes to hand one generation in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spooled {
    /// The kind's submission as JSON.
    #[serde(with = "serde_bytes")]
    pub submission: Vec<u8>,
    /// Bytes for the object store.
    pub upload: Option<ByteBuf>,
}

impl Spooled {
    /// Writes the file and returns its sha256.
    pub(super) fn write(&self, dir: &Path, id: &GenerationId, durability: Durability) -> Result<Vec<u8>, LedgerError> {
        let bytes = rmp_serde::to_vec_named(self).map_err(|_| LedgerError::Spool("not writable"))?;
        let sha256 = Sha256::digest(&bytes).to_vec();
        let path = path_of(dir, id);
        let aside = path.with_extension("part");
        let written = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&aside)?;
            file.write_all(&bytes)?;
            if durability == Durability::Full {
                file.sync_all()?;
            }
            std::fs::rename(&aside, &path)?;
            if durability == Durability::Full {
                File::open(dir)?.sync_all()?;
            }
            Ok(())
        };
        written().map_err(|source| LedgerError::Disk {
            path: path.clone(),
            source,
        })?;
        Ok(sha256)
    }

    pub(super) fn read(dir: &Path, id: &GenerationId, sha256: &[u8]) -> Result<Self, LedgerError> {
        let bytes = std::fs::read(path_of(dir, id)).map_err(|_| LedgerError::Spool("gone"))?;
        if Sha256::digest(&bytes).as_slice() != sha256 {
            return Err(LedgerError::Spool("not as they were written"));
        }
        rmp_serde::from_slice(&bytes).map_err(|_| LedgerError::Spool("not readable"))
    }

    pub(super) fn remove(dir: &Path, id: &GenerationId) {
        // A file that cannot be removed is only lost space; the row is closed.
        let _ = std::fs::remove_file(path_of(dir, id));
    }

    pub(super) fn probe(dir: &Path) -> Result<(), LedgerError> {
        let path = dir.join("probe");
        let probed = std::fs::write(&path, [0u8; 4096]).and_then(|()| std::fs::remove_file(&path));
        probed.map_err(|source| LedgerError::Disk { path, source })
    }
}

/// Ids come from the server: a hash of one is always a safe file name.
fn path_of(dir: &Path, id: &GenerationId) -> PathBuf {
    let digest = Sha256::digest(id.0.as_bytes());
    let name: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    dir.join(name)
}

pub(super) fn make_private_dir(path: &Path) -> Result<(), LedgerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| LedgerError::Disk {
            path: path.to_owned(),
            source,
        })
}

/// Makes the file, readable by its owner alone, if it is not there.
pub(super) fn make_private_file(path: &Path) -> Result<(), LedgerError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => Err(LedgerError::Disk {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
