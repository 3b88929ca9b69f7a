//! The real scribe before a real llama-server that was not written here, against a Horde on loopback.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::demo::scribe::MODEL;
use e2e::demo::stage::start_worker;
use e2e::programs::Program;
use e2e::requester::Requester;
use local_horde::CLIENT_KEY;
use serde_json::{Value, json};
use test_support::models_dir;

use crate::llama_server::LlamaServer;

/// Where text is asked for.
pub const ROUTE: &str = "generate/text/async";
const SLOTS: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(60);

/// The file that backends serve.
pub fn model() -> PathBuf {
    models_dir().join("text/SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// A question with a known answer.
pub fn ask(country: &str, max_length: u32, ban_end: bool) -> Value {
    json!({
        "prompt": format!("<|im_start|>user\nWhat is the capital of {country}?<|im_end|>\n<|im_start|>assistant\n"),
        "params": {
            "max_length": max_length, "max_context_length": 512, "temperature": 0.0, "top_k": 1,
            "use_default_badwordsids": ban_end,
        },
        "models": [MODEL],
    })
}

/// The Horde's counts.
pub async fn summary(requester: &Requester, base: &str) -> Value {
    let address = format!("{}/local/ledger", base.trim_end_matches("/api"));
    let ledger = requester.fetch(&address).await.expect("the ledger");
    serde_json::from_slice::<Value>(&ledger).expect("JSON")["summary"].clone()
}

/// Waits until `done`; the time it took.
pub async fn until(at_most: Duration, what: &str, mut done: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !done().await {
        assert!(start.elapsed() < at_most, "{what}: not within {at_most:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    start.elapsed()
}

/// Starts the real scribe with this `[scribe]` section, its state below `state`.
pub fn scribe_before(section: &str, base: &str, state: &Path) -> Program {
    let config = state.join("config/horde-workers");
    std::fs::create_dir_all(&config).expect("a folder");
    std::fs::write(config.join("scribe.toml"), format!("[scribe]\n{section}")).expect("a configuration");
    start_worker("scribe", base, state, &[]).expect("scribe starts")
}

/// Asks for three capitals at once and expects them of the model.
pub async fn serves_capitals(requester: &Requester, patience: Duration) {
    let asked = [("France", "Paris"), ("Italy", "Rome"), ("Germany", "Berlin")];
    let mut ids = Vec::new();
    for (country, _) in asked {
        ids.push(requester.file(ROUTE, &ask(country, 24, false)).await.expect("filed"));
    }
    let end = Instant::now() + patience;
    for ((country, capital), id) in asked.iter().zip(&ids) {
        let result = requester
            .finished("generate/text/status", id, end)
            .await
            .expect("a status");
        let generation = &result["generations"][0];
        let text = generation["text"].as_str().unwrap_or_default();
        assert!(text.contains(capital), "{country}: {result}");
        assert_eq!(generation["model"], MODEL);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scribe_serves_through_a_real_llama_server_and_stops_popping_when_it_dies() {
    let mut server = tokio::task::spawn_blocking(|| LlamaServer::start(&model(), SLOTS, 512))
        .await
        .expect("the backend starts");
    let (_horde, base) = Program::local_horde(&["--no-rate-limits"]).await.expect("a Horde");
    let requester = Requester::new(&base, CLIENT_KEY).expect("a client");
    let state = tempfile::tempdir().expect("a folder");
    let settings = format!(
        "engine = \"openai\"\n[scribe.bridge]\nurl = \"{}\"\nparallel = {SLOTS}\n",
        server.url()
    );
    let _scribe = scribe_before(&settings, &base, state.path());

    serves_capitals(&requester, PATIENCE).await;
    assert_eq!(summary(&requester, &base).await["accepted"], 3);

    // It dies while it writes for a job; the job goes back to the Horde, which keeps it for others.
    requester.file(ROUTE, &ask("Spain", 200, true)).await.expect("filed");
    until(PATIENCE, "the backend begins", async || server.busy_slots() > 0).await;
    server.kill();
    let faulted = async || summary(&requester, &base).await["faulted"] == 1;
    let took = until(Duration::from_secs(3), "the job is handed back", faulted).await;
    println!("handed back {took:?} after the backend died");

    // A rest after the fault is one reason not to pop; once that is over, the status names the other one.
    told_that_it_is_down(state.path()).await;
    let after = summary(&requester, &base).await;
    let counts = ["popped", "faulted", "open"].map(|name| after[name].as_u64());
    assert_eq!(counts, [Some(4), Some(1), Some(0)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_not_there_yet_is_waited_for_and_nothing_is_popped_meanwhile() {
    // Below the ports that the system gives out: llama-server shares a port with another one that got it meanwhile.
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let port = (first..32_000).find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let port = port.expect("a free port");
    let (_horde, base) = Program::local_horde(&["--no-rate-limits"]).await.expect("a Horde");
    let requester = Requester::new(&base, CLIENT_KEY).expect("a client");
    let state = tempfile::tempdir().expect("a folder");
    let settings =
        format!("engine = \"openai\"\n[scribe.bridge]\nurl = \"http://127.0.0.1:{port}\"\nparallel = {SLOTS}\n");
    let _scribe = scribe_before(&settings, &base, state.path());
    let id = requester.file(ROUTE, &ask("France", 24, false)).await.expect("filed");
    told_that_it_is_down(state.path()).await;
    assert_eq!(summary(&requester, &base).await["popped"], 0);

    let _server = tokio::task::spawn_blocking(move || LlamaServer::start_at(&model(), SLOTS, 512, port))
        .await
        .expect("the backend starts");
    let result = requester
        .finished("generate/text/status", &id, Instant::now() + PATIENCE)
        .await
        .expect("a status");
    let text = result["generations"][0]["text"].as_str().unwrap_or_default();
    assert!(text.contains("Paris"), "{result}");
}

/// Waits until the status below `state` says that the backend is down.
async fn told_that_it_is_down(state: &Path) {
    let told = async || {
        let status = std::fs::read_to_string(state.join("status.json")).unwrap_or_default();
        status.contains("cannot be reached")
    };
    until(
        Duration::from_secs(30),
        "the status says that the backend is down",
        told,
    )
    .await;
}
