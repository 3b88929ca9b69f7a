//! What the server remembers, and the rules all kinds share: users, workers, requests, generations, the sweep.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tokio::time::Instant;

use crate::answer::{Answer, refuse};
use crate::ledger::{Entry, Fate, Ledger};
use crate::model::{Generation, Kind, Phase, Request, User, Worker};
use crate::objects::Objects;
use crate::recording::Recorder;
use crate::scripted::Scripted;

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
    /// How long a request lives that nobody pops or delivers to; 20 minutes on the real server. `None`: for ever, for
    /// simulations with long silences.
    pub request_life: Option<Duration>,
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
            request_life: None,
        }
    }
}
/// Everything.
pub struct State {
    /// Settings.
    pub settings: Settings,
    pub(crate) rng: ChaCha8Rng,
    pub(crate) started: Instant,
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
    /// Where pops and submits are written down.
    pub recorder: Option<Recorder>,
    pub(crate) calls: HashMap<String, VecDeque<Instant>>,
    pub(crate) scripted: VecDeque<Scripted>,
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
            started: now,
            last_sweep: now,
            users,
            workers: BTreeMap::new(),
            requests: Vec::new(),
            generations: HashMap::new(),
            ledger: Ledger::default(),
            messages: Vec::new(),
            recorder: None,
            calls: HashMap::new(),
            scripted: VecDeque::new(),
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
        if let Some(life) = self.settings.request_life {
            self.forget_old_requests(life);
        }
    }

    /// Deletes requests that outlived `life`, with their generations, so that nobody finds them any more.
    fn forget_old_requests(&mut self, life: Duration) {
        let generations = &mut self.generations;
        self.requests.retain(|request| {
            let in_hand = request
                .generations
                .iter()
                .any(|id| generations.get(id).is_some_and(|one| one.phase == Phase::Live));
            let kept = in_hand || request.touched.elapsed() <= life;
            if !kept {
                for id in &request.generations {
                    generations.remove(id);
                }
            }
            kept
        });
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
                request: generation.request.clone(),
                worker: generation.worker.clone(),
                popped: generation.popped.duration_since(self.started).as_secs_f64(),
                fate: Fate::Open,
                accepted: 0,
                duplicates: 0,
                fault_submits: 0,
                too_late: 0,
                reward: 0.0,
                seconds: None,
                fault_reason: None,
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
}
