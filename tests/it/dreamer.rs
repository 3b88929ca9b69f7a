//! The real dreamer with a tiny model that was really trained, against a Horde on loopback: what is asked is what is seen.

use std::time::Duration;

use e2e::demo::dreamer::{asks, body, read, stage, verdict};
use serde_json::json;

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dreamer_draws_what_is_asked_through_the_whole_protocol() {
    let models = tempfile::tempdir().expect("a folder for models");
    let mut stage = stage(models.path()).await.expect("dreamer starts");
    let asks = asks().expect("requests");
    let mut ids = Vec::new();
    for ask in &asks {
        let filed = stage.requester.file("generate/async", &body(ask)).await;
        ids.push(filed.expect("filed"));
    }
    let results = stage
        .finished("generate/status", &ids, PATIENCE)
        .await
        .expect("answers");
    let mut done = Vec::new();
    for result in &results {
        done.push(read(&stage, result).await.expect("pictures"));
    }
    let books = stage.close().await.expect("dreamer drains and ends");
    for at in 0..asks.len() {
        assert_eq!(verdict(at, &asks, &done), Ok(()), "{}", asks[at].title);
    }
    let pictures: usize = done.iter().map(|done| done.pictures.len()).sum();
    assert_eq!(books.summary["accepted"], json!(pictures));
    assert_eq!(
        (&books.summary["faulted"], &books.summary["open"]),
        (&json!(0), &json!(0))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_gone_and_a_prompt_without_end_cost_no_job() {
    let models = tempfile::tempdir().expect("a folder for models");
    let mut stage = stage(models.path()).await.expect("dreamer starts");
    let params = json!({ "width": 64, "height": 64, "steps": 4, "n": 1, "seed": "1" });
    let with = |prompt: String, extra: serde_json::Value| {
        let mut body = json!({ "prompt": prompt, "models": ["tiny-shapes"], "r2": true, "params": params });
        let extra = extra.as_object().cloned().unwrap_or_default();
        body.as_object_mut().expect("an object").extend(extra);
        body
    };
    let bodies = [
        // The server has the race in which a source is gone before its job is.
        with(
            "a red circle on a blue background".into(),
            json!({ "source_image": "http://127.0.0.1:9/gone.webp" }),
        ),
        with("(".repeat(5_000), json!({})),
        with("embedding:nothing {a|b ### ### (((:9999)".into(), json!({})),
    ];
    let mut ids = Vec::new();
    for body in &bodies {
        ids.push(stage.requester.file("generate/async", body).await.expect("filed"));
    }
    let results = stage
        .finished("generate/status", &ids, PATIENCE)
        .await
        .expect("answers");
    let mut done = Vec::new();
    for result in &results {
        done.push(read(&stage, result).await.expect("pictures"));
    }
    let books = stage.close().await.expect("dreamer drains and ends");
    assert!(done.iter().all(|done| done.pictures.len() == 1), "{results:?}");
    let noted = ("source_image".to_owned(), "download_failed".to_owned(), String::new());
    assert_eq!(done[0].metadata, [noted]);
    assert_eq!(books.summary["faulted"], json!(0));
}
