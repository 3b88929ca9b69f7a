//! What became of every generation that was handed out: the book against which "nothing lost, nothing twice" is held.

use std::collections::BTreeMap;

use serde::Serialize;

/// How a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Handed out and not yet back.
    Open,
    /// A result was accepted.
    Accepted,
    /// The worker handed it back.
    Faulted,
    /// Its lease ran out and the sweep took it away.
    Expired,
}

/// One generation's entry.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// `image`, `text` or `alchemy`.
    pub kind: &'static str,
    /// Request it belongs to; empty for a decoy.
    pub request: String,
    /// Worker it was handed to.
    pub worker: String,
    /// Seconds from the server's start to the pop.
    pub popped: f64,
    /// How it stands.
    pub fate: Fate,
    /// Results that were accepted: never above 1.
    pub accepted: u32,
    /// Further results for an id that had one.
    pub duplicates: u32,
    /// Times the worker said it failed.
    pub fault_submits: u32,
    /// Submissions that came after the sweep.
    pub too_late: u32,
    /// Kudos promised.
    pub reward: f64,
    /// Seconds between pop and the first closing submission.
    pub seconds: Option<f64>,
    /// Why a chat job was handed back.
    pub fault_reason: Option<String>,
}

/// All entries, by generation id.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ledger {
    /// Entry by id.
    pub generations: BTreeMap<String, Entry>,
}

/// Counts over a ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Generations handed out.
    pub popped: u64,
    /// With an accepted result.
    pub accepted: u64,
    /// Handed back.
    pub faulted: u64,
    /// Run out.
    pub expired: u64,
    /// Neither.
    pub open: u64,
    /// Further results after an accepted one.
    pub duplicates: u64,
    /// Kudos promised.
    pub kudos: f64,
}

impl Ledger {
    /// Counts.
    pub fn summary(&self) -> Summary {
        let mut sum = Summary::default();
        for entry in self.generations.values() {
            sum.popped += 1;
            match entry.fate {
                Fate::Open => sum.open += 1,
                Fate::Accepted => sum.accepted += 1,
                Fate::Faulted => sum.faulted += 1,
                Fate::Expired => sum.expired += 1,
            }
            sum.duplicates += u64::from(entry.duplicates);
            sum.kudos += entry.reward;
        }
        sum
    }

    /// Ids with more than one accepted result: always empty unless this server is broken.
    pub fn accepted_twice(&self) -> Vec<&str> {
        self.generations
            .iter()
            .filter(|(_, entry)| entry.accepted > 1)
            .map(|(id, _)| id.as_str())
            .collect()
    }

    /// Ids that were handed out and have no end.
    pub fn open(&self) -> Vec<&str> {
        self.generations
            .iter()
            .filter(|(_, entry)| entry.fate == Fate::Open)
            .map(|(id, _)| id.as_str())
            .collect()
    }

    /// Ids whose lease ran out.
    pub fn expired(&self) -> Vec<&str> {
        self.generations
            .iter()
            .filter(|(_, entry)| entry.fate == Fate::Expired)
            .map(|(id, _)| id.as_str())
            .collect()
    }
}
