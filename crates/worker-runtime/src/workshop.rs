//! What the lives of all jobs share.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use horde_client::Client;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::backend::{Backend, Fault};
use crate::board::Board;
use crate::device::Device;
use crate::job::Lease;
use crate::ledger::{Ledger, LedgerError};
use crate::settings::Settings;
use crate::slots::Slots;
use crate::status::Level;

/// Requests that hand results in or back at the same time; more would only share the same line.
const DELIVERIES_AT_ONCE: usize = 4;
/// A ledger that could not be written is tried again after this.
const DISK_RETRY: Duration = Duration::from_secs(30);

/// How much of what is held is to be handed back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Haste {
    /// Nothing.
    #[default]
    None,
    /// What has no device yet, and what would run for longer than the grace.
    Waiting,
    /// Everything unfinished.
    All,
}

/// What lives have to watch for besides their own work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hurry {
    pub haste: Haste,
    /// How often the machine slept for long.
    pub n_sleeps: u64,
}

pub(crate) type AnyDevice<B> = Arc<dyn Device<<B as Backend>::Work, <B as Backend>::Output>>;

pub(crate) struct Workshop<B: Backend> {
    pub backend: B,
    pub client: Client,
    pub ledger: Arc<Ledger>,
    pub devices: Vec<AnyDevice<B>>,
    pub slots: Arc<Slots>,
    pub board: Arc<Board>,
    pub settings: Settings,
    pub deliveries: Semaphore,
    pub hurry: watch::Sender<Hurry>,
}

impl<B: Backend> Workshop<B> {
    pub fn new(
        backend: B,
        client: Client,
        devices: Vec<AnyDevice<B>>,
        ledger: Ledger,
        settings: Settings,
    ) -> Arc<Self> {
        Arc::new(Self {
            backend,
            client,
            ledger: Arc::new(ledger),
            slots: Slots::new(devices.len()),
            devices,
            board: Board::new(&settings),
            settings,
            deliveries: Semaphore::new(DELIVERIES_AT_ONCE),
            hurry: watch::channel(Hurry::default()).0,
        })
    }

    /// Completes once at least this much is to be handed back, or the machine slept over the job's lease.
    pub async fn hurried(&self, haste: Haste, lease: &Lease) {
        let mut now = self.hurry.subscribe();
        let reached = now
            .wait_for(|now| now.haste >= haste || now.n_sleeps > lease.n_sleeps)
            .await
            .is_ok();
        if !reached {
            std::future::pending::<()>().await;
        }
    }

    /// Writes to the ledger on a blocking thread. Where the disk refuses, popping rests and the job goes on from memory.
    pub async fn record<T: Send + 'static>(
        &self,
        write: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Option<T> {
        let ledger = Arc::clone(&self.ledger);
        let done = tokio::task::spawn_blocking(move || write(&ledger)).await;
        let reason = match done {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => error.to_string(),
            Err(error) => format!("the ledger failed: {error}"),
        };
        let is_new = self.board.write(|inner| {
            let was = inner
                .disk_trouble
                .replace((reason.clone(), Instant::now() + DISK_RETRY));
            was.is_none()
        });
        if is_new {
            self.board
                .event(Level::Bad, &format!("no more work is asked for: {reason}"));
        }
        None
    }

    /// The shortest estimate among the devices that suit.
    pub fn estimate(&self, work: &B::Work) -> Option<Duration> {
        let suiting = self
            .slots
            .reports()
            .into_iter()
            .filter(|engine| self.backend.suits(work, engine));
        suiting.filter_map(|engine| self.backend.estimate(work, &engine)).min()
    }
}

/// Turns a panic of a backend into the fault of one job.
pub(crate) async fn caught<T>(step: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    match AssertUnwindSafe(step).catch_unwind().await {
        Ok(result) => result,
        Err(_) => Err(Fault::of_worker("the worker panicked at this job")),
    }
}
