//! What is offered before another program: as it says of itself, and not while its owner uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use text_worker::{Facts, Health, ScribeBackend, Served};
use textgen::bridge::{BridgeEngine, BridgeSettings, Dialect};
use worker_runtime::backend::{Backend, EngineReport};

/// KoboldCpp's answers to what a bridge asks of it; `idle` seconds since its last request, `context` tokens.
fn kobold(idle: f64, context: Arc<AtomicU32>) -> String {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
            let path = lines.next().and_then(Result::ok).unwrap_or_default();
            lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .for_each(drop);
            let body = match path.split(' ').nth(1).unwrap_or_default() {
                "/api/v1/model" => serde_json::json!({"result": "koboldcpp/Mistral-7B"}),
                "/api/extra/perf" => serde_json::json!({"idletime": idle, "queue": 0, "idle": 1, "total_gens": 3}),
                _ => serde_json::json!({"value": context.load(Ordering::Relaxed)}),
            };
            let body = body.to_string();
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            )
            .ok();
        }
    });
    url
}

/// A scribe before such a backend, once that was asked.
fn served(url: String, yields: u64) -> ScribeBackend {
    let settings = BridgeSettings {
        url,
        ..BridgeSettings::default()
    };
    let engine = BridgeEngine::new(Dialect::Kobold, settings).expect("an address");
    let health = Health::of(engine, Duration::from_secs(yields));
    let start = Instant::now();
    while health.now(&[]).is_err_and(|why| why.contains("not asked yet")) {
        assert!(start.elapsed().as_secs() < 30, "it was never asked");
        std::thread::yield_now();
    }
    crate::backend_of(Served::Bridge(health))
}

/// An engine whose speed was measured `measured` seconds ago, in three seconds.
fn report(measured: u64) -> EngineReport {
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let facts = Facts {
        model: "Mistral-7B".into(),
        context_tokens: 2_048,
        max_length: None,
        slots: 1,
        chat: false,
        effort: false,
        write_per_second: 20.0,
        read_per_second: 500.0,
        measured_unix_ms: (unix.expect("after 1970").as_secs() - measured) * 1_000,
        measured_for_ms: 3_000,
    };
    EngineReport {
        capacity: 1,
        facts: serde_json::to_value(facts).expect("plain data"),
    }
}

/// What is offered with an engine measured `measured` seconds ago.
fn offered_after(idle: f64, yields: u64, measured: u64) -> Result<Vec<String>, String> {
    let backend = served(kobold(idle, Arc::new(AtomicU32::new(2_048))), yields);
    let offer = backend.offer(&[report(measured)], 1);
    offer.map(|offer| offer.models).map_err(|why| why.0)
}

/// The same with one that was measured long ago.
fn offered(idle: f64, yields: u64) -> Result<Vec<String>, String> {
    offered_after(idle, yields, 3_600)
}

#[test]
fn nothing_is_offered_while_the_backends_owner_uses_it() {
    let why = offered(5.0, 20).expect_err("somebody used it five seconds ago");
    assert!(
        why.contains("used locally 5 s ago") && why.contains("idle_seconds"),
        "{why}"
    );
    let served = Ok(vec!["koboldcpp/Mistral-7B".to_owned()]);
    assert_eq!(offered(25.0, 20), served, "it was left long ago");
    assert_eq!(offered(5.0, 0), served, "the owner does not want to be yielded to");
}

#[test]
fn an_engine_that_measured_the_backend_is_not_taken_for_its_owner() {
    let served = Ok(vec!["koboldcpp/Mistral-7B".to_owned()]);
    assert_eq!(offered_after(1.0, 20, 1), served, "it was the measuring");
    offered_after(1.0, 20, 15).expect_err("it was measured long before");
}

#[test]
fn what_the_backend_holds_now_is_offered_and_not_what_it_held_when_it_was_measured() {
    let context = Arc::new(AtomicU32::new(2_048));
    let backend = served(kobold(3_600.0, Arc::clone(&context)), 1);
    let offered = || {
        let offer = backend.offer(&[report(3_600)], 1).expect("it is there");
        (offer.max_context_length, offer.max_length)
    };
    assert_eq!(offered(), (Some(2_048), Some(818)));
    // Its owner loads another model.
    context.store(512, Ordering::Relaxed);
    let start = Instant::now();
    while offered() != (Some(512), Some(256)) {
        assert!(
            start.elapsed().as_secs() < 30,
            "it was not asked again: {:?}",
            offered()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
