//! What the server remembers, and the rules all kinds share: users, workers, requests, generations, the sweep.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::agents::Agent;
use crate::answer::{Answer, refuse};
use crate::ledger::{Entry, Fate, Ledger};
use crate::objects::Objects;

/// The anonymous key: may ask, may not work.
pub const ANONYMOUS_KEY: &str = "0000000000";
/// Key of the account that owns workers on a fresh server.
pub const WORKER_KEY: &str = "local-worker-key-00000";
/// Key of an account that only asks, on a fresh server.
pub const CLIENT_KEY: &str = "local-client-key-00000";

/// What can be set when a server starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seed of ids and choices: the same seed and calls give the same server.
    pub seed: u64,
    /// How often stale generations are swept away; 60 s on the real server.
    pub sweep_every: Duration,
    /// Factor on every lease, for tests that cannot wait.
    pub ttl_factor: f64,
    /// How long a worker's stored settings are kept before a pop refreshes them; 30 s on the real server.
    pub check_in_every: Duration,
    /// Whether limits of calls per second and minute apply.
    pub rate_limits: bool,
    /// Drops in an hour after which an image or text worker is put into maintenance.
    pub most_drops: usize,
    /// Models that the image reference knows; empty: any name.
    pub image_models: Vec<String>,
    /// How long signed addresses of objects are good.
    pub object_lifetime: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 0,
            sweep_every: Duration::from_secs(60),
            ttl_factor: 1.0,
            check_in_every: Duration::from_secs(30),
            rate_limits: true,
            most_drops: 20,
            image_models: Vec::new(),
            object_lifetime: Duration::from_secs(1800),
        }
    }
}

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
    /// Results not yet handed out.
    pub n_waiting: u32,
    /// Results asked for.
    pub n_asked: u32,
    /// Generations handed out so far.
    pub generations: Vec<String>,
    /// When it was filed.
    pub filed: Instant,
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
}

/// Everything.
pub struct State {
    /// Settings.
    pub settings: Settings,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) last_sweep: Instant,
    /// Accounts by key.
    pub users: HashMap<String, User>,
    /// Workers by name.
    pub workers: BTreeMap<String, Worker>,
    /// Requests in the order they were filed.
    pub requests: Vec<Request>,
    /// Generations by id.
    pub generations: HashMap<String, Generation>,
    /// Stored objects.
    pub objects: Objects,
    /// The book.
    pub ledger: Ledger,
    /// Messages for workers, as they go out.
    pub messages: Vec<Value>,
    pub(crate) calls: HashMap<String, VecDeque<Instant>>,
}

impl State {
    /// A fresh server with one account for workers, one for clients and the anonymous one.
    pub fn new(settings: Settings, object_base: &str) -> Self {
        let now = Instant::now();
        let user = |alias: &str, id: u64, trusted| User {
            alias: format!("{alias}#{id}"),
            id,
            kudos: 1e6,
            trusted,
        };
        let users = HashMap::from([
            (ANONYMOUS_KEY.to_owned(), user("Anonymous", 0, false)),
            (WORKER_KEY.to_owned(), user("worker", 1, true)),
            (CLIENT_KEY.to_owned(), user("client", 2, true)),
        ]);
        Self {
            rng: ChaCha8Rng::seed_from_u64(settings.seed),
            objects: Objects::new(object_base, settings.seed, settings.object_lifetime),
            settings,
            last_sweep: now,
            users,
            workers: BTreeMap::new(),
            requests: Vec::new(),
            generations: HashMap::new(),
            ledger: Ledger::default(),
            messages: Vec::new(),
            calls: HashMap::new(),
        }
    }

