//! The real scribe before a real KoboldCpp, against a Horde on loopback: `just check-kobold PATH`.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::demo::scribe::MODEL;
use e2e::programs::Program;
use e2e::requester::Requester;
use local_horde::CLIENT_KEY;
use serde_json::{Value, json};

use crate::bridges::{ROUTE, ask, model, scribe_before, serves_capitals, summary, until};
use crate::kobold_server::KoboldServer;

const PATIENCE: Duration = Duration::from_secs(90);
/// How long scribe leaves the backend alone after its owner used it.
const YIELDS: u64 = 6;

/// What somebody on the same machine asks for.
const LOCAL: &str = r#"{"prompt": "Once upon a time", "max_length": 8, "max_context_length": 512}"#;

/// Why the worker has no work, by its status.
fn idle(state: &Path) -> String {
    let status = std::fs::read(state.join("status.json")).unwrap_or_default();
    let status: Value = serde_json::from_slice(&status).unwrap_or_default();
    status["status"]["idle"].as_str().unwrap_or_default().to_owned()
}

/// A request that two jobs' worth of time go by for.
fn long() -> Value {
    json!({
        "prompt": "Once upon a time", "models": [MODEL],
        "params": { "max_length": 120, "max_context_length": 512, "use_default_badwordsids": true },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a KoboldCpp: `just check-kobold PATH`"]
async fn scribe_before_a_real_kobold_serves_yields_to_its_owner_and_outlives_it() {
    let mut server = tokio::task::spawn_blocking(|| KoboldServer::start(&model(), &[]))
        .await
        .expect("the backend starts");
    let (_horde, base) = Program::local_horde(&["--no-rate-limits"]).await.expect("a Horde");
    let requester = Requester::new(&base, CLIENT_KEY).expect("a client");
    let state = tempfile::tempdir().expect("a folder");
    let settings = format!(
        "engine = \"kobold\"\n[scribe.bridge]\nurl = \"{}\"\nparallel = 2\nidle_seconds = {YIELDS}\n",
        server.url()
    );
    let _scribe = scribe_before(&settings, &base, state.path());

    serves_capitals(&requester, PATIENCE).await;
    assert_eq!(summary(&requester, &base).await["accepted"], 3);

    // Its owner uses it: nothing is asked for until it was left alone for long enough.
    let used = async || idle(state.path()).contains("used locally");
    // What begins within two seconds of a job of ours is not told apart from it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(server.post("/api/v1/generate", LOCAL).is_some());
    let since = Instant::now();
    until(Duration::from_secs(9), "the status says who uses it", used).await;
    requester.file(ROUTE, &ask("Spain", 24, false)).await.expect("filed");
    let popped = async |count: u64| summary(&requester, &base).await["popped"] == count;
    until(PATIENCE, "work is asked for again", async || popped(4).await).await;
    let left_alone = since.elapsed();
    assert!(left_alone >= Duration::from_secs(YIELDS - 1), "{left_alone:?}");
    until(PATIENCE, "it is served", async || {
        summary(&requester, &base).await["accepted"] == 4
    })
    .await;
    println!("left alone for {left_alone:?}");

    // They come while a job of ours runs: the job is finished, and no other is asked for.
    requester.file(ROUTE, &long()).await.expect("filed");
    until(PATIENCE, "the long job runs", async || popped(5).await).await;
    let address = server.url();
    let local = std::thread::spawn(move || {
        // More of them than the places we use there.
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| crate::kobold_server::post(&address, "/api/v1/generate", LOCAL));
            }
        });
    });
    until(PATIENCE, "the status says who uses it", used).await;
    local.join().expect("they are served");
    until(PATIENCE, "the long job is done", async || {
        summary(&requester, &base).await["accepted"] == 5
    })
    .await;

    // It dies while it writes for a job: that goes back at once, and nothing is asked for until it is there again.
    until(PATIENCE, "it is left alone", async || !used().await).await;
    requester.file(ROUTE, &long()).await.expect("filed");
    until(PATIENCE, "it writes", async || {
        let perf = server.get("/api/extra/perf").unwrap_or_default();
        popped(6).await && perf.contains("\"idle\": 0")
    })
    .await;
    server.kill();
    let faulted = async || summary(&requester, &base).await["faulted"] == 1;
    let took = until(Duration::from_secs(3), "the job is handed back", faulted).await;
    println!("handed back {took:?} after the backend died");
    let down = async || idle(state.path()).contains("cannot be reached");
    until(Duration::from_secs(40), "the status says that it is down", down).await;
    assert_eq!(summary(&requester, &base).await["popped"], 6);
    tokio::task::block_in_place(|| server.restart());
    until(PATIENCE, "the job is served after all", async || {
        summary(&requester, &base).await["accepted"] == 6
    })
    .await;
    let after = summary(&requester, &base).await;
    let counts = ["popped", "faulted", "expired", "open"].map(|name| after[name].as_u64());
    assert_eq!(counts, [Some(7), Some(1), Some(0), Some(0)]);
}
