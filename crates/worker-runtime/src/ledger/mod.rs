//! The durable memory of every generation that was ever taken: a row at popped, generated, uploaded and closed, and the
//! finished bytes in a spool file. Holds no prompt, no key and no signed address.
//!
//! Calls block on the disk; async code calls them on blocking threads.

mod schema;
mod spool;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use horde_client::ids::GenerationId;
use rusqlite::{Connection, OptionalExtension, params};

pub use schema::Quarantined;
pub use spool::Spooled;

/// File name of the database in the state directory.
pub const FILE_NAME: &str = "ledger.sqlite3";
/// Closed rows are kept for a week; the tallies stay.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
const HOUR_MS: i64 = 3_600_000;

/// The ledger of one worker. One process at a time: the caller holds the state directory's lock.
pub struct Ledger {
    db: Mutex<Connection>,
    spool: PathBuf,
    durability: Durability,
}

/// Whether a row is on the disk when a call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Yes: fsync at every step.
    Full,
    /// Only when the system gets to it; for simulations.
    Relaxed,
}

/// The ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk said no (full, read-only, no permission).
    #[error("the ledger in `{path}` cannot be written: {source}")]
    Disk {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database said no.
    #[error("the ledger failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// Written by a newer program.
    #[error("the ledger has version {found}, this program knows {known}")]
    TooNew {
        /// Version in the file.
        found: i64,
        /// Newest version known here.
        known: i64,
    },
    /// A spool file is missing or was changed.
    #[error("the finished bytes are {0}")]
    Spool(&'static str),
}

/// A generation as the ledger knows it, not closed yet.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenRow {
    /// Its id.
    pub id: GenerationId,
    /// Milliseconds since 1970 at the pop's answer.
    pub popped_at_ms: i64,
    /// Its lease.
    pub ttl: Duration,
    /// How far it got.
    pub stage: OpenStage,
    /// As in [`Taken::fault_model`].
    pub fault_model: Option<String>,
}

/// What a pop brought, as far as it is noted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// Kind of work.
    pub kind: &'static str,
    /// Milliseconds since 1970 at the pop's answer.
    pub at_ms: i64,
    /// Its lease.
    pub ttl: Duration,
    /// Model that a hand-back has to name.
    pub fault_model: Option<String>,
}

/// How far an open generation got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenStage {
    /// Popped; nothing finished.
    Popped,
    /// Its finished bytes are in the spool.
    Generated,
    /// Its bytes are in the object store; the submission is in the spool.
    Uploaded,
}

/// How a generation ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Closing {
    /// Taken by the server.
    Submitted {
        /// Kudos promised.
        reward: f64,
    },
    /// The server had it already.
    AlreadyAccepted,
    /// Handed back, and the server knows.
    Faulted {
        /// Why.
        reason: String,
    },
    /// Given up, with evidence.
    Expired {
        /// `gone` or `time passed after 3 attempts`.
        evidence: String,
    },
}

/// What was earned in one hour.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Generations taken by the server.
    pub submitted: u64,
    /// Handed back.
    pub faulted: u64,
    /// Given up.
    pub expired: u64,
    /// Kudos promised.
    pub kudos: f64,
}

impl Ledger {
    /// Opens or makes the ledger in `state_dir`. A torn database is moved aside and told of, a new one takes its place.
    pub fn open(state_dir: &Path, durability: Durability) -> Result<(Self, Option<Quarantined>), LedgerError> {
        let spool = state_dir.join("spool");
        spool::make_private_dir(state_dir)?;
        spool::make_private_dir(&spool)?;
        let (db, quarantined) = schema::open(&state_dir.join(FILE_NAME), durability)?;
        Ok((
            Self {
                db: Mutex::new(db),
                spool,
                durability,
            },
            quarantined,
        ))
    }

