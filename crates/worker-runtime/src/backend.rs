//! The seam a kind of work implements: plain data in, plain data out, no handle to the runtime.
//!
//! A [`Backend`] lives in the supervisor and knows one kind's jobs; an [`Engine`] lives in the engine child (or in a
//! test, in the same process) and knows one device. `Work` and `Output` are the plain data between them.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::error::ApiError;
pub use horde_client::kind::Cause;
use horde_client::kind::{JobKind, PoppedJob};
use serde::{Serialize, de::DeserializeOwned};

/// This job failed, and only this job. The reason is for the log and the ledger: no prompt, key or address in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, serde::Deserialize)]
#[error("{reason}")]
pub struct Fault {
    /// One phrase, in the house's words.
    pub reason: String,
    /// Whether it speaks against this worker (counts towards the breaker) or only against the job.
    pub ours: bool,
    /// The reason as the server may be told it.
    pub cause: Cause,
}

impl Fault {
    /// The job cannot be done by anybody: bad value, unreachable source.
    pub fn of_job(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            ours: false,
            cause: Cause::Failed,
        }
    }

    /// The worker failed at a job it should have done.
    pub fn of_worker(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            ours: true,
            cause: Cause::Failed,
        }
    }

    /// The same with a reason that servers have a word for.
    pub fn because(self, cause: Cause) -> Self {
        Self { cause, ..self }
    }
}

/// Why nothing can be popped for now, in words for the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NothingToOffer(pub String);

/// What one loaded engine tells of itself; the backend builds the pop from it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
pub struct EngineReport {
    /// Jobs it runs at once, at least 1.
    pub capacity: usize,
    /// Kind-specific facts (models loaded, measured speed, context length), read by the backend alone.
    pub facts: serde_json::Value,
}

/// Why an engine could not be loaded although its process lives; trying again will not help.
#[derive(Clone, Debug, PartialEq, thiserror::Error, Serialize, serde::Deserialize)]
#[error("{message}")]
pub struct LoadError {
    /// The fact and the value. No secret.
    pub message: String,
    /// Whatever the program wants to know of it (exit code, hint); opaque to the runtime.
    pub detail: serde_json::Value,
}

/// One kind of work, as the supervisor sees it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// The kind on the wire.
    type Kind: JobKind;
    /// A job whose values are all within bounds, before its inputs are fetched.
    type Valid: Send + 'static;
    /// What the engine needs, complete.
    type Work: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// What the engine made for one generation.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// The next pop's body for engines that report `engines` (those with room, or all when none has), or why there is
    /// nothing to pop for.
    /// `free` is how many more jobs the devices can take now, at least 1.
    fn offer(
        &self,
        engines: &[EngineReport],
        free: usize,
    ) -> Result<<Self::Kind as JobKind>::PopRequest, NothingToOffer>;

    /// What engines that are still loading wait for, in words for the owner, where that is known; looked at again and again.
    fn waits_for(&self) -> Option<String> {
        None
    }

    /// The server refused `request` as malformed. True where the next offer will be another one: then it is asked again
    /// soon, and the worker does not end over it.
    fn pop_refused(&self, request: &<Self::Kind as JobKind>::PopRequest, error: &ApiError) -> bool {
        let _ = (request, error);
        false
    }

    /// Clamps and checks a popped job. Cheap, no I/O.
    fn validate(&self, job: &mut PoppedJob<<Self::Kind as JobKind>::Payload>) -> Result<Self::Valid, Fault>;

    /// Fetches what the job needs (sources, LoRAs) while the device is still busy with another.
    async fn prepare(&self, valid: Self::Valid) -> Result<Self::Work, Fault>;

    /// Expected time on the device, for prefetch and for refusing what cannot end in time; `None` when unknown.
    fn estimate(&self, work: &Self::Work, engine: &EngineReport) -> Option<Duration>;

    /// Whether `engine` can run this job; asked where several devices differ.
    fn suits(&self, work: &Self::Work, engine: &EngineReport) -> bool {
        let _ = (work, engine);
        true
    }

    /// How many times faster than the server's slowest acceptable worker `engine` is, where that is known. Above four,
    /// jobs with long leases are popped early; without knowledge always just in time.
    fn speed_slack(&self, engine: &EngineReport) -> Option<f64> {
        let _ = engine;
        None
    }

    /// The same submission without anything optional, for one more try after the server refused it as malformed.
    fn minimal(&self, submission: &<Self::Kind as JobKind>::Submission) -> <Self::Kind as JobKind>::Submission {
        submission.clone()
    }

    /// A job that [`Backend::validate`] accepted has left the devices; told once for each. `is_made` unless it was faulted,
    /// given up or handed back, in which case what served it may still be stopping.
    fn left(&self, is_made: bool) {
        let _ = is_made;
    }

    /// Looks at one result before anybody else may see it and makes it ready to hand in. Fails closed.
    async fn check(&self, output: Self::Output) -> Result<Finished<<Self::Kind as JobKind>::Submission>, Fault>;

    /// The submission that carries `bytes` inside itself, for a restart after which the upload target is gone;
    /// `None` where the wire has no such way.
    fn inline(
        &self,
        submission: &<Self::Kind as JobKind>::Submission,
        bytes: &Bytes,
    ) -> Option<<Self::Kind as JobKind>::Submission>;
}

/// One generation, checked and ready: the only thing that may be uploaded and submitted.
#[derive(Clone, Debug)]
pub struct Finished<S> {
    /// Bytes for the object store, where the kind uploads.
    pub upload: Option<Bytes>,
    /// What is submitted after the upload.
    pub submission: S,
    /// Things made, in the kind's unit (steps, tokens, tiles), for speed displays.
    pub units: f64,
}

/// One device's engine, inside the child. Methods are called from threads, never from an async runtime.
pub trait Engine: Send + Sync + 'static {
    /// See [`Backend::Work`].
    type Work: Serialize + DeserializeOwned + Send + 'static;
    /// See [`Backend::Output`].
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// What it can do, after loading. Asked after each job and twice a second while there is none.
    fn report(&self) -> EngineReport;

    /// Runs one job to its end: one entry per generation, in order. Blocks; called on up to `capacity` threads at once.
    /// Looks at `job.is_cancelled()` at least once per step.
    fn run(&self, work: Self::Work, job: &dyn JobContext) -> Result<Vec<Result<Self::Output, Fault>>, Fault>;
}

/// What a running job may tell and ask.
pub trait JobContext: Send + Sync {
    /// `done` of `total` steps (or tokens); `phase` is one word for the display.
    fn progress(&self, done: u32, total: u32, phase: &str);
    /// True once the job should stop at the next step.
    fn is_cancelled(&self) -> bool;
}
