//! What the lives of jobs write on the wall for the loop and the display to read: who is where, what was earned, what
//! went wrong. Short locks, never across an await.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use horde_client::error::plain;
use horde_client::ids::GenerationId;
use horde_client::kind::Message;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::device::Progress;
use crate::job::{Head, Lease};
use crate::law::breaker::{Breaker, JobEnd};
use crate::law::chance::Chance;
use crate::law::prefetch::Lead;
use crate::law::remaining::Remaining;
use crate::law::retry::TokenBucket;
use crate::ledger::Closing;
use crate::settings::{Clock, Settings};
use crate::status::{Event, JobStatus, Level, ServerMessage, Stage, Status, Totals};

/// Longest operator message and event that is kept, in bytes.
const LONGEST_TEXT: usize = 1 << 10;
const MOST_MESSAGES: usize = 20;
/// Progress wakes the loop at most this often per job.
const PROGRESS_PACE: Duration = Duration::from_millis(100);

pub(crate) struct Board {
    inner: Mutex<Inner>,
    changed: Notify,
    clock: Clock,
}

pub(crate) struct Inner {
    next_tile: u64,
    pub tiles: BTreeMap<u64, TileState>,
    live_ids: HashSet<GenerationId>,
    pub breaker: Breaker,
    pub chance: Chance,
    pub api_bucket: TokenBucket,
    pub store_bucket: TokenBucket,
    pub lead: Lead,
    /// Exponential average of the time jobs take on a slot.
    pub typical: Option<Duration>,
    /// The key or name is refused: popping rests until then.
    pub held_until: Option<Instant>,
    /// The ledger cannot be written: popping rests, and it is tried again then.
    pub disk_trouble: Option<(String, Instant)>,
    /// Generations being handed in or back.
    pub outbox: usize,
    pub totals: Totals,
    pub earned: VecDeque<(Instant, f64)>,
    pub events: VecDeque<Event>,
    pub messages: Vec<ServerMessage>,
    pub is_dirty: bool,
}

pub(crate) struct TileState {
    pub id: String,
    pub model: Option<String>,
    pub generations: usize,
    pub lease: Lease,
    pub stage: Stage,
    pub device: Option<String>,
    pub progress: Progress,
    pub remaining: Option<Remaining>,
    told_at: Instant,
}

impl Board {
    pub fn new(settings: &Settings) -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self {
            inner: Mutex::new(Inner {
                next_tile: 0,
                tiles: BTreeMap::new(),
                live_ids: HashSet::new(),
                breaker: Breaker::new(settings.faults_per_hour, settings.rest_after_fault),
                chance: Chance::new(settings.seed),
                api_bucket: TokenBucket::new(now),
                store_bucket: TokenBucket::new(now),
                lead: Lead::default(),
                typical: None,
                held_until: None,
                disk_trouble: None,
                outbox: 0,
                totals: Totals::default(),
                earned: VecDeque::new(),
                events: VecDeque::new(),
                messages: Vec::new(),
                is_dirty: true,
            }),
            changed: Notify::new(),
            clock: settings.clock.clone(),
        })
    }

    /// Waits until something changed that may matter to the loop.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Looks without telling anybody.
    pub fn look(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something and wakes the loop.
    pub fn write<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.look();
        inner.is_dirty = true;
        let result = change(&mut inner);
        drop(inner);
        self.changed.notify_one();
        result
    }

    /// Puts an event on the wall and into the log.
    pub fn event(&self, level: Level, text: &str) {
        let text = plain(text, LONGEST_TEXT);
        match level {
            Level::Good => tracing::info!("{text}"),
            Level::Warning => tracing::warn!("{text}"),
            Level::Bad => tracing::error!("{text}"),
        }
        let event = Event {
            at_unix_ms: self.clock.unix_ms(),
            level,
            text,
        };
        self.write(|inner| {
            if inner.events.len() == Status::EVENTS {
                inner.events.pop_front();
            }
            inner.events.push_back(event);
        });
    }

    /// Keeps messages of the server's operators, each once.
    pub fn messages(&self, messages: Vec<Message>) {
        for message in messages {
            let id = plain(&message.id, 100);
            if self.look().messages.iter().any(|shown| shown.id == id) {
                continue;
            }
            let text = plain(&message.message, LONGEST_TEXT);
            self.event(Level::Warning, &format!("the Horde's operators say: {text}"));
            let origin = message.origin.map(|origin| plain(&origin, 100));
            self.write(|inner| {
                if inner.messages.len() == MOST_MESSAGES {
                    inner.messages.remove(0);
                }
                inner.messages.push(ServerMessage { id, text, origin });
            });
        }
    }

    /// Claims ids for a new life; those already alive are refused.
    pub fn claim(&self, id: &GenerationId) -> bool {
        self.write(|inner| inner.live_ids.insert(id.clone()))
    }

    /// A generation that is not lived after all.
    pub fn disclaim(&self, id: &GenerationId) {
        self.write(|inner| inner.live_ids.remove(id));
    }

    /// A generation ended. `fault_is_ours` where it was handed back.
    pub fn ended(&self, id: &GenerationId, closing: &Closing, fault_is_ours: bool) {
        let now = Instant::now();
        self.write(|inner| {
            inner.live_ids.remove(id);
            match closing {
                Closing::Submitted { reward } => {
                    inner.totals.submitted += 1;
                    inner.totals.kudos += reward;
                    inner.earned.push_back((now, *reward));
                    inner.breaker.on(JobEnd::Done, now);
                }
                Closing::AlreadyAccepted => {
                    inner.totals.submitted += 1;
                    inner.breaker.on(JobEnd::Done, now);
                }
                Closing::Faulted { .. } => {
                    inner.totals.faulted += 1;
                    inner.breaker.on(JobEnd::Faulted { ours: fault_is_ours }, now);
                }
                Closing::Expired { .. } => inner.totals.expired += 1,
            }
            while inner
                .earned
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) > Duration::from_secs(3600))
            {
                inner.earned.pop_front();
            }
        });
    }

    /// Puts a job on the wall until the tile is dropped.
    pub fn tile(self: &Arc<Self>, head: &Head) -> Tile {
        let state = TileState {
            id: plain(&head.only().id.0, 8),
            model: head.model.as_deref().map(|model| plain(model, 100)),
            generations: head.generations.len(),
            lease: head.lease,
            stage: Stage::Preparing,
            device: None,
            progress: Progress::default(),
            remaining: None,
            told_at: Instant::now(),
        };
        let key = self.write(|inner| {
            inner.next_tile += 1;
            inner.tiles.insert(inner.next_tile, state);
            inner.next_tile
        });
        Tile {
            board: Arc::clone(self),
            key,
        }
    }
}

