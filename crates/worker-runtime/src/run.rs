//! The whole worker: one loop that asks for work when the laws say so, starts a life for each job, and obeys its owner.

use std::sync::Arc;
use std::time::Duration;

use horde_client::Client;
use horde_client::error::{ApiError, ErrorClass, SlowReason, StopReason};
use horde_client::kind::{JobKind, Popped as PopAnswer};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::backend::Backend;
use crate::device::DeviceState;
use crate::job::{Job, Lease, Payload, Popped};
use crate::law::breaker::Rest;
use crate::law::owner::{Command, Shutdown, Wish};
use crate::law::poll::{PollLaw, PopEnd, only_hopeless};
use crate::law::prefetch::{EAGER_SLACK, Outlook, Prefetch, wait_until_pop};
use crate::ledger::Ledger;
use crate::life::{head_of, live};
use crate::replay::replay;
use crate::settings::{Controls, RunError, Settings, Summary};
use crate::status::{Level, PollStatus, Stage, Status};
use crate::workshop::{AnyDevice, Haste, Workshop};

/// Pops under way at once while each brings a job; only one while they do not.
const POPS_AT_ONCE: usize = 4;
/// A backend with nothing to offer is asked again after this.
const OFFER_RETRY: Duration = Duration::from_secs(5);
/// After the second signal everything is handed back within this.
const HAND_BACK_TIME: Duration = Duration::from_secs(5);
/// Ending an engine takes at most the two rungs of its cancel ladder and a little.
const DEVICES_STOP_TIME: Duration = Duration::from_secs(15);
/// A slot whose job was given up falls free after its engine was ended.
const STRAGGLER_TIME: Duration = Duration::from_secs(10);

/// Serves until told to stop, or until it cannot go on.
///
/// Devices are started here and ended before this returns. Jobs the last run left open in `ledger` are ended first.
///
/// # Cancellation
/// Dropping the future is a crash: jobs in flight stay in the ledger for the next start. End it by `controls`.
pub async fn run<B: Backend>(
    backend: B,
    client: Client,
    devices: Vec<AnyDevice<B>>,
    ledger: Ledger,
    settings: Settings,
    controls: Controls,
) -> Result<Summary, RunError> {
    let shop = Workshop::new(backend, client, devices, ledger, settings);
    let mut worker = Worker::new(Arc::clone(&shop), controls);
    worker.open().await?;
    let result = worker.serve().await;
    worker.leave().await;
    result
}

type PopResult<B> = (Instant, Result<PopAnswer<Payload<B>>, ApiError>);

pub(crate) struct Worker<B: Backend> {
    pub shop: Arc<Workshop<B>>,
    controls: Controls,
    pub wish: Wish,
    /// When the wish was to leave, the moment it must be done.
    leave_by: Option<Instant>,
    /// Lives of jobs. Dropping them is a crash, never a way to end.
    pub lives: JoinSet<()>,
    /// Pops under way: spawned, so that their answers are consumed whatever else happens.
    pub pops: JoinSet<PopResult<B>>,
    watchers: JoinSet<()>,
    law: PollLaw,
    next_pop: Instant,
    last_pop_hit: bool,
    /// Whether the Horde ever answered a pop well: a refusal before that ends the worker, later ones only make it wait.
    has_served: bool,
    last_error: String,
    devices_on: bool,
    pub poll: PollStatus,
    pub idle: Option<String>,
    pub started: Instant,
    pub published: Option<Instant>,
}

/// What the laws say at one moment.
struct Plan<R> {
    pop: Option<R>,
    /// When to look again although nothing happens.
    wake: Option<Instant>,
    /// Why no pop is sent.
    idle: Option<String>,
}

impl<B: Backend> Worker<B> {
    fn new(shop: Arc<Workshop<B>>, controls: Controls) -> Self {
        let now = Instant::now();
        Self {
            shop,
            controls,
            wish: Wish::Run,
            leave_by: None,
            lives: JoinSet::new(),
            pops: JoinSet::new(),
            watchers: JoinSet::new(),
            law: PollLaw::default(),
            next_pop: now,
            last_pop_hit: false,
            has_served: false,
            last_error: String::new(),
            devices_on: false,
            poll: PollStatus::default(),
            idle: None,
            started: now,
            published: None,
        }
    }

