//! What passes between the toy backend and the toy engine.

use serde::{Deserialize, Serialize};
use worker_runtime::backend::Fault;

/// What a job asks of the engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ToyWork {
    /// Ids of the generations.
    pub ids: Vec<String>,
    /// Steps to make.
    pub steps: u32,
    /// Milliseconds of each.
    pub step_ms: u64,
    /// Milliseconds to fetch inputs.
    pub prepare_ms: u64,
    /// How it ends: empty for well, else `fault`, `panic`, `abort`, `hang`, `exit`, `print`, `few`, `time`, `overflow`.
    pub end: String,
}

impl ToyWork {
    /// One result per id.
    pub fn results(&self) -> Vec<Result<String, Fault>> {
        let n = if self.end == "few" { 0 } else { self.ids.len() };
        self.ids
            .iter()
            .take(n)
            .map(|id| Ok(format!("result of {id}")))
            .collect()
    }
}
