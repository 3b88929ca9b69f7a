//! The whole worker: one loop that asks for work when the laws say so, starts a life for each job, and obeys its owner.

use std::sync::Arc;
use std::time::Duration;

use horde_client::Client;
use horde_client::error::ApiError;
use horde_client::kind::{JobKind, Popped as PopAnswer};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::backend::Backend;
use crate::device::DeviceState;
use crate::job::Payload;
use crate::law::owner::{Command, Shutdown, Wish};
use crate::law::poll::PollLaw;
use crate::law::sleep::SleepWatch;
use crate::ledger::Ledger;
use crate::replay::replay;
use crate::settings::{Controls, RunError, Settings, Summary};
use crate::status::{Level, PollStatus, Status};
use crate::workshop::{AnyDevice, Haste, Workshop};

/// After the second signal everything is handed back within this.
pub(crate) const HAND_BACK_TIME: Duration = Duration::from_secs(5);
/// How soon a long sleep of the machine is noticed.
const SLEEP_CHECK: Duration = Duration::from_secs(5);
/// Ending an engine takes at most the two rungs of its cancel ladder and a little.
const DEVICES_STOP_TIME: Duration = Duration::from_secs(15);

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

type PopRequest<B> = <<B as Backend>::Kind as JobKind>::PopRequest;
type PopResult<B> = (Instant, PopRequest<B>, Result<PopAnswer<Payload<B>>, ApiError>);

pub(crate) struct Worker<B: Backend> {
    pub shop: Arc<Workshop<B>>,
    controls: Controls,
    pub wish: Wish,
    /// When the wish was to leave, the moment it must be done.
    pub leave_by: Option<Instant>,
    /// Lives of jobs. Dropping them is a crash, never a way to end.
    pub lives: JoinSet<()>,
    /// Pops under way: spawned, so that their answers are consumed whatever else happens.
    pub pops: JoinSet<PopResult<B>>,
    watchers: JoinSet<()>,
    pub law: PollLaw,
    pub next_pop: Instant,
    pub last_pop_hit: bool,
    /// Whether the Horde ever answered a pop well: a refusal before that ends the worker, later ones only make it wait.
    pub has_served: bool,
    pub last_error: String,
    devices_on: bool,
    pub poll: PollStatus,
    pub idle: Option<String>,
    pub started: Instant,
    pub published: Option<Instant>,
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
        let shop = Arc::clone(&self.shop);
        self.watchers.spawn(async move {
            let mut watch = SleepWatch::default();
            loop {
                let Some(since_boot) = shop.settings.clock.since_boot() else {
                    return;
                };
                if watch.on(since_boot, Instant::now()) {
                    shop.hurry.send_modify(|hurry| hurry.n_sleeps += 1);
                    shop.board
                        .event(Level::Warning, "the machine was asleep: what was held is handed back");
                }
                tokio::time::sleep(SLEEP_CHECK).await;
            }
        });
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
                    let answer = client.pop::<B::Kind>(&request).await;
                    (asked, request, answer)
                });
                continue;
            }
            let publish_at = self.publish();
            let wake = [plan.wake, publish_at, self.leave_by].into_iter().flatten().min();
            tokio::select! {
                Some(pop) = self.pops.join_next() => {
                    // A pop that panicked brought nothing that could be ended.
                    if let Ok((asked, request, answer)) = pop {
                        self.on_pop(asked, &request, answer)?;
                    }
                }
                Some(_) = self.lives.join_next() => {}
                Some(command) = self.controls.commands.recv() => {
                    self.wish = self.wish.on(command, Instant::now());
                    // Whoever gave it looks for what it did.
                    self.shop.board.write(|_| ());
                }
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
        // What waits for an engine would wait in vain.
        if self.refused_by_all().is_some() {
            haste = haste.max(Haste::Waiting);
        }
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
            .hurry
            .send_if_modified(|hurry| std::mem::replace(&mut hurry.haste, haste) != haste);
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
        let holds_nothing = self.lives.is_empty() && self.pops.is_empty();
        self.refused_by_all().filter(|_| holds_nothing)
    }

    /// The last engine's refusal, where every engine said that it cannot be loaded.
    fn refused_by_all(&self) -> Option<RunError> {
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

    /// Ends every engine, unless a signal to leave at once comes first; dropped children are killed.
    async fn stop_devices(&self) {
        let stops = futures_util::future::join_all(self.shop.devices.iter().map(|device| device.stop()));
        let mut signals = self.controls.shutdown.clone();
        let abort = async {
            if signals.wait_for(|signal| *signal == Shutdown::Abort).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            ended = timeout(DEVICES_STOP_TIME, stops) => if ended.is_err() {
                self.shop.board.event(Level::Bad, "an engine did not end in time");
            },
            () = abort => {}
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
