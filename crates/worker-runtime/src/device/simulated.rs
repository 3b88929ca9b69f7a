//! A device that only takes time, on tokio's clock: for simulations on the paused clock and for benches.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Device, DeviceState, Progress, RunLine, RunResult};
use crate::backend::{EngineReport, Fault};

/// How long a hung engine takes to be ended: the cancel ladder of a child.
const KILL_LADDER: Duration = Duration::from_secs(5);

/// How one job goes.
pub struct Script<O> {
    /// Steps it makes.
    pub steps: u32,
    /// Time of each.
    pub step: Duration,
    /// What comes after the last one.
    pub ending: Ending<O>,
}

/// What comes after the last step.
pub enum Ending<O> {
    /// Results or a fault.
    Return(RunResult<O>),
    /// The engine dies, and every job on it.
    Die,
    /// Nothing more comes until the job is cancelled; then the engine has to be killed.
    Hang,
}

type Play<W, O> = dyn Fn(&W) -> Script<O> + Send + Sync;

/// Plays a [`Script`] for each job.
pub struct SimulatedDevice<W, O> {
    name: String,
    report: EngineReport,
    load: Duration,
    play: Box<Play<W, O>>,
    state: Arc<watch::Sender<DeviceState>>,
    /// Cancelled when the simulated process ends.
    process: Mutex<CancellationToken>,
}

impl<W, O> SimulatedDevice<W, O> {
    /// A device that needs `load` to load and then does what `play` says.
    pub fn new(
        name: impl Into<String>,
        report: EngineReport,
        load: Duration,
        play: impl Fn(&W) -> Script<O> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            report,
            load,
            play: Box::new(play),
            state: Arc::new(watch::channel(DeviceState::Stopped).0),
            process: Mutex::new(CancellationToken::new()),
        }
    }

    fn process(&self) -> CancellationToken {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the process; a new one is not started here.
    fn kill(&self) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *process, CancellationToken::new()).cancel();
    }

    fn boot(&self, after: Duration) {
        let (state, report, load, process) = (Arc::clone(&self.state), self.report.clone(), self.load, self.process());
        tokio::spawn(async move {
            let loading = async {
                tokio::time::sleep(after).await;
                state.send_replace(DeviceState::Loading);
                tokio::time::sleep(load).await;
                state.send_replace(DeviceState::Ready(report));
            };
            let _ = process.run_until_cancelled(loading).await;
        });
    }

    fn die(&self) -> Fault {
        self.kill();
        self.state
            .send_replace(DeviceState::Failed("the engine died".to_owned()));
        self.boot(Duration::from_secs(1));
        Fault::of_worker("the engine died")
    }
}

#[async_trait]
impl<W: Send + Sync + 'static, O: Send + 'static> Device<W, O> for SimulatedDevice<W, O> {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> watch::Receiver<DeviceState> {
        self.state.subscribe()
    }

    fn start(&self) {
        if *self.state.borrow() == DeviceState::Stopped {
            self.state.send_replace(DeviceState::Loading);
            self.boot(Duration::ZERO);
        }
    }

    async fn stop(&self) {
        self.kill();
        self.state.send_replace(DeviceState::Stopped);
    }

    async fn run(&self, work: W, line: RunLine) -> RunResult<O> {
        if !matches!(*self.state.borrow(), DeviceState::Ready(_)) {
            return Err(Fault::of_worker("the engine is not loaded"));
        }
        let (script, process) = ((self.play)(&work), self.process());
        drop(work);
        for done in 1..=script.steps {
            if process
                .run_until_cancelled(tokio::time::sleep(script.step))
                .await
                .is_none()
            {
                return Err(Fault::of_worker("the engine died"));
            }
            if line.cancel.is_cancelled() {
                return Err(Fault::of_job("cancelled"));
            }
            line.progress.send_replace(Progress {
                done,
                total: script.steps,
                phase: "steps".to_owned(),
            });
        }
        match script.ending {
            Ending::Return(result) => result,
            Ending::Die => Err(self.die()),
            Ending::Hang => {
                let ended = async {
                    line.cancel.cancelled().await;
                    tokio::time::sleep(KILL_LADDER).await;
                };
                match process.run_until_cancelled(ended).await {
                    Some(()) => Err(self.die()),
                    None => Err(Fault::of_worker("the engine died")),
                }
            }
        }
    }
}
