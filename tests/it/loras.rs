//! A LoRA through the whole protocol: looked up and fetched from a copy of CivitAI's API on loopback, put on, taken off.

use std::time::Duration;

use e2e::demo::civitai::{self, INVERSION, VERSION};
use e2e::demo::dreamer::{Ask, answered, body, stage_with};
use e2e::demo::shapes::difference;
use serde_json::json;

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lora_is_fetched_put_on_and_taken_off_without_a_trace() {
    let models = tempfile::tempdir().expect("a folder for models");
    let address = civitai::serve().await.expect("a copy of the API");
    let extra = [
        ("DREAMER_UNCHECKED_ON_LOOPBACK", "true"),
        ("DREAMER_CIVITAI_URL", address.as_str()),
    ];
    let mut stage = stage_with(models.path(), &extra).await.expect("dreamer starts");
    let ask = |prompt: &'static str, strength: Option<f64>| Ask {
        title: prompt,
        prompt,
        params: match strength {
            Some(model) => json!({ "seed": "3", "loras": [
                { "name": VERSION.to_string(), "is_version": true, "model": model, "clip": 1.0 }
            ] }),
            None => json!({ "seed": "3" }),
        },
        body: json!({}),
    };
    let (red, yellow) = (
        "a large red circle on a blue background",
        "a large yellow square on a black background",
    );
    let asks = [
        ask(red, None),
        ask(red, Some(1.0)),
        ask(yellow, Some(1.0)),
        ask(red, Some(0.0)),
        ask(red, None),
        ask(yellow, None),
    ];
    let (_, done) = answered(&mut stage, asks.iter().map(body), PATIENCE)
        .await
        .expect("answers");
    let books = stage.close().await.expect("dreamer drains and ends");
    assert_eq!(
        (&books.summary["accepted"], &books.summary["faulted"]),
        (&json!(6), &json!(0))
    );
    assert!(done.iter().all(|done| done.metadata.is_empty()), "nothing was left out");
    let apart =
        |a: usize, b: usize| difference(&done[a].pictures[0], &done[b].pictures[0], |_, _| true).expect("one size");
    assert!(apart(0, 5) > 20.0, "two prompts draw two pictures: {}", apart(0, 5));
    assert!(apart(0, 1) > 5.0, "the LoRA changes the picture: {}", apart(0, 1));
    assert!(apart(1, 2) < 1.0, "with it the prompt does not matter: {}", apart(1, 2));
    assert_eq!(apart(0, 3), 0.0, "at strength 0 it does nothing");
    assert_eq!(apart(0, 4), 0.0, "nothing of it is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inversion_is_fetched_and_means_what_its_vectors_mean() {
    let models = tempfile::tempdir().expect("a folder for models");
    let address = civitai::serve().await.expect("a copy of the API");
    let extra = [
        ("DREAMER_UNCHECKED_ON_LOOPBACK", "true"),
        ("DREAMER_EMBEDDINGS_URL", address.as_str()),
    ];
    let mut stage = stage_with(models.path(), &extra).await.expect("dreamer starts");
    let ask = |prompt: &'static str, name: &str| Ask {
        title: prompt,
        prompt,
        params: match name {
            "" => json!({ "seed": "3" }),
            name => json!({ "seed": "3", "tis": [{ "name": name }] }),
        },
        body: json!({}),
    };
    let (word, inverted) = (
        "a large red circle on a blue background",
        "a large embedding:77 circle on a blue background",
    );
    let asks = [
        ask(word, ""),
        ask(inverted, INVERSION),
        ask(inverted, ""),
        ask(inverted, "78"),
    ];
    let (_, done) = answered(&mut stage, asks.iter().map(body), PATIENCE)
        .await
        .expect("answers");
    let books = stage.close().await.expect("dreamer drains and ends");
    assert_eq!(books.summary["faulted"], json!(0));
    let apart =
        |a: usize, b: usize| difference(&done[a].pictures[0], &done[b].pictures[0], |_, _| true).expect("one size");
    assert_eq!(apart(0, 1), 0.0, "its vector is the word's");
    assert!(
        apart(1, 2) > 2.0,
        "nothing of it is left for the next job: {}",
        apart(1, 2)
    );
    assert_eq!(apart(2, 3), 0.0, "one that is not there means nothing");
    assert!(done[..3].iter().all(|done| done.metadata.is_empty()));
    let noted = ("ti".to_owned(), "download_failed".to_owned(), "78".to_owned());
    assert_eq!(done[3].metadata, [noted]);
}
