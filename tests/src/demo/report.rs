//! The outcome of a demo, for people and for programs.

use serde::Serialize;
use serde_json::Value;

/// One object for `--json`, printed as the last line.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Program that worked.
    pub worker: &'static str,
    /// Generations delivered and accepted.
    pub submitted: u64,
    /// Generations handed back.
    pub faulted: u64,
    /// Generations whose lease ran out.
    pub expired: u64,
    /// Share of the time, from the first pop to the last submission, that the device was at work: 0..=1.
    pub busy_fraction: f64,
    /// Kudos the server credited.
    pub kudos: f64,
    /// What was asked and what came back, one entry per request.
    pub outputs: Vec<Value>,
}

impl Report {
    /// Whether every request was answered and nothing was handed back or lost.
    pub fn complete(&self, requests: usize) -> bool {
        self.outputs.len() == requests
            && self.outputs.iter().all(|one| one["answered"] == true)
            && self.faulted == 0
            && self.expired == 0
    }
}