    /// Notes generations just popped, together. False for one that the server has taken from us before: it is not to be done again.
    pub fn popped(&self, ids: &[GenerationId], taken: &Taken) -> Result<Vec<bool>, LedgerError> {
        let ttl_ms = taken.ttl.as_millis().min(i64::MAX as u128) as i64;
        let mut db = self.db();
        let write = db.transaction()?;
        let mut fresh = Vec::with_capacity(ids.len());
        for id in ids {
            let state: Option<String> = write
                .query_row("SELECT state FROM generation WHERE id = ?1", [&id.0], |row| row.get(0))
                .optional()?;
            let is_fresh = !matches!(state.as_deref(), Some("submitted" | "accepted"));
            if is_fresh {
                write.execute(
                    "INSERT OR REPLACE INTO generation (id, kind, popped_at_ms, ttl_ms, state, fault_model)
                     VALUES (?1, ?2, ?3, ?4, 'popped', ?5)",
                    params![id.0, taken.kind, taken.at_ms, ttl_ms, taken.fault_model],
                )?;
            }
            fresh.push(is_fresh);
        }
        write.commit()?;
        Ok(fresh)
    }

    /// Notes that a generation is finished and keeps what it takes to hand it in.
    pub fn generated(&self, id: &GenerationId, finished: &Spooled) -> Result<(), LedgerError> {
        let sha256 = finished.write(&self.spool, id, self.durability)?;
        self.db().execute(
            "UPDATE generation SET state = 'generated', sha256 = ?2 WHERE id = ?1",
            params![id.0, sha256],
        )?;
        Ok(())
    }

    /// Notes that the bytes are in the object store.
    pub fn uploaded(&self, id: &GenerationId) -> Result<(), LedgerError> {
        self.db()
            .execute("UPDATE generation SET state = 'uploaded' WHERE id = ?1", [&id.0])?;
        Ok(())
    }

    /// Closes a generation for good and drops its finished bytes.
    pub fn closed(&self, id: &GenerationId, closing: &Closing, at_ms: i64) -> Result<(), LedgerError> {
        let (state, reward, reason) = match closing {
            Closing::Submitted { reward } => ("submitted", *reward, None),
            Closing::AlreadyAccepted => ("accepted", 0.0, None),
            Closing::Faulted { reason } => ("faulted", 0.0, Some(reason)),
            Closing::Expired { evidence } => ("expired", 0.0, Some(evidence)),
        };
        {
            let mut db = self.db();
            let write = db.transaction()?;
            write.execute(
                "UPDATE generation SET state = ?2, reward = ?3, reason = ?4, closed_at_ms = ?5 WHERE id = ?1",
                params![id.0, state, reward, reason, at_ms],
            )?;
            let column = if state == "accepted" { "submitted" } else { state };
            write.execute(
                &format!(
                    "INSERT INTO tally (hour, {column}, kudos) VALUES (?1, 1, ?2)
                     ON CONFLICT (hour) DO UPDATE SET {column} = {column} + 1, kudos = kudos + ?2"
                ),
                params![at_ms.div_euclid(HOUR_MS), reward],
            )?;
            write.commit()?;
        }
        Spooled::remove(&self.spool, id);
        Ok(())
    }