    /// Replays the ledger and starts the devices.
    async fn open(&mut self) -> Result<(), RunError> {
        let (ledger, now_ms) = (Arc::clone(&self.shop.ledger), self.shop.settings.clock.unix_ms());
        let read = tokio::task::spawn_blocking(move || {
            ledger.probe(now_ms)?;
            ledger.open_rows(B::Kind::NAME)
        });
        let rows = read
            .await
            .map_err(|_| crate::ledger::LedgerError::Spool("not readable"))??;
        if !rows.is_empty() {
            self.shop.board.event(
                Level::Warning,
                &format!("{} results of the last run are ended first", rows.len()),
            );
        }
        for row in rows {
            self.lives.spawn(replay(Arc::clone(&self.shop), row));
        }
        for (at, device) in self.shop.devices.iter().enumerate() {
            let (shop, mut state) = (Arc::clone(&self.shop), device.state());
            self.watchers.spawn(async move {
                loop {
                    let now = state.borrow_and_update().clone();
                    shop.slots.set(
                        at,
                        if let DeviceState::Ready(report) = &now {
                            Some(report.clone())
                        } else {
                            None
                        },
                    );
                    let name = shop.devices[at].name();
                    match &now {
                        DeviceState::Failed(reason) => shop.board.event(Level::Bad, &format!("{name}: {reason}")),
                        DeviceState::Refused(error) => shop.board.event(Level::Bad, &format!("{name}: {error}")),
                        DeviceState::Stopped | DeviceState::Loading | DeviceState::Ready(_) => {}
                    }
                    shop.board.write(|_| ());
                    if state.changed().await.is_err() {
                        return;
                    }
                }
            });
        }
        Ok(())
    }

    async fn serve(&mut self) -> Result<Summary, RunError> {
        loop {
            self.obey().await;
            if let Some(summary) = self.is_over() {
                return Ok(summary);
            }
            if let Some(refused) = self.no_engine_can_load() {
                return Err(refused);
            }
            let plan = self.plan(Instant::now()).await;
            self.idle = plan.idle;
            if let Some(request) = plan.pop {
                let client = self.shop.client.clone();
                self.pops.spawn(async move {
                    let asked = Instant::now();
                    (asked, client.pop::<B::Kind>(&request).await)
                });
                continue;
            }
            let publish_at = self.publish();
            let wake = [plan.wake, publish_at, self.leave_by].into_iter().flatten().min();
            tokio::select! {
                Some(pop) = self.pops.join_next() => {
                    // A pop that panicked brought nothing that could be ended.
                    if let Ok((asked, answer)) = pop {
                        self.on_pop(asked, answer)?;
                    }
                }
                Some(_) = self.lives.join_next() => {}
                Some(command) = self.controls.commands.recv() => self.wish = self.wish.on(command, Instant::now()),
                Ok(()) = self.controls.shutdown.changed() => {}
                () = self.shop.board.changed() => {}
                () = until(wake) => {}
            }
        }
    }

    /// Makes the owner's wish come true as far as it can be now.
    async fn obey(&mut self) {
        let now = Instant::now();
        let signal = *self.controls.shutdown.borrow_and_update();
        let before = self.wish;
        self.wish = self.wish.on_shutdown(signal).at(now);
        let grace = self.shop.settings.drain_grace;
        let mut haste = match self.wish {
            Wish::Run | Wish::Finish | Wish::Pause { now: false, .. } => Haste::None,
            Wish::Pause { now: true, .. } => Haste::All,
            Wish::Stop(Shutdown::No | Shutdown::Drain) => Haste::Waiting,
            Wish::Stop(Shutdown::HandBack | Shutdown::Abort) => Haste::All,
        };
        if let Wish::Stop(how) = self.wish {
            let limit = match how {
                Shutdown::No | Shutdown::Drain => grace + HAND_BACK_TIME,
                Shutdown::HandBack => HAND_BACK_TIME,
                Shutdown::Abort => Duration::ZERO,
            };
            let leave_by = self.leave_by.map_or(now + limit, |earlier| earlier.min(now + limit));
            self.leave_by = Some(leave_by);
            // The grace is over: what still runs is handed back in the time that is left.
            if leave_by.saturating_duration_since(now) <= HAND_BACK_TIME {
                haste = Haste::All;
            }
        }
        self.shop
            .haste
            .send_if_modified(|told| std::mem::replace(told, haste) != haste);
        if before != self.wish {
            self.shop.board.write(|_| ());
        }
        let holds_nothing = self.lives.is_empty() && self.pops.is_empty();
        let wants_devices = !matches!(self.wish, Wish::Pause { .. });
        if wants_devices && !self.devices_on {
            self.devices_on = true;
            self.shop.devices.iter().for_each(|device| device.start());
        } else if !wants_devices && self.devices_on && holds_nothing {
            // All their memory is free again when this is done: that is what a pause is for.
            self.devices_on = false;
            self.stop_devices().await;
        }
    }

