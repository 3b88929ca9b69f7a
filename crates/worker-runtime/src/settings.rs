//! What `run` is told, and how it ends.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use horde_client::error::StopReason;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::backend::LoadError;
use crate::law::owner::{Command, Shutdown};
use crate::law::prefetch::Prefetch;
use crate::law::watchdog::Patience;
use crate::status::Status;

/// How a worker behaves; `Default` is right for most.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How far to look ahead. Default: one job, just in time.
    pub prefetch: Prefetch,
    /// After the first shutdown signal, a running job that ends within this time is finished. Default 90 s.
    pub drain_grace: Duration,
    /// How long an engine may be silent.
    pub patience: Patience,
    /// Popping stops while this many results wait to be handed in. Default 8.
    pub max_outbox: usize,
    /// Generations that may be handed back in any hour before popping stops; the server forces maintenance at 20
    /// (100 for alchemy). Default 10.
    pub faults_per_hour: usize,
    /// Popping rests for this long after any fault, and twice as long after each further one in a row up to sixteen times; a
    /// poison job that comes back at once would otherwise spend the hour's faults in seconds. Default 10 s.
    pub rest_after_fault: Duration,
    /// Seeds all jitter.
    pub seed: u64,
    /// Wall time for the ledger and for display.
    pub clock: Clock,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            prefetch: Prefetch::default(),
            drain_grace: Duration::from_secs(90),
            patience: Patience::default(),
            max_outbox: 8,
            faults_per_hour: 10,
            rest_after_fault: Duration::from_secs(10),
            seed: RandomState::new().hash_one(0u8),
            clock: Clock::System,
        }
    }
}

/// Where wall time comes from. Deadlines never do: they are counted on tokio's monotonic clock.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's wall clock.
    System,
    /// A wall clock that stood at `unix_ms` at `at` and moves with tokio's (pausable) clock.
    Simulated {
        /// The moment.
        at: Instant,
        /// Milliseconds since 1970 at that moment.
        unix_ms: i64,
        /// Milliseconds for which the machine was suspended since then.
        slept_ms: Arc<AtomicU64>,
    },
}

impl Clock {
    /// Milliseconds since 1970.
    pub fn unix_ms(&self) -> i64 {
        let (since, base) = match self {
            Self::System => (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), 0),
            Self::Simulated { at, unix_ms, .. } => (at.elapsed() + self.slept(), *unix_ms),
        };
        base.saturating_add(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// Time since the machine booted, suspension counted; `None` where it cannot be told.
    pub fn since_boot(&self) -> Option<Duration> {
        match self {
            Self::System => {
                let text = std::fs::read_to_string("/proc/uptime").ok()?;
                let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
                Duration::try_from_secs_f64(seconds).ok()
            }
            Self::Simulated { at, .. } => Some(at.elapsed() + self.slept()),
        }
    }

    fn slept(&self) -> Duration {
        match self {
            Self::System => Duration::ZERO,
            Self::Simulated { slept_ms, .. } => Duration::from_millis(slept_ms.load(Ordering::Relaxed)),
        }
    }
}

/// The lines between the running worker and the program around it.
pub struct Controls {
    /// What the owner asks for; a closed channel asks for nothing more.
    pub commands: mpsc::Receiver<Command>,
    /// Signals of the system, each more urgent than the one before.
    pub shutdown: watch::Receiver<Shutdown>,
    /// Where the state is told, at most four times a second.
    pub status: watch::Sender<Status>,
}

/// What a worker did until it ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Generations the server took.
    pub submitted: u64,
    /// Generations handed back.
    pub faulted: u64,
    /// Generations the server gave up before we could end them.
    pub expired: u64,
    /// Generations left in the ledger for the next start.
    pub left_in_ledger: u64,
    /// Kudos promised.
    pub kudos: f64,
}

/// The worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The Horde refused the worker before it ever served: key, name, settings (exit 78).
    #[error("the Horde refuses this worker: {message}")]
    Refused {
        /// What was refused.
        reason: StopReason,
        /// The server's words, escaped.
        message: String,
    },
    /// No device could load its engine, and trying again will not help (exit 66 or 69, see `detail`).
    #[error("no engine could be loaded on `{device}`: {error}")]
    NoEngine {
        /// The last device that failed.
        device: String,
        /// What its engine said; `detail` is the program's own.
        error: LoadError,
    },
    /// The ledger could not be read at start (exit 73).
    #[error(transparent)]
    Ledger(#[from] crate::ledger::LedgerError),
}
