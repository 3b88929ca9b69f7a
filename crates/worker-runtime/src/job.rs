//! A job is a value that moves: a head that stays the same, and a stage that each step takes whole and returns as the next.

use std::time::Duration;

use horde_client::kind::{Generation, JobKind, PoppedJob};
use tokio::time::Instant;

use crate::backend::{Backend, Fault, Finished};

/// The kind's payload.
pub(crate) type Payload<B> = <<B as Backend>::Kind as JobKind>::Payload;
/// The kind's submission.
pub(crate) type Submission<B> = <<B as Backend>::Kind as JobKind>::Submission;

/// A job at a stage.
pub(crate) struct Job<S> {
    pub head: Head,
    pub stage: S,
}

/// What stays the same from pop to close. After the fan-out it holds exactly one generation.
#[derive(Clone)]
pub(crate) struct Head {
    pub generations: Vec<Generation>,
    pub model: Option<String>,
    /// See [`PoppedJob::fault_model`].
    pub fault_model: Option<String>,
    pub lease: Lease,
}

/// The time a job has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// When the pop was sent.
    pub asked: Instant,
    /// Length.
    pub ttl: Duration,
    /// Results must be made by then; counted from the sending of the pop, the earliest moment the server may have begun.
    pub end: Instant,
    /// From then on the server has given the job up for certain: lease from the pop's answer, plus its sweep each minute.
    pub last_call: Instant,
    /// How often the machine had slept for long at the pop: once more, and the lease cannot be trusted.
    pub n_sleeps: u64,
}

/// The server looks for stale jobs once a minute.
pub(crate) const SWEEP: Duration = Duration::from_secs(60);
/// Longest lease that is believed.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);

impl Lease {
    pub fn new(asked: Instant, answered: Instant, ttl: Duration, n_sleeps: u64) -> Self {
        let ttl = ttl.min(LONGEST_TTL);
        Self {
            asked,
            ttl,
            end: asked + ttl,
            last_call: answered + ttl + SWEEP,
            n_sleeps,
        }
    }
}

/// As popped, nothing looked at yet.
pub(crate) struct Popped<B: Backend>(pub PoppedJob<Payload<B>>);
/// All values within bounds.
pub(crate) struct Validated<B: Backend>(pub B::Valid);
/// Complete, waiting for a device.
pub(crate) struct Prepared<B: Backend>(pub B::Work);
/// One entry per generation came back, in order; maybe too few.
pub(crate) struct Generated<B: Backend>(pub Vec<Result<B::Output, Fault>>);
/// One generation's result, unchecked.
pub(crate) struct Made<B: Backend>(pub Result<B::Output, Fault>);
/// One generation, checked: may be handed in.
pub(crate) struct Checked<B: Backend>(pub Finished<Submission<B>>);
/// One generation whose bytes are where they belong.
pub(crate) struct Uploaded<B: Backend>(pub Submission<B>);

impl<S> Job<S> {
    /// The same job at the next stage.
    pub fn with<T>(self, next: impl FnOnce(S) -> T) -> Job<T> {
        Job {
            head: self.head,
            stage: next(self.stage),
        }
    }
}

impl Head {
    /// One job per generation: its own result, the whole job's fault, or the fault of having none.
    pub fn fan_out<B: Backend>(self, made: Result<Job<Generated<B>>, Fault>) -> Vec<Job<Made<B>>> {
        let (mut results, whole) = match made {
            Ok(job) => (job.stage.0.into_iter(), None),
            Err(fault) => (Vec::new().into_iter(), Some(fault)),
        };
        let each = self.generations.into_iter().map(|generation| {
            let none = || {
                Err(whole
                    .clone()
                    .unwrap_or_else(|| Fault::of_worker("the engine brought too few results")))
            };
            let head = Head {
                generations: vec![generation],
                model: self.model.clone(),
                fault_model: self.fault_model.clone(),
                lease: self.lease,
            };
            Job {
                head,
                stage: Made(results.next().unwrap_or_else(none)),
            }
        });
        each.collect()
    }

    /// The one generation of a fanned-out job.
    pub fn only(&self) -> &Generation {
        self.generations.first().expect("a job holds at least one generation")
    }
}
