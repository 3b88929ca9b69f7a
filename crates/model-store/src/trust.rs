//! Which files may be used: each read whole once, its sum held against what is known of it and remembered in one file, so
//! that a later start reads nothing again.
//!
//! Where nobody knows the right sum (a checkpoint that was converted here, a file its owner put there), the first one is
//! recorded and trusted; another one under the same name is refused until it comes by [`crate::store::Store::pull`] or its
//! sum stands in `models.toml`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Sum;
use crate::stamp::Stamp;

/// What is remembered of files, and where.
#[derive(Debug)]
pub struct Trust {
    file: PathBuf,
    seen: BTreeMap<PathBuf, Seen>,
    is_changed: bool,
}

/// One file as it was when it was last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    /// How it looked then, and its sum.
    stamp: Stamp,
    /// The sum it must keep; none while every sum it ever had was refused.
    trusted: Option<Sha256Sum>,
}

/// A file that may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trusted {
    /// Its sum and how it looks.
    pub stamp: Stamp,
    /// Nobody knows the right sum, and this is the first one seen here.
    pub is_first_use: bool,
}

/// Why a file may not be used.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is not what the references or `models.toml` say.
    #[error("has sha256 {found}, expected {expected}")]
    Other {
        /// What it has.
        found: Sha256Sum,
        /// The first of the known sums.
        expected: Sha256Sum,
    },
    /// Nobody knows its sum, and it is not the one that was trusted before.
    #[error("has changed since it was first used: sha256 {found}, then {first}")]
    Changed {
        /// What it has.
        found: Sha256Sum,
        /// What it had.
        first: Sha256Sum,
    },
}

impl Trust {
    /// What `file` remembers; nothing where it is not there or cannot be understood.
    pub fn open(file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        let text = std::fs::read(&file).unwrap_or_default();
        Self {
            seen: serde_json::from_slice(&text).unwrap_or_default(),
            file,
            is_changed: false,
        }
    }

    /// Whether `path` may be used. `known` are all sums that are right for it; empty where nobody knows one.
    /// Reads the file only if it changed since it was last read, here or by the store.
    pub fn check(&mut self, path: &Path, known: &[Sha256Sum]) -> Result<Trusted, Distrust> {
        let before = self.seen.get(path).copied();
        let by_store = Stamp::read(path);
        let stamp = match before.map(|seen| seen.stamp).filter(|stamp| stamp.holds(path)) {
            Some(stamp) => stamp,
            None => match by_store {
                Some(stamp) => stamp,
                None => Stamp::new(path, Sha256Sum::of_file(path)?)?,
            },
        };
        let first = before.and_then(|seen| seen.trusted);
        let verdict = match (known.first(), first) {
            (Some(_), _) if known.contains(&stamp.sha256) => Ok(false),
            (Some(expected), _) => Err(Distrust::Other {
                found: stamp.sha256,
                expected: *expected,
            }),
            (None, None) => Ok(true),
            (None, Some(first)) if first == stamp.sha256 => Ok(false),
            // The store wrote that it put this very file there.
            (None, Some(_)) if by_store.is_some() => Ok(true),
            (None, Some(first)) => Err(Distrust::Changed {
                found: stamp.sha256,
                first,
            }),
        };
        let now = Seen {
            stamp,
            trusted: if verdict.is_ok() { Some(stamp.sha256) } else { first },
        };
        if before != Some(now) {
            self.seen.insert(path.to_owned(), now);
            self.is_changed = true;
        }
        verdict.map(|is_first_use| Trusted { stamp, is_first_use })
    }

    /// Writes what is remembered, by renaming; nothing where nothing changed.
    ///
    /// # Errors
    /// The file system's. Then files are read again at the next start.
    pub fn save(&mut self) -> io::Result<()> {
        if !self.is_changed {
            return Ok(());
        }
        let text = serde_json::to_vec_pretty(&self.seen)?;
        if let Some(folder) = self.file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let temporary = crate::fetch::part::beside(&self.file, ".new");
        std::fs::write(&temporary, text)?;
        std::fs::rename(&temporary, &self.file)?;
        self.is_changed = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(bytes: &[u8]) -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            std::fs::write(place.file(), bytes).unwrap();
            place
        }
        fn file(&self) -> PathBuf {
            self.0.path().join("net.safetensors")
        }
        /// A start of the program: remembers, asks, remembers.
        fn ask(&self, known: &[Sha256Sum]) -> Result<Trusted, Distrust> {
            let mut trust = Trust::open(self.0.path().join("state/verified.json"));
            let answer = trust.check(&self.file(), known);
            trust.save().unwrap();
            answer
        }
    }

    #[test]
    fn a_known_sum_is_wanted_and_another_one_refused_whatever_was_there_before() {
        let place = Place::new(b"right");
        let known = [Sha256Sum::of(b"also right"), Sha256Sum::of(b"right")];
        assert!(!place.ask(&known).unwrap().is_first_use);
        std::fs::write(place.file(), b"wrong").unwrap();
        assert!(matches!(place.ask(&known), Err(Distrust::Other { .. })));
        std::fs::write(place.file(), b"also right").unwrap();
        assert!(place.ask(&known).is_ok());
    }

    #[test]
    fn without_a_known_sum_the_first_file_is_trusted_and_a_later_one_only_from_the_store() {
        let place = Place::new(b"mine");
        assert!(place.ask(&[]).unwrap().is_first_use);
        assert!(!place.ask(&[]).unwrap().is_first_use);
        std::fs::write(place.file(), b"else").unwrap();
        assert!(matches!(place.ask(&[]), Err(Distrust::Changed { .. })));
        assert!(matches!(place.ask(&[]), Err(Distrust::Changed { .. })), "again");
        Stamp::new(&place.file(), Sha256Sum::of(b"else"))
            .unwrap()
            .write(&place.file());
        assert!(place.ask(&[]).unwrap().is_first_use);
        std::fs::write(place.file(), b"anew").unwrap();
        assert!(place.ask(&[]).is_err());
        assert!(place.ask(&[Sha256Sum::of(b"anew")]).is_ok(), "its sum is known now");
    }

    #[test]
    fn a_file_that_looks_the_same_is_not_read_again() {
        let place = Place::new(b"one");
        let first = place.ask(&[]).unwrap();
        // The same length and time: only reading it could tell.
        let time = std::fs::metadata(place.file()).unwrap().modified().unwrap();
        std::fs::write(place.file(), b"two").unwrap();
        let file = std::fs::File::options().write(true).open(place.file()).unwrap();
        file.set_modified(time).unwrap();
        assert_eq!(place.ask(&[]).unwrap().stamp, first.stamp);
    }

    #[test]
    fn what_is_gone_or_a_folder_is_refused_and_nonsense_is_forgotten() {
        let place = Place::new(b"x");
        std::fs::create_dir_all(place.0.path().join("state")).unwrap();
        std::fs::write(place.0.path().join("state/verified.json"), b"[3").unwrap();
        assert!(place.ask(&[]).unwrap().is_first_use);
        std::fs::remove_file(place.file()).unwrap();
        assert!(matches!(place.ask(&[]), Err(Distrust::Unreadable(_))));
        std::fs::create_dir(place.file()).unwrap();
        assert!(matches!(place.ask(&[]), Err(Distrust::Unreadable(_))));
    }
}