    fn is_over(&self) -> Option<Summary> {
        let holds_nothing = self.lives.is_empty() && self.pops.is_empty();
        let is_over = match self.wish {
            Wish::Stop(Shutdown::Abort) => true,
            Wish::Stop(_) => holds_nothing || self.leave_by.is_some_and(|by| by <= Instant::now()),
            Wish::Finish => holds_nothing,
            Wish::Run | Wish::Pause { .. } => false,
        };
        is_over.then(|| self.summary())
    }

    fn summary(&self) -> Summary {
        let board = self.shop.board.look();
        Summary {
            submitted: board.totals.submitted,
            faulted: board.totals.faulted,
            expired: board.totals.expired,
            left_in_ledger: board.tiles.values().map(|tile| tile.generations as u64).sum(),
            kudos: board.totals.kudos,
        }
    }

    /// Every engine said that it cannot be loaded, and nothing is held that could still be ended.
    fn no_engine_can_load(&self) -> Option<RunError> {
        if !self.lives.is_empty() || !self.pops.is_empty() {
            return None;
        }
        let mut last = None;
        for device in &self.shop.devices {
            let state = device.state().borrow().clone();
            let DeviceState::Refused(error) = state else {
                return None;
            };
            last = Some(RunError::NoEngine {
                device: device.name().to_owned(),
                error,
            });
        }
        last
    }

    /// Whether to pop now, and if not, why and until when.
    async fn plan(&mut self, now: Instant) -> Plan<<B::Kind as JobKind>::PopRequest> {
        let not = |idle: &str, wake| Plan {
            pop: None,
            wake,
            idle: Some(idle.to_owned()),
        };
        match self.wish {
            Wish::Run => {}
            Wish::Pause { until, .. } => return not("paused by its owner", until),
            Wish::Finish => return not("finishing what it holds", None),
            // The grace ends before the time to leave: what runs is handed back in between.
            Wish::Stop(_) => {
                return not(
                    "stopping",
                    self.leave_by
                        .and_then(|by| by.checked_sub(HAND_BACK_TIME))
                        .filter(|at| *at > now),
                );
            }
        }
        let disk_trouble = self.shop.board.look().disk_trouble.clone();
        if let Some((reason, retry_at)) = disk_trouble {
            if now < retry_at {
                return not(&reason, Some(retry_at));
            }
            let now_ms = self.shop.settings.clock.unix_ms();
            if self.shop.record(move |ledger| ledger.probe(now_ms)).await.is_none() {
                return not(&reason, Some(now + OFFER_RETRY));
            }
            self.shop.board.write(|board| board.disk_trouble = None);
            self.shop.board.event(Level::Good, "the ledger can be written again");
        }
        let (rest, held, outbox) = {
            let mut board = self.shop.board.look();
            (
                board.breaker.rest(now),
                board.held_until.filter(|until| now < *until),
                board.outbox,
            )
        };
        if held.is_some() {
            return not("the Horde refuses the key or the name", held);
        }
        if let Some((until, why)) = rest {
            let why = match why {
                Rest::AfterFault => "a short rest after a job that was handed back",
                Rest::Breaker => "too many jobs failed here",
                Rest::Budget => "as many jobs were handed back as an hour may have",
            };
            return not(why, Some(until));
        }
        if outbox >= self.shop.settings.max_outbox.max(1) {
            return not("results wait to be handed in", None);
        }
        let engines = self.shop.slots.reports();
        if engines.is_empty() {
            return not("no engine is ready", None);
        }
        let outlook = self.outlook(now);
        let is_in_doubt = {
            let board = self.shop.board.look();
            board.breaker.is_in_doubt() && !(board.tiles.is_empty() && self.pops.is_empty())
        };
        if is_in_doubt {
            return Plan {
                pop: None,
                wake: None,
                idle: None,
            };
        }
        match wait_until_pop(self.prefetch(&engines), &outlook) {
            Some(Duration::ZERO) => {}
            later => {
                return Plan {
                    pop: None,
                    wake: later.map(|wait| now + wait),
                    idle: None,
                };
            }
        }
        if now < self.next_pop {
            let idle = (outlook.free > 0).then(|| self.why_waiting());
            return Plan {
                pop: None,
                wake: Some(self.next_pop),
                idle,
            };
        }
        if self.pops.len() >= if self.last_pop_hit { POPS_AT_ONCE } else { 1 } {
            return Plan {
                pop: None,
                wake: None,
                idle: None,
            };
        }
        let room = (outlook.free.saturating_sub(outlook.coming)).max(1);
        match self.shop.backend.offer(&engines, room) {
            Ok(request) => Plan {
                pop: Some(request),
                wake: None,
                idle: None,
            },
            Err(nothing) => not(&nothing.0, Some(now + OFFER_RETRY)),
        }
    }

