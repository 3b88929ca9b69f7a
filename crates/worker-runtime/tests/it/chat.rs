//! A kind whose hand-backs name a model and a reason, held to it by a Horde that refuses any other: chat jobs.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::kind::PoppedJob;
use horde_client::text::{Payload, PopRequest, Submission, Text};
use local_horde::{Fate, WORKER_KEY};
use serde_json::{Value, json};
use tempfile::TempDir;
use worker_runtime::backend::{Backend, EngineReport, Fault, Finished, NothingToOffer};

use crate::case::{first, rc};
use crate::toy::{ToyWork, parse, takes};
use crate::world::{Call, Meddling, Running, World};

const MODEL: &str = "koboldcpp/Toy-1B";

/// Answers chats; the first message is a play.
struct Chatter;

#[async_trait]
impl Backend for Chatter {
    type Kind = Text;
    type Valid = ToyWork;
    type Work = ToyWork;
    type Output = String;

    fn offer(&self, _: &[EngineReport], _: usize) -> Result<PopRequest, NothingToOffer> {
        Ok(PopRequest {
            name: "chatter".to_owned(),
            models: vec!["koboldcpp/Other-1B".to_owned(), MODEL.to_owned()],
            bridge_agent: Some("KoboldCppEmbedWorker:2:toy".to_owned()),
            chat_jobs: Some(true),
            model_id: Some(MODEL.to_owned()),
            chat_features: vec!["prompt_overflow_refused".to_owned()],
            chat_limits: Some(json!({ "max_length": 512, "max_context_length": 2048 })),
            ..PopRequest::default()
        })
    }

    fn validate(&self, job: &mut PoppedJob<Payload>) -> Result<ToyWork, Fault> {
        let Ok(Payload::Chat(payload)) = &job.payload else {
            return Err(Fault::of_job("no chat"));
        };
        let play = payload["messages"][0]["content"].as_str().unwrap_or_default();
        let work = parse(play);
        if work.end == "invalid" {
            return Err(Fault::of_job("a bad value"));
        }
        let ids = job.generations.iter().map(|generation| generation.id.0.clone());
        Ok(ToyWork {
            ids: ids.collect(),
            ..work
        })
    }

    async fn prepare(&self, valid: ToyWork) -> Result<ToyWork, Fault> {
        Ok(valid)
    }

    fn estimate(&self, work: &ToyWork, _: &EngineReport) -> Option<Duration> {
        Some(takes(work))
    }

    async fn check(&self, output: String) -> Result<Finished<Submission>, Fault> {
        let message = json!({ "role": "assistant", "content": output });
        let reply = json!({ "model_id": MODEL, "message": message, "finish_reason": "stop" });
        Ok(Finished {
            upload: None,
            submission: Submission::Chat(reply),
            units: 1.0,
        })
    }

    fn inline(&self, _: &Submission, _: &Bytes) -> Option<Submission> {
        None
    }
}

struct Case {
    world: World,
    dir: TempDir,
}

impl Case {
    /// A world with one chat that plays `play`.
    fn of(play: &str) -> Self {
        let world = World::new(1);
        let body = json!({ "messages": [{ "role": "user", "content": play }], "models": [MODEL], "max_tokens": 16 });
        world.horde.file("generate/chat/async", &body).expect("filed");
        let dir = tempfile::tempdir().expect("a directory");
        Self { world, dir }
    }

    fn start(&self) -> Running {
        let devices = vec![self.world.device(1)];
        self.world
            .start_on(self.dir.path(), Chatter, self.world.settings(1), devices)
    }

    /// How the first generation ended, and the reason the server was told.
    fn ending(&self) -> (Fate, Option<String>) {
        let state = self.world.horde.state();
        let mut entries: Vec<_> = state.ledger.generations.values().collect();
        entries.sort_by(|one, other| one.popped.total_cmp(&other.popped));
        (entries[0].fate, entries[0].fault_reason.clone())
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_back_names_the_model_and_the_reason() {
    for (play, reason) in [
        ("steps=1 end=overflow", "prompt_overflow"),
        ("steps=1 end=fault", "generation_error"),
        ("steps=1 end=die", "generation_error"),
        ("steps=1 end=invalid", "generation_error"),
        ("steps=100 ms=1300", "generation_error"),
    ] {
        let case = Case::of(play);
        let mut worker = case.start();
        worker.until(|status| status.totals.faulted >= 1).await;
        assert_eq!(case.ending(), (Fate::Faulted, Some(reason.to_owned())), "{play}");
        worker.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_the_server_refuses_is_handed_back_as_that() {
    let case = Case::of("steps=1");
    let refusal = rc(400, "SomethingNew").expect("an answer");
    case.world.meddle(first(2, Call::Submit, refusal));
    let mut worker = case.start();
    worker.until(|status| status.totals.faulted == 1).await;
    assert_eq!(case.ending(), (Fate::Faulted, Some("reply_refused".to_owned())));
    worker.kill().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_the_model_is_still_named() {
    let case = Case::of("steps=60 ms=1000");
    let mut worker = case.start();
    worker.until(|status| status.jobs.iter().any(|job| job.done >= 2)).await;
    worker.kill().await;
    let mut next = case.start();
    next.until(|status| status.totals.faulted == 1).await;
    assert_eq!(case.ending(), (Fate::Faulted, Some("generation_error".to_owned())));
    next.kill().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_a_finished_reply_is_handed_in() {
    let case = Case::of("steps=2");
    case.world
        .meddle(|call, _| (call == Call::Submit).then_some(Meddling::LoseRequest));
    let mut worker = case.start();
    worker.until(|status| status.outbox == 1).await;
    worker.kill().await;
    case.world.meddle(|_, _| None);
    let mut next = case.start();
    next.until(|status| status.totals.submitted == 1).await;
    assert_eq!(case.ending(), (Fate::Accepted, None));
    next.finish().await.expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn a_hand_back_without_a_model_would_be_refused() {
    let case = Case::of("steps=1");
    let pop = json!({
        "name": "other", "models": [MODEL], "chat_jobs": true, "model_id": MODEL,
        "chat_features": ["prompt_overflow_refused"], "chat_limits": { "max_length": 512, "max_context_length": 2048 },
    });
    let call = |path, body: &Value| case.world.horde.call("POST", path, WORKER_KEY, body);
    let job = call("generate/text/pop", &pop).expect("a job");
    let plain = json!({ "id": job["id"], "generation": "faulted", "state": "faulted" });
    assert!(call("generate/text/submit", &plain).is_err());
}
