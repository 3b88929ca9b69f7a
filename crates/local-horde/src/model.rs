//! The things the server remembers, as plain data: accounts, workers, requests and generations.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::agents::Agent;
use crate::chat_needs::Needs;

/// The three kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Pictures.
    Image,
    /// Text.
    Text,
    /// Forms.
    Alchemy,
}

impl Kind {
    /// The word used for a worker's type on the wire.
    pub fn worker_type(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Text => "text",
            Self::Alchemy => "interrogation",
        }
    }

    /// One word for the ledger.
    pub fn word(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Text => "text",
            Self::Alchemy => "alchemy",
        }
    }
}

/// An account.
#[derive(Clone, Debug)]
pub struct User {
    /// `alias#id`.
    pub alias: String,
    /// Number after the `#`.
    pub id: u64,
    /// Balance.
    pub kudos: f64,
    /// Full pay, more workers, looser limits.
    pub trusted: bool,
}

/// A worker.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Server-side id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Key of its owner.
    pub owner: String,
    /// What it does.
    pub kind: Kind,
    /// First pop.
    pub created: Instant,
    /// Last pop.
    pub seen: Instant,
    /// When its settings were stored.
    pub stored_at: Instant,
    /// Settings as of then: the pop's body.
    pub stored: Map<String, Value>,
    /// Agent as of then.
    pub agent: Agent,
    /// Agent in words.
    pub agent_text: String,
    /// In maintenance, with the owner's or the server's text.
    pub maintenance: Option<String>,
    /// By moderators.
    pub flagged: bool,
    /// By moderators, silently: it gets decoys.
    pub paused: bool,
    /// When jobs were dropped or handed back, last hour.
    pub drops: VecDeque<Instant>,
    /// Marks of suspicion.
    pub suspicion: u32,
    /// Kudos credited.
    pub kudos: f64,
    /// Generations accepted.
    pub fulfilled: u64,
    /// Generations handed back or run out.
    pub uncompleted: u64,
    /// Speeds of the last generations, in the kind's unit per second.
    pub speeds: VecDeque<f64>,
    /// Free text of its owner.
    pub info: Option<String>,
}

/// A request of a client, waiting or done.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its id.
    pub id: String,
    /// What it asks for.
    pub kind: Kind,
    /// Key of who asked.
    pub owner: String,
    /// Body as filed.
    pub body: Map<String, Value>,
    /// `params` as filed, defaults filled.
    pub params: Map<String, Value>,
    /// Models it accepts; empty: any.
    pub models: Vec<String>,
    /// What a chat needs of a worker; `None` for everything else.
    pub chat: Option<Needs>,
    /// Results not yet handed out.
    pub n_waiting: u32,
    /// Results asked for.
    pub n_asked: u32,
    /// Generations handed out so far.
    pub generations: Vec<String>,
    /// When it was filed, last popped or last delivered to.
    pub touched: Instant,
    /// Faults and expiries so far.
    pub n_failures: u32,
    /// Over without (all) results.
    pub faulted: bool,
    /// Deleted by its owner.
    pub cancelled: bool,
    /// Address of the stored source, where there is one.
    pub source: Option<String>,
    /// Address of the stored mask, where there is one.
    pub mask: Option<String>,
    /// Size of the source in pixels.
    pub source_size: Option<(u32, u32)>,
}

impl Request {
    /// One result to make, without source, model or parameters; whoever files it says the rest.
    pub(crate) fn filed(id: &str, kind: Kind, owner: &str) -> Self {
        Self {
            id: id.to_owned(),
            kind,
            owner: owner.to_owned(),
            body: Map::new(),
            params: Map::new(),
            models: Vec::new(),
            chat: None,
            n_waiting: 1,
            n_asked: 1,
            generations: Vec::new(),
            touched: Instant::now(),
            n_failures: 0,
            faulted: false,
            cancelled: false,
            source: None,
            mask: None,
            source_size: None,
        }
    }
}

/// How a generation stands for the rules (the ledger keeps the book for tests).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Handed out.
    Live,
    /// Result accepted.
    Done,
    /// Handed back.
    Faulted,
    /// Swept away.
    Aborted,
}

/// One generation handed out.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Its id.
    pub id: String,
    /// Its request; empty for a decoy.
    pub request: String,
    /// Name of the worker that has it.
    pub worker: String,
    /// Model it was handed out for.
    pub model: String,
    /// When.
    pub popped: Instant,
    /// Lease.
    pub ttl: Duration,
    /// How it stands.
    pub phase: Phase,
    /// Pay if accepted.
    pub reward: f64,
    /// Work in the kind's unit (megapixelsteps, tokens, forms).
    pub units: f64,
    /// Result: text, `R2`, base64 or a form's object.
    pub result: Option<Value>,
    /// Seed as submitted.
    pub seed: Option<i64>,
    /// State as submitted.
    pub state: String,
    /// Metadata as submitted.
    pub metadata: Vec<Value>,
    /// Why a chat job was handed back.
    pub fault_reason: Option<String>,
}

impl Generation {
    /// A generation as it is handed out now; its pay and size come with the kind.
    pub(crate) fn handed_out(id: &str, request: &str, worker: &str, model: &str, ttl: Duration) -> Self {
        Self {
            id: id.to_owned(),
            request: request.to_owned(),
            worker: worker.to_owned(),
            model: model.to_owned(),
            popped: Instant::now(),
            ttl,
            phase: Phase::Live,
            reward: 0.0,
            units: 1.0,
            result: None,
            seed: None,
            state: "ok".to_owned(),
            metadata: Vec::new(),
            fault_reason: None,
        }
    }
}

impl Worker {
    /// Mean speed of its last generations in the kind's unit per second; 1 until there are any.
    pub fn speed(&self) -> f64 {
        if self.speeds.is_empty() {
            1.0
        } else {
            self.speeds.iter().sum::<f64>() / self.speeds.len() as f64
        }
    }
}