    fn why_waiting(&self) -> String {
        if !self.last_error.is_empty() {
            return self.last_error.clone();
        }
        let reasons: Vec<_> = self
            .poll
            .skipped
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(why, n)| format!("{n} for {why}"))
            .collect();
        if reasons.is_empty() {
            "the Horde has no work for this worker".to_owned()
        } else {
            format!(
                "the Horde has no work for this worker; passed over: {}",
                reasons.join(", ")
            )
        }
    }

    fn outlook(&self, now: Instant) -> Outlook {
        let (free, n_busy) = self.shop.slots.count();
        let board = self.shop.board.look();
        let tiles = board.tiles.values();
        let mut busy: Vec<Option<Duration>> = Vec::with_capacity(n_busy);
        let mut coming = self.pops.len();
        for tile in tiles {
            match tile.stage {
                Stage::Preparing | Stage::Waiting => coming += 1,
                Stage::Running => busy.push(tile.remaining.as_ref().and_then(|remaining| remaining.left(now))),
                Stage::Delivering => {}
            }
        }
        // For a moment after a change of jobs there are more tiles than busy slots: the one that just ended is nearest its end.
        busy.sort_by_key(|left| std::cmp::Reverse(left.unwrap_or_default()));
        busy.resize(n_busy, Some(STRAGGLER_TIME));
        Outlook {
            free,
            busy,
            coming,
            typical: board.typical,
            lead: board.lead.p95(),
        }
    }

    /// Eager where neither the lease nor the measured speed minds.
    fn prefetch(&self, engines: &[crate::backend::EngineReport]) -> Prefetch {
        let set = self.shop.settings.prefetch;
        let typical = self.shop.board.look().typical;
        let lease_slack = typical.is_some_and(|typical| B::Kind::DEFAULT_TTL > typical.mul_f64(EAGER_SLACK));
        let speed_slack = engines.iter().all(|engine| {
            self.shop
                .backend
                .speed_slack(engine)
                .is_some_and(|slack| slack > EAGER_SLACK)
        });
        Prefetch {
            eager: set.eager || (lease_slack && speed_slack),
            ..set
        }
    }

    /// Consumes a pop's answer: a life for each job, and the law's word on when to ask again.
    fn on_pop(&mut self, asked: Instant, answer: Result<PopAnswer<Payload<B>>, ApiError>) -> Result<(), RunError> {
        let now = Instant::now();
        let mut error_text = String::new();
        let end = match answer {
            Ok(popped) => {
                self.has_served = true;
                self.poll.pops += 1;
                self.shop.board.messages(popped.messages);
                let end = if popped.jobs.is_empty() {
                    let hopeless = only_hopeless(&popped.skipped);
                    self.poll.skipped = popped.skipped.into_iter().take(32).collect();
                    PopEnd::Empty { hopeless }
                } else {
                    self.poll.hits += 1;
                    PopEnd::Hit
                };
                for job in popped.jobs.into_iter().filter(|job| !job.generations.is_empty()) {
                    let lease = Lease::new(asked, now, job.ttl.unwrap_or(B::Kind::DEFAULT_TTL));
                    let job = Popped::<B>(job);
                    let head = head_of(&job, lease);
                    // On the wall before the life begins, so that the next look at the devices counts it.
                    let tile = self.shop.board.tile(&head);
                    self.lives
                        .spawn(live(Arc::clone(&self.shop), Job { head, stage: job }, tile));
                }
                end
            }
            Err(error) => {
                self.poll.failed += 1;
                self.poll.ghosts += u64::from(error.may_have_acted());
                error_text = error.to_string();
                self.pop_failed(&error)?
            }
        };
        // Told once, not at every attempt.
        if !error_text.is_empty() && error_text != self.last_error {
            self.shop
                .board
                .event(Level::Warning, &format!("asking for work failed: {error_text}"));
        } else if error_text.is_empty() && !self.last_error.is_empty() {
            self.shop.board.event(Level::Good, "the Horde answers again");
        }
        self.last_error = error_text;
        let chance = self.shop.board.write(|board| board.chance.unit());
        self.last_pop_hit = end == PopEnd::Hit;
        self.next_pop = now + self.law.on(end, now, chance);
        Ok(())
    }

    fn pop_failed(&self, error: &ApiError) -> Result<PopEnd, RunError> {
        let refuse = |reason| {
            Err(RunError::Refused {
                reason,
                message: error.to_string(),
            })
        };
        match (error.class(), error) {
            (ErrorClass::Stop(reason), _) if !self.has_served && reason != StopReason::Account => refuse(reason),
            (ErrorClass::Stop(_), _) => Ok(PopEnd::Permanent),
            // The server names what it does not like in this pop: models, a name; nothing that waiting cures.
            (ErrorClass::BadRequest, ApiError::Refused { rc: Some(_), .. }) if !self.has_served => {
                refuse(StopReason::Settings)
            }
            (ErrorClass::BadRequest, _) => Ok(PopEnd::Permanent),
            (
                ErrorClass::SlowDown {
                    why: SlowReason::Maintenance,
                    wait,
                },
                _,
            ) if wait > Duration::from_secs(60) => Ok(PopEnd::Permanent),
            (
                ErrorClass::SlowDown {
                    why: SlowReason::Maintenance,
                    ..
                },
                _,
            ) => Ok(PopEnd::Maintenance),
            (
                ErrorClass::SlowDown {
                    why: SlowReason::RateLimit,
                    wait,
                },
                _,
            ) => Ok(PopEnd::Asked(wait)),
            (
                ErrorClass::SlowDown {
                    why: SlowReason::Address,
                    ..
                },
                _,
            ) => Ok(PopEnd::Permanent),
            (ErrorClass::Retry { after: Some(wait) }, _) if !wait.is_zero() => Ok(PopEnd::Asked(wait)),
            (ErrorClass::Retry { .. } | ErrorClass::Gone | ErrorClass::AlreadyAccepted, _) => Ok(PopEnd::Failed),
        }
    }

    /// Ends the devices and tells the last state.
    async fn leave(&mut self) {
        self.poll.dropped += self.pops.len() as u64;
        self.wish = self.wish.on(Command::Stop, Instant::now());
        if self.wish != Wish::Stop(Shutdown::Abort) {
            self.stop_devices().await;
        }
        self.published = None;
        self.shop.board.write(|_| ());
        self.publish();
    }

    async fn stop_devices(&self) {
        let stops = futures_util::future::join_all(self.shop.devices.iter().map(|device| device.stop()));
        if timeout(DEVICES_STOP_TIME, stops).await.is_err() {
            self.shop.board.event(Level::Bad, "an engine did not end in time");
        }
    }

    pub fn next_pop_in(&self, now: Instant) -> Option<f64> {
        (self.next_pop > now).then(|| (self.next_pop - now).as_secs_f64())
    }

    /// Hands a new status out.
    pub fn tell(&self, status: Status) {
        self.controls.status.send_replace(status);
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
