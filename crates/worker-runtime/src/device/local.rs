//! An engine in this process, for tests and small tools: the same trait, no protection from what an engine can do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Device, DeviceState, Progress, RunLine, RunResult};
use crate::backend::{Engine, Fault, JobContext, LoadError};

type Build<E> = dyn Fn() -> Result<E, LoadError> + Send + Sync;

/// Runs an engine on tokio's blocking threads.
pub struct LocalDevice<E> {
    name: String,
    build: Arc<Build<E>>,
    state: Arc<watch::Sender<DeviceState>>,
    loaded: Arc<Mutex<Option<Arc<E>>>>,
    stopping: Mutex<CancellationToken>,
}

impl<E: Engine> LocalDevice<E> {
    /// A device whose engine is made by `build`, each time it is started.
    pub fn new(name: impl Into<String>, build: impl Fn() -> Result<E, LoadError> + Send + Sync + 'static) -> Self {
        Self {
            name: name.into(),
            build: Arc::new(build),
            state: Arc::new(watch::channel(DeviceState::Stopped).0),
            loaded: Arc::default(),
            stopping: Mutex::default(),
        }
    }
}

#[async_trait]
impl<E: Engine> Device<E::Work, E::Output> for LocalDevice<E> {
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> watch::Receiver<DeviceState> {
        self.state.subscribe()
    }

    fn start(&self) {
        if *self.state.borrow() != DeviceState::Stopped {
            return;
        }
        self.state.send_replace(DeviceState::Loading);
        let stopping = CancellationToken::new();
        *self.stopping.lock().unwrap_or_else(PoisonError::into_inner) = stopping.clone();
        let (build, state, loaded) = (
            Arc::clone(&self.build),
            Arc::clone(&self.state),
            Arc::clone(&self.loaded),
        );
        tokio::task::spawn_blocking(move || {
            let built = catch_unwind(AssertUnwindSafe(|| build()));
            let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if stopping.is_cancelled() {
                return;
            }
            let next = match built {
                Ok(Ok(engine)) => {
                    let report = engine.report();
                    *loaded = Some(Arc::new(engine));
                    DeviceState::Ready(report)
                }
                Ok(Err(error)) => DeviceState::Refused(error),
                Err(_) => DeviceState::Failed("the engine panicked while loading".to_owned()),
            };
            state.send_replace(next);
        });
    }

    async fn stop(&self) {
        self.stopping.lock().unwrap_or_else(PoisonError::into_inner).cancel();
        let engine = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.state.send_replace(DeviceState::Stopped);
        drop(engine);
    }

    async fn run(&self, work: E::Work, line: RunLine) -> RunResult<E::Output> {
        let engine = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(engine) = engine else {
            return Err(Fault::of_worker("the engine is not loaded"));
        };
        let stopping = self.stopping.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let state = Arc::clone(&self.state);
        let ran = tokio::task::spawn_blocking(move || {
            let line = LocalLine { line, stopping };
            let result = engine.run(work, &line);
            let report = engine.report();
            state.send_if_modified(|state| match state {
                DeviceState::Ready(told) if *told != report => {
                    *told = report;
                    true
                }
                _ => false,
            });
            result
        });
        ran.await
            .unwrap_or_else(|_| Err(Fault::of_worker("the engine panicked")))
    }
}

struct LocalLine {
    line: RunLine,
    stopping: CancellationToken,
}

impl JobContext for LocalLine {
    fn progress(&self, done: u32, total: u32, phase: &str) {
        self.line.progress.send_replace(Progress {
            done,
            total,
            phase: phase.to_owned(),
        });
    }

    fn is_cancelled(&self) -> bool {
        self.line.cancel.is_cancelled() || self.stopping.is_cancelled()
    }
}