impl TileState {
    pub fn status(&self, now: Instant) -> JobStatus {
        let left = self.remaining.as_ref().and_then(|remaining| remaining.left(now));
        JobStatus {
            id: self.id.clone(),
            model: self.model.clone(),
            generations: self.generations,
            stage: self.stage,
            device: self.device.clone(),
            done: self.progress.done,
            total: self.progress.total,
            phase: plain(&self.progress.phase, 40),
            rate: self.remaining.as_ref().and_then(Remaining::rate),
            eta_s: left
                .filter(|_| self.stage == Stage::Running)
                .map(|left| left.as_secs_f64()),
            age_s: now.saturating_duration_since(self.lease.asked).as_secs_f64(),
            ttl_s: self.lease.ttl.as_secs_f64(),
        }
    }
}

/// One job's place on the wall.
pub(crate) struct Tile {
    board: Arc<Board>,
    key: u64,
}

impl Tile {
    pub fn stage(&self, stage: Stage) {
        self.board.write(|inner| {
            if let Some(tile) = inner.tiles.get_mut(&self.key) {
                tile.stage = stage;
            }
        });
    }

    pub fn running(&self, device: &str, expected: Option<Duration>) {
        let now = Instant::now();
        self.board.write(|inner| {
            let typical = inner.typical;
            if let Some(tile) = inner.tiles.get_mut(&self.key) {
                tile.stage = Stage::Running;
                tile.device = Some(device.to_owned());
                tile.remaining = Some(Remaining::new(now, expected.or(typical)));
            }
        });
    }

    pub fn progress(&self, progress: &Progress) {
        let now = Instant::now();
        let mut inner = self.board.look();
        inner.is_dirty = true;
        let Some(tile) = inner.tiles.get_mut(&self.key) else {
            return;
        };
        if let Some(remaining) = &mut tile.remaining {
            remaining.on_progress(progress.done, progress.total, &progress.phase, now);
        }
        let is_news =
            tile.progress.phase != progress.phase || now.saturating_duration_since(tile.told_at) >= PROGRESS_PACE;
        tile.progress.clone_from(progress);
        if is_news {
            tile.told_at = now;
            drop(inner);
            self.board.changed.notify_one();
        }
    }

    /// Time left on the device, where known.
    pub fn left(&self) -> Option<Duration> {
        let inner = self.board.look();
        inner.tiles.get(&self.key)?.remaining.as_ref()?.left(Instant::now())
    }
}

impl Drop for Tile {
    fn drop(&mut self) {
        self.board.write(|inner| inner.tiles.remove(&self.key));
    }
}