    /// Generations of this kind that are not closed, oldest first: what a new start has to end.
    pub fn open_rows(&self, kind: &str) -> Result<Vec<OpenRow>, LedgerError> {
        let db = self.db();
        let mut query = db.prepare(
            "SELECT id, popped_at_ms, ttl_ms, state, fault_model FROM generation
             WHERE kind = ?1 AND state IN ('popped', 'generated', 'uploaded') ORDER BY popped_at_ms, id",
        )?;
        let rows = query.query_map([kind], |row| {
            let state: String = row.get(3)?;
            Ok(OpenRow {
                id: GenerationId(row.get(0)?),
                popped_at_ms: row.get(1)?,
                ttl: Duration::from_millis(u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default()),
                stage: match state.as_str() {
                    "generated" => OpenStage::Generated,
                    "uploaded" => OpenStage::Uploaded,
                    _ => OpenStage::Popped,
                },
                fault_model: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The finished bytes of a generation, checked against their hash.
    pub fn finished(&self, id: &GenerationId) -> Result<Spooled, LedgerError> {
        let sha256: Option<Vec<u8>> = self
            .db()
            .query_row("SELECT sha256 FROM generation WHERE id = ?1", [&id.0], |row| row.get(0))
            .optional()?
            .flatten();
        Spooled::read(&self.spool, id, &sha256.ok_or(LedgerError::Spool("not in the ledger"))?)
    }

    /// How a generation ended (`submitted`, `accepted`, `faulted`, `expired`) or how far it got; `None` for one never seen.
    pub fn ending(&self, id: &GenerationId) -> Result<Option<String>, LedgerError> {
        let ending = self
            .db()
            .query_row("SELECT state FROM generation WHERE id = ?1", [&id.0], |row| row.get(0));
        Ok(ending.optional()?)
    }

    /// What was earned, by hour since 1970, from `since_ms` on.
    pub fn tallies(&self, since_ms: i64) -> Result<BTreeMap<i64, Tally>, LedgerError> {
        let db = self.db();
        let mut query = db.prepare("SELECT hour, submitted, faulted, expired, kudos FROM tally WHERE hour >= ?1")?;
        let count = |row: &rusqlite::Row<'_>, at| {
            Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(at)?).unwrap_or_default())
        };
        let rows = query.query_map([since_ms.div_euclid(HOUR_MS)], |row| {
            let tally = Tally {
                submitted: count(row, 1)?,
                faulted: count(row, 2)?,
                expired: count(row, 3)?,
                kudos: row.get(4)?,
            };
            Ok((row.get(0)?, tally))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What was earned in all.
    pub fn total(&self) -> Result<Tally, LedgerError> {
        Ok(self
            .tallies(i64::MIN)?
            .values()
            .fold(Tally::default(), |sum, hour| Tally {
                submitted: sum.submitted + hour.submitted,
                faulted: sum.faulted + hour.faulted,
                expired: sum.expired + hour.expired,
                kudos: sum.kudos + hour.kudos,
            }))
    }

    /// Writes something and takes it back: whether the disk takes rows and spool files again. Also forgets what is a week old.
    pub fn probe(&self, now_ms: i64) -> Result<(), LedgerError> {
        Spooled::probe(&self.spool)?;
        let week_ago = now_ms.saturating_sub(KEPT.as_millis() as i64);
        self.db()
            .execute("DELETE FROM generation WHERE closed_at_ms < ?1", [week_ago])?;
        self.db().execute(
            "INSERT OR REPLACE INTO meta (key, value) VALUES ('probed_at_ms', ?1)",
            [now_ms],
        )?;
        Ok(())
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> GenerationId {
        GenerationId(text.to_owned())
    }

    fn open(dir: &Path) -> Ledger {
        Ledger::open(dir, Durability::Full).expect("a ledger").0
    }

    fn taken(at_ms: i64) -> Taken {
        Taken {
            kind: "text",
            at_ms,
            ttl: Duration::from_secs(150),
            fault_model: None,
        }
    }

    #[test]
    fn rows_and_finished_bytes_survive_a_restart_and_closing_drops_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let finished = Spooled {
            submission: b"{}".to_vec(),
            upload: Some(serde_bytes::ByteBuf::from(b"pixels".to_vec())),
        };
        {
            let ledger = open(dir.path());
            let fresh = ledger
                .popped(&[id("a"), id("b"), id("c")], &taken(1_000))
                .expect("popped");
            assert_eq!(fresh, [true, true, true]);
            ledger.generated(&id("b"), &finished).expect("generated");
            ledger.generated(&id("c"), &finished).expect("generated");
            ledger.uploaded(&id("c")).expect("uploaded");
        }
        let ledger = open(dir.path());
        let stages: Vec<_> = ledger
            .open_rows("text")
            .expect("rows")
            .into_iter()
            .map(|row| (row.id.0, row.stage))
            .collect();
        assert_eq!(
            stages,
            [
                ("a".into(), OpenStage::Popped),
                ("b".into(), OpenStage::Generated),
                ("c".into(), OpenStage::Uploaded)
            ]
        );
        assert!(ledger.open_rows("image").expect("rows").is_empty());
        assert_eq!(ledger.finished(&id("b")).expect("bytes"), finished);
        ledger
            .closed(&id("b"), &Closing::Submitted { reward: 2.5 }, 7_200_001)
            .expect("closed");
        ledger
            .closed(&id("a"), &Closing::Faulted { reason: "x".into() }, 7_200_001)
            .expect("closed");
        assert!(ledger.finished(&id("b")).is_err());
        let tally = ledger.tallies(0).expect("tallies")[&2];
        assert_eq!((tally.submitted, tally.faulted, tally.kudos), (1, 1, 2.5));
        assert_eq!(
            ledger.popped(&[id("a"), id("b")], &taken(9_000)).expect("popped"),
            [true, false]
        );
        ledger.probe(i64::MAX).expect("probe");
    }

    #[test]
    fn changed_bytes_in_the_spool_are_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let ledger = open(dir.path());
        ledger.popped(&[id("a")], &taken(0)).expect("popped");
        ledger
            .generated(
                &id("a"),
                &Spooled {
                    submission: vec![1; 100],
                    upload: None,
                },
            )
            .expect("generated");
        let file = std::fs::read_dir(dir.path().join("spool"))
            .expect("spool")
            .next()
            .expect("a file")
            .expect("a file")
            .path();
        let mut bytes = std::fs::read(&file).expect("bytes");
        *bytes.last_mut().expect("not empty") ^= 1;
        std::fs::write(&file, bytes).expect("written");
        assert!(matches!(
            ledger.finished(&id("a")),
            Err(LedgerError::Spool("not as they were written"))
        ));
    }

    #[test]
    fn f061_every_torn_prefix_of_the_database_opens_again() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()).popped(&[id("a")], &taken(0)));
        let whole = std::fs::read(dir.path().join(FILE_NAME)).expect("bytes");
        let mut n_moved = 0;
        for cut in [0, 1, 17, 100, 1024, 4096, 5000, whole.len() / 2, whole.len() - 1] {
            let dir = tempfile::tempdir().expect("a directory");
            std::fs::write(dir.path().join(FILE_NAME), &whole[..cut]).expect("written");
            let (ledger, quarantined) = Ledger::open(dir.path(), Durability::Full).expect("opens");
            ledger.popped(&[id("b")], &taken(0)).expect("usable");
            // A cut in unused bytes leaves a sound database; every other one is moved aside, not deleted.
            if let Some(quarantined) = quarantined {
                assert!(quarantined.moved_to.exists());
                n_moved += 1;
            }
        }
        assert!(n_moved >= 3, "only {n_moved} were noticed");
        std::fs::write(dir.path().join(FILE_NAME), vec![0xA5; 9000]).expect("written");
        assert!(Ledger::open(dir.path(), Durability::Full).expect("opens").1.is_some());
    }

    #[test]
    fn a_ledger_of_an_older_program_is_brought_up_and_keeps_its_rows() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()).popped(&[id("a")], &taken(0)));
        let db = Connection::open(dir.path().join(FILE_NAME)).expect("opens");
        db.execute_batch("ALTER TABLE generation DROP COLUMN fault_model; PRAGMA user_version = 1")
            .expect("as the first version made it");
        drop(db);
        let ledger = open(dir.path());
        let named = Taken {
            fault_model: Some("koboldcpp/Lite".into()),
            ..taken(1)
        };
        ledger.popped(&[id("b")], &named).expect("popped");
        drop(ledger);
        let rows = open(dir.path()).open_rows("text").expect("rows");
        let told: Vec<_> = rows.into_iter().map(|row| (row.id.0, row.fault_model)).collect();
        assert_eq!(told, [("a".into(), None), ("b".into(), named.fault_model)]);
    }

    #[test]
    fn a_ledger_of_a_newer_program_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(open(dir.path()));
        let db = Connection::open(dir.path().join(FILE_NAME)).expect("opens");
        db.pragma_update(None, "user_version", 99).expect("set");
        drop(db);
        assert!(matches!(
            Ledger::open(dir.path(), Durability::Full),
            Err(LedgerError::TooNew { found: 99, .. })
        ));
    }
}
