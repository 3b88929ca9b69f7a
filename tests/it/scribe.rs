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
