//! A place where jobs run, as the supervisor sees it: an engine child, an engine in this process, or a simulation.

mod child;
mod local;
mod simulated;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use child::{ChildCommand, ChildDevice};
pub use local::LocalDevice;
pub use simulated::{Ending, Script, SimulatedDevice};

use crate::backend::{EngineReport, Fault, LoadError};

/// What a device is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum DeviceState {
    /// Holds nothing, by wish.
    Stopped,
    /// Starts and loads its engine.
    Loading,
    /// Takes jobs.
    Ready(EngineReport),
    /// Died or did not come up; will be started again by itself.
    Failed(String),
    /// The engine itself said that it cannot be loaded; not tried again before the next start.
    Refused(LoadError),
}

/// The newest report of a running job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Steps done.
    pub done: u32,
    /// Steps in all.
    pub total: u32,
    /// One word for the display.
    pub phase: String,
}

/// A running job's line to its supervisor.
pub struct RunLine {
    /// Where progress is told.
    pub progress: watch::Sender<Progress>,
    /// Asks the job to end at its next step.
    pub cancel: CancellationToken,
}

/// One result per generation, in order, or the fault of the whole job.
pub type RunResult<O> = Result<Vec<Result<O, Fault>>, Fault>;

/// Runs jobs of one kind.
#[async_trait]
pub trait Device<W, O>: Send + Sync + 'static {
    /// As configured: `cuda:0`, `cpu`.
    fn name(&self) -> &str;

    /// The state and its changes. A new device is stopped.
    fn state(&self) -> watch::Receiver<DeviceState>;

    /// Loads the engine, if it is not; returns at once. Keeps it running (a dead one is started again) until `stop`.
    fn start(&self);

    /// Ends the engine; when this returns, all its memory is free. Running jobs end with a fault.
    async fn stop(&self);

    /// Runs one job. Returns when the device is free of it, whether it ended, was cancelled or died.
    /// At most `capacity` calls at once; to be awaited to its end (dropping it loses the result, not the slot).
    async fn run(&self, work: W, line: RunLine) -> RunResult<O>;
}