    /// A fresh id in the form of a UUID, from the server's own seed.
    pub fn new_id(&mut self) -> String {
        let mut bytes = [0_u8; 16];
        self.rng.fill_bytes(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// Takes stale generations away if a sweep is due.
    pub fn sweep_if_due(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.last_sweep) >= self.settings.sweep_every {
            self.sweep();
        }
    }

    /// Puts the next sweep off by a whole interval, so that a test can stand between a lease's end and its sweep.
    pub fn last_sweep_now(&mut self) {
        self.last_sweep = Instant::now();
    }

    /// Takes away every live generation whose lease is over: it goes back to the queue and counts as a drop.
    pub fn sweep(&mut self) {
        let now = Instant::now();
        self.last_sweep = now;
        let mut stale: Vec<String> = self
            .generations
            .values()
            .filter(|one| one.phase == Phase::Live && now.duration_since(one.popped) > one.ttl)
            .map(|one| one.id.clone())
            .collect();
        stale.sort();
        for id in stale {
            if let Some(one) = self.generations.get_mut(&id) {
                one.phase = Phase::Aborted;
            }
            if let Some(entry) = self.ledger.generations.get_mut(&id) {
                entry.fate = Fate::Expired;
            }
            self.give_back(&id);
        }
        // A failed text request is closed only here; images close at once.
        for request in &mut self.requests {
            let most = if request.kind == Kind::Image && request.n_asked == 1 {
                u32::MAX
            } else {
                3
            };
            if request.n_failures >= most && request.n_waiting > 0 {
                request.faulted = true;
                request.n_waiting = 0;
            }
        }
    }

    /// Puts a generation's place back into its request's queue and counts the drop against its worker.
    pub(crate) fn give_back(&mut self, id: &str) {
        let Some(one) = self.generations.get(id).cloned() else {
            return;
        };
        self.count_drop(&one.worker);
        let Some(request) = self
            .requests
            .iter_mut()
            .find(|request| request.generations.iter().any(|given| given == id))
        else {
            return;
        };
        request.n_failures += 1;
        if request.kind == Kind::Image && request.n_asked == 1 {
            let most = if one.phase == Phase::Aborted { 3 } else { 2 };
            if request.n_failures >= most {
                request.faulted = one.phase == Phase::Aborted;
                return;
            }
        }
        if !request.cancelled && !request.faulted {
            request.n_waiting += 1;
        }
    }

    fn count_drop(&mut self, worker: &str) {
        let now = Instant::now();
        let most = self.settings.most_drops;
        let Some(worker) = self.workers.get_mut(worker) else {
            return;
        };
        worker.uncompleted += 1;
        worker.drops.push_back(now);
        while worker
            .drops
            .front()
            .is_some_and(|at| now.duration_since(*at) > Duration::from_secs(3600))
        {
            worker.drops.pop_front();
        }
        let most = if worker.kind == Kind::Alchemy {
            most.saturating_mul(5)
        } else {
            most
        };
        if worker.drops.len() > most && worker.maintenance.is_none() {
            worker.maintenance =
                Some("Worker has been put into maintenance mode for dropping too many jobs".to_owned());
            worker.suspicion += 1;
        }
    }

    /// Writes a handed-out generation down.
    pub(crate) fn hand_out(&mut self, generation: Generation, kind: Kind) {
        self.ledger.generations.insert(
            generation.id.clone(),
            Entry {
                kind: kind.word(),
                worker: generation.worker.clone(),
                fate: Fate::Open,
                accepted: 0,
                duplicates: 0,
                fault_submits: 0,
                too_late: 0,
                reward: 0.0,
                seconds: None,
            },
        );
        self.generations.insert(generation.id.clone(), generation);
    }

    /// The account behind a key, as the routes of workers and clients refuse unknown ones.
    pub(crate) fn user(&self, key: Option<&str>) -> Result<(String, User), Box<Answer>> {
        let key =
            key.ok_or_else(|| crate::answer::invalid("apikey", "Missing required parameter in the HTTP headers"))?;
        let user = self.users.get(key).cloned();
        let user = user.ok_or_else(|| {
            refuse(
                401,
                "InvalidAPIKey",
                "No user matching sent API Key. Have you remembered to register at https://aihorde.net/register ?",
            )
        })?;
        Ok((key.to_owned(), user))
    }

    /// Takes a submission of any kind through the rules they share. `accept` is called for a result that counts.
    pub(crate) fn close(
        &mut self,
        id: &str,
        key: Option<&str>,
        faulted: bool,
        accept: impl FnOnce(&mut Self),
    ) -> Result<f64, Box<Answer>> {
        self.sweep_if_due();
        let Some(one) = self.generations.get(id).cloned() else {
            return Err(refuse(
                404,
                "InvalidJobID",
                &format!("Job with ID '{id}' not found in this horde"),
            ));
        };
        let key =
            key.ok_or_else(|| crate::answer::invalid("apikey", "Missing required parameter in the HTTP headers"))?;
        if !self.users.contains_key(key) {
            // A bug of the real server: an unknown key on a job that exists.
            return Err(Box::new(Answer::json(
                500,
                &serde_json::json!({ "message": "Internal Server Error" }),
            )));
        }
        let worker = self.workers.get(&one.worker).cloned();
        if worker.as_ref().is_none_or(|worker| worker.owner != key) {
            return Err(refuse(
                403,
                "WrongCredentials",
                "Wrong credentials to submit as this worker.",
            ));
        }
        let maintenance = worker.as_ref().is_some_and(|worker| worker.maintenance.is_some());
        let decoy = one.request.is_empty();
        let entry = self.ledger.generations.get_mut(id);
        match (one.phase, faulted) {
            (Phase::Done, _) => {
                if let Some(entry) = entry {
                    entry.duplicates += u32::from(!faulted);
                }
                if maintenance {
                    return Ok(0.0);
                }
                Err(refuse(
                    400,
                    "DuplicateGen",
                    &format!("Processing Generation with ID {id} already submitted"),
                ))
            }
            (Phase::Aborted | Phase::Faulted, true) => {
                if let Some(entry) = entry {
                    entry.fault_submits += 1;
                }
                Ok(0.0)
            }
            (Phase::Aborted | Phase::Faulted, false) => {
                if let Some(entry) = entry {
                    entry.too_late += 1;
                }
                Err(refuse(
                    400,
                    "AbortedGen",
                    &format!("Processing Job with ID {id} has already been aborted"),
                ))
            }
            (Phase::Live, true) => {
                if let Some(entry) = entry {
                    entry.fault_submits += 1;
                    entry.fate = Fate::Faulted;
                    entry.seconds = Some(one.popped.elapsed().as_secs_f64());
                }
                if let Some(one) = self.generations.get_mut(id) {
                    one.phase = Phase::Faulted;
                }
                if !decoy {
                    self.give_back(id);
                }
                Ok(0.0)
            }
            (Phase::Live, false) => {
                if let Some(entry) = entry {
                    entry.accepted += 1;
                    entry.fate = Fate::Accepted;
                    entry.reward = one.reward;
                    entry.seconds = Some(one.popped.elapsed().as_secs_f64());
                }
                if let Some(one) = self.generations.get_mut(id) {
                    one.phase = Phase::Done;
                }
                self.pay(&one, decoy);
                accept(self);
                Ok(one.reward)
            }
        }
    }

    fn pay(&mut self, one: &Generation, decoy: bool) {
        let Some(worker) = self.workers.get_mut(&one.worker) else {
            return;
        };
        if decoy {
            return;
        }
        let factor = if worker.kind == Kind::Image {
            worker.agent.image_pay()
        } else {
            1.0
        };
        let seconds = one.popped.elapsed().as_secs_f64().max(0.001);
        let speed = one.units / seconds;
        worker.speeds.push_back(speed);
        if worker.speeds.len() > 20 {
            worker.speeds.pop_front();
        }
        let too_fast = match worker.kind {
            Kind::Image => speed > 20.0,
            Kind::Text => speed > 150.0,
            Kind::Alchemy => false,
        };
        worker.suspicion += u32::from(too_fast);
        worker.fulfilled += 1;
        worker.kudos += one.reward * factor;
        let owner = worker.owner.clone();
        if let Some(user) = self.users.get_mut(&owner) {
            user.kudos += one.reward * factor;
        }
    }
}
