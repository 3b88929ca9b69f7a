//! The real scribe with a real model against a Horde on loopback.

use std::collections::BTreeSet;
use std::time::Duration;

use e2e::demo::scribe::MODEL;
use e2e::demo::stage::Stage;
use e2e::listening::{Listener, hidden, listeners, process_tree};
use serde_json::json;

/// Loading and answering on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scribe_answers_through_the_whole_protocol_and_no_process_of_it_listens() {
    let mut stage = Stage::set("scribe", &[]).await.expect("scribe starts");
    let pid = stage.worker_pid().expect("scribe runs");
    let ask = |prompt: &str, extra: serde_json::Value| {
        let mut params = json!({ "max_length": 24, "max_context_length": 512, "temperature": 0.0, "top_k": 1 });
        params
            .as_object_mut()
            .expect("an object")
            .extend(extra.as_object().cloned().unwrap_or_default());
        json!({ "prompt": prompt, "params": params, "models": [MODEL] })
    };
    let paris = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let bodies = [
        ask(paris, json!({})),
        ask("One, two, three, four,", json!({ "stop_sequence": [","] })),
        ask(paris, json!({ "singleline": true })),
    ];
    let mut ids = Vec::new();
    for body in &bodies {
        ids.push(stage.requester.file("generate/text/async", body).await.expect("filed"));
    }
    let watch = tokio::task::spawn_blocking(move || {
        let (mut seen, mut most_processes): (BTreeSet<Listener>, usize) = (BTreeSet::new(), 0);
        let mut any_hidden = false;
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            seen.extend(listeners(pid));
            any_hidden |= !hidden(pid).is_empty();
            most_processes = most_processes.max(process_tree(pid).len());
            std::thread::sleep(Duration::from_millis(100));
        }
        (seen, most_processes, any_hidden)
    });
    let results = stage
        .finished("generate/text/status", &ids, PATIENCE)
        .await
        .expect("answers");
    let texts: Vec<&str> = results
        .iter()
        .map(|result| result["generations"][0]["text"].as_str().unwrap_or("(none)"))
        .collect();
    let books = stage.close().await.expect("scribe drains and ends");
    let (seen, most_processes, any_hidden) = watch.await.expect("the watch ran");
    assert!(texts[0].contains("Paris") && texts[2].contains("Paris"), "{texts:?}");
    assert!(
        texts[1].trim_end().ends_with(',') || !texts[1].contains(','),
        "{texts:?}"
    );
    assert!(
        !texts[0].contains("capital of France?"),
        "the prompt came back: {texts:?}"
    );
    assert_eq!(
        (
            books.summary["accepted"].as_u64(),
            books.summary["open"].as_u64(),
            books.summary["duplicates"].as_u64()
        ),
        (Some(3), Some(0), Some(0))
    );
    assert!(seen.is_empty(), "{seen:?}");
    if any_hidden {
        // Without the right to look, the kernel's own word has to do.
        assert_eq!(books.sandbox, "listening on TCP is denied by the kernel (Landlock)");
    }
    assert!(most_processes >= 2, "the engine ran in a child of its own");
}

/// The worker's last status.
fn status(stage: &Stage) -> serde_json::Value {
    let text = std::fs::read_to_string(stage.state_dir().join("status.json")).unwrap_or_default();
    serde_json::from_str::<serde_json::Value>(&text).map_or(json!({}), |file| file["status"].clone())
}

/// Waits until the worker's status is as wanted.
async fn until(stage: &Stage, what: &str, mut is_so: impl FnMut(&serde_json::Value) -> bool) {
    let start = std::time::Instant::now();
    while !is_so(&status(stage)) {
        assert!(
            start.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}: {}",
            status(stage)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_is_killed_in_the_middle_costs_its_job_alone_and_prompts_like_bombs_cost_nothing() {
    let mut stage = Stage::set("scribe", &[]).await.expect("scribe starts");
    let worker = stage.worker_pid().expect("scribe runs");
    let route = "generate/text/async";
    let params = json!({ "max_length": 24, "max_context_length": 512, "temperature": 0.0, "top_k": 1 });
    let paris = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    // Two megabytes, of which the end fits; and as many stop texts as the wire takes, each as long as it may be.
    let huge = format!("{}{paris}", "\u{1f98a} all the same words \n".repeat(70_000));
    let mut stops = params.clone();
    stops["stop_sequence"] = (0..128).map(|n| format!("{n}{}", "x".repeat(1_990))).collect();
    let bombs = [
        json!({ "prompt": huge, "params": params, "models": [MODEL] }),
        json!({ "prompt": paris, "params": stops, "models": [MODEL] }),
    ];
    let mut ids = Vec::new();
    for body in &bombs {
        ids.push(stage.requester.file(route, body).await.expect("filed"));
    }
    let results = stage
        .finished("generate/text/status", &ids, PATIENCE)
        .await
        .expect("answers");
    for result in &results {
        let text = result["generations"][0]["text"].as_str().unwrap_or_default();
        assert!(text.contains("Paris"), "{result}");
    }

    // The status on disk may be a second old: of the jobs before, nothing may be left in it.
    until(&stage, "all that was asked is done", |status| {
        status["totals"]["submitted"] == 2 && status["jobs"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
    let engines = || -> BTreeSet<u32> { process_tree(worker).into_iter().filter(|pid| *pid != worker).collect() };
    let before = engines();
    assert_eq!(before.len(), 1, "one engine");
    let mut long = params.clone();
    long["max_length"] = 200.into();
    long["use_default_badwordsids"] = true.into();
    let body = json!({ "prompt": "Once upon a time", "params": long, "models": [MODEL] });
    stage.requester.file(route, &body).await.expect("filed");
    until(&stage, "it writes", |status| {
        status["jobs"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|job| job["done"].as_u64() > Some(3))
    })
    .await;
    let engine = i32::try_from(*before.first().expect("one engine")).expect("a process id");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(engine), nix::sys::signal::Signal::SIGKILL).expect("killed");
    until(&stage, "the job is handed back", |status| {
        status["totals"]["faulted"] == 1
    })
    .await;
    let again = json!({ "prompt": paris, "params": params, "models": [MODEL] });
    let id = stage.requester.file(route, &again).await.expect("filed");
    let results = stage
        .finished("generate/text/status", &[id], PATIENCE)
        .await
        .expect("answers");
    let text = results[0]["generations"][0]["text"].as_str().unwrap_or_default();
    assert!(text.contains("Paris"), "after the restart: {results:?}");
    let after = engines();
    assert!(after.len() == 1 && after != before, "a new engine: {after:?}");
    let books = stage.close().await.expect("scribe drains and ends");
    let counts = ["faulted", "open"].map(|name| books.summary[name].as_u64());
    assert_eq!(counts, [Some(1), Some(0)], "{}", books.summary);
    // What was handed back is asked for again and may be done by then.
    assert!(books.summary["accepted"].as_u64() >= Some(3), "{}", books.summary);
}
