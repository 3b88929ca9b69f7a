//! The real dreamer with a tiny model that was really trained, against a Horde on loopback: what is asked is what is seen.

use std::time::Duration;

use e2e::demo::dreamer::{Ask, Done, answered, asks, body, stage, stage_with, verdict};
use e2e::demo::shapes::difference;
use serde_json::json;

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dreamer_draws_what_is_asked_through_the_whole_protocol() {
    let models = tempfile::tempdir().expect("a folder for models");
    let mut stage = stage(models.path()).await.expect("dreamer starts");
    let asks = asks().expect("requests");
    let (_, done) = answered(&mut stage, asks.iter().map(body), PATIENCE)
        .await
        .expect("answers");
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
    let (results, done) = answered(&mut stage, bodies, PATIENCE).await.expect("answers");
    let books = stage.close().await.expect("dreamer drains and ends");
    assert!(done.iter().all(|done| done.pictures.len() == 1), "{results:?}");
    let noted = ("source_image".to_owned(), "download_failed".to_owned(), String::new());
    assert_eq!(done[0].metadata, [noted]);
    assert_eq!(books.summary["faulted"], json!(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_passes_follow_the_hordes_size_rules_and_endless_prompts_are_read() {
    let models = tempfile::tempdir().expect("a folder for models");
    let extra = [("DREAMER_UNCHECKED_ON_LOOPBACK", "true"), ("DREAMER_MAX_POWER", "16")];
    let mut stage = stage_with(models.path(), &extra).await.expect("dreamer starts");
    let red = "a large red circle on a blue background";
    let sized = |width: u32, hires: bool| {
        let params = json!({ "width": width, "height": 576, "steps": 2, "hires_fix": hires });
        (red.to_owned(), params)
    };
    let small = || json!({ "steps": 1, "cfg_scale": 1.0 });
    let asked = [
        sized(576, false),
        sized(576, true),
        // One side is no longer than the model's own: there is nothing to enlarge from.
        sized(512, false),
        sized(512, true),
        ("(".repeat(100_000), small()),
        ("a circle ".repeat(100_000 / 9), small()),
    ];
    let bodies = asked.map(|(prompt, params)| {
        body(&Ask {
            title: "",
            prompt: "",
            params,
            body: json!({ "prompt": prompt }),
        })
    });
    let (_, done) = answered(&mut stage, bodies, PATIENCE).await.expect("answers");
    let last = |mut done: Done| done.pictures.pop().expect("every job has its picture");
    let pictures: Vec<_> = done.into_iter().map(last).collect();
    let books = stage.close().await.expect("dreamer drains and ends");
    assert_eq!(
        (&books.summary["accepted"], &books.summary["faulted"]),
        (&json!(6), &json!(0))
    );
    let sizes: Vec<_> = pictures[..4]
        .iter()
        .map(|picture| (picture.width(), picture.height()))
        .collect();
    assert_eq!(sizes, [(576, 576), (576, 576), (512, 576), (512, 576)]);
    let apart = |a: usize, b: usize| difference(&pictures[a], &pictures[b], |_, _| true).expect("one size");
    assert!(
        apart(0, 1) > 2.0,
        "a second pass makes another picture: {}",
        apart(0, 1)
    );
    assert_eq!(apart(2, 3), 0.0, "a picture that needs no second pass has none");
}
