//! A toy kind of work on the wire of images: steps that only take time, results of a few bytes.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::image::{Image, PopRequest, Submission};
use horde_client::kind::PoppedJob;
use horde_client::metadata::State;
use worker_runtime::backend::{Backend, EngineReport, Fault, Finished, NothingToOffer};

pub use crate::toy_work::ToyWork;

/// Reads a play out of a prompt: `steps=3 ms=100 end=die`.
pub fn parse(prompt: &str) -> ToyWork {
    let mut work = ToyWork {
        steps: 4,
        step_ms: 500,
        ..ToyWork::default()
    };
    for (name, value) in prompt.split_whitespace().filter_map(|word| word.split_once('=')) {
        match name {
            "steps" => work.steps = value.parse().unwrap_or(work.steps),
            "ms" => work.step_ms = value.parse().unwrap_or(work.step_ms),
            "prep" => work.prepare_ms = value.parse().unwrap_or(0),
            "end" => value.clone_into(&mut work.end),
            _ => {}
        }
    }
    work
}

/// Time on the device.
pub fn takes(work: &ToyWork) -> Duration {
    Duration::from_millis(work.step_ms.saturating_mul(u64::from(work.steps)))
}

/// The toy kind.
#[derive(Clone, Debug)]
pub struct Toy {
    /// Time to fetch inputs.
    pub prepare: Duration,
    /// Whether results go to the object store.
    pub uploads: bool,
    /// Generations asked for in one pop.
    pub amount: u32,
    /// Outputs as the engine made them, in the order they were checked.
    pub outputs: Arc<Mutex<Vec<String>>>,
    /// Whether each accepted job was made, as they left the devices.
    pub left: Arc<Mutex<Vec<bool>>>,
}

impl Default for Toy {
    fn default() -> Self {
        Self {
            prepare: Duration::ZERO,
            uploads: true,
            amount: 3,
            outputs: Arc::default(),
            left: Arc::default(),
        }
    }
}

/// The name the toy worker presents; the server gives every kind of job to it.
pub const AGENT: &str = "AI Horde Worker reGen:13.0.0:toy";

#[async_trait]
impl Backend for Toy {
    type Kind = Image;
    type Valid = ToyWork;
    type Work = ToyWork;
    type Output = String;

    fn offer(&self, _engines: &[EngineReport], _free: usize) -> Result<PopRequest, NothingToOffer> {
        Ok(PopRequest {
            name: "toy".to_owned(),
            models: vec!["toy-model".to_owned()],
            bridge_agent: Some(AGENT.to_owned()),
            max_pixels: Some(1 << 22),
            amount: Some(self.amount),
            ..PopRequest::default()
        })
    }

    fn validate(&self, job: &mut PoppedJob<horde_client::image::Payload>) -> Result<ToyWork, Fault> {
        let prompt = job
            .payload
            .as_ref()
            .ok()
            .and_then(|payload| payload.params.prompt.clone());
        let mut work = parse(&prompt.ok_or_else(|| Fault::of_job("no prompt"))?);
        if work.end == "invalid" {
            return Err(Fault::of_job("a bad value"));
        }
        work.ids = job
            .generations
            .iter()
            .map(|generation| generation.id.0.clone())
            .collect();
        Ok(work)
    }

    async fn prepare(&self, valid: ToyWork) -> Result<ToyWork, Fault> {
        tokio::time::sleep(self.prepare + Duration::from_millis(valid.prepare_ms)).await;
        Ok(valid)
    }

    fn estimate(&self, work: &ToyWork, _engine: &EngineReport) -> Option<Duration> {
        Some(takes(work))
    }

    fn left(&self, is_made: bool) {
        self.left.lock().expect("lock").push(is_made);
    }

    async fn check(&self, output: String) -> Result<Finished<Submission>, Fault> {
        self.outputs.lock().expect("lock").push(output.clone());
        let submission = |generation: &str| Submission {
            generation: generation.to_owned(),
            state: State::Ok,
            seed: 1,
            gen_metadata: Vec::new(),
        };
        Ok(if self.uploads {
            Finished {
                upload: Some(Bytes::from(output)),
                submission: submission("R2"),
                units: 1.0,
            }
        } else {
            Finished {
                upload: None,
                submission: submission(&output),
                units: 1.0,
            }
        })
    }

    fn inline(&self, submission: &Submission, bytes: &Bytes) -> Option<Submission> {
        let generation = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Submission {
            generation,
            ..submission.clone()
        })
    }
}
