//! What a running job tells of its steps, and what is learnt of their time.

use std::time::Instant;

use worker_runtime::backend::JobContext;

/// Nobody is told.
pub struct Nobody;

impl JobContext for Nobody {
    fn progress(&self, _: u32, _: u32, _: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Passes steps on and takes their time.
pub struct Steps<'a> {
    job: &'a dyn JobContext,
    times: Vec<Instant>,
}

impl<'a> Steps<'a> {
    /// None was made yet.
    pub fn new(job: &'a dyn JobContext) -> Self {
        Self { job, times: Vec::new() }
    }

    /// Mean seconds of a step; `None` where fewer than two were seen.
    pub fn seconds_each(&self) -> Option<f64> {
        let (first, last) = (self.times.first()?, self.times.last()?);
        let count = self.times.len() - 1;
        let seconds = last.duration_since(*first).as_secs_f64() / count as f64;
        (count > 0 && seconds > 0.0).then_some(seconds)
    }
}

impl diffusion::Progress for Steps<'_> {
    fn step(&mut self, step: usize, total: usize) {
        self.times.push(Instant::now());
        self.job.progress(step as u32, total as u32, "sample");
    }

    fn is_cancelled(&self) -> bool {
        self.job.is_cancelled()
    }
}
