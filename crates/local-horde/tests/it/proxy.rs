//! The proxy spoils exactly what it was told to.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use local_horde::http::{Running, serve};
use local_horde::proxy::{FaultProxy, Spoil};
use local_horde::{CLIENT_KEY, Horde, Settings};

use crate::wire::{raw, send};

const HEARTBEAT: &str = "/api/v2/status/heartbeat";
const ASK: &[u8] = br#"{"prompt":"Once","models":["m-1B"]}"#;

async fn stage(spoil: Spoil) -> (Horde, Running, FaultProxy) {
    let horde = Horde::new(Settings::default());
    let running = serve(horde.clone(), SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .expect("a server");
    let proxy = FaultProxy::start(running.address, spoil).await.expect("a proxy");
    (horde, running, proxy)
}

async fn beat(proxy: &FaultProxy) -> std::io::Result<Vec<u8>> {
    raw(proxy.address, "GET", HEARTBEAT, "", b"").await
}

/// Files a text request through the proxy and returns what came back.
async fn ask(proxy: &FaultProxy) -> std::io::Result<Vec<u8>> {
    let headers = format!(
        "apikey: {CLIENT_KEY}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        ASK.len()
    );
    raw(proxy.address, "POST", "/api/v2/generate/text/async", &headers, ASK).await
}

#[tokio::test]
async fn without_a_plan_calls_pass_untouched_and_the_plan_can_change() {
    let (_horde, _running, proxy) = stage(Spoil::Nothing).await;
    assert_eq!(send(proxy.address, "GET", HEARTBEAT, "", b"").await.status, 200);
    proxy.set(Spoil::Answer(503));
    let spoiled = send(proxy.address, "GET", HEARTBEAT, "", b"").await;
    assert_eq!(
        (spoiled.status, spoiled.header("content-type")),
        (503, Some("text/html"))
    );
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn a_delay_holds_the_answer_back_and_a_drip_stretches_it() {
    let (_horde, _running, proxy) = stage(Spoil::Delay(Duration::from_millis(80))).await;
    let started = Instant::now();
    let whole = beat(&proxy).await.expect("an answer");
    assert!(started.elapsed() >= Duration::from_millis(80));
    proxy.set(Spoil::Drip(Duration::from_millis(1)));
    let started = Instant::now();
    let dripped = beat(&proxy).await.expect("an answer");
    assert_eq!(dripped.len(), whole.len());
    assert!(started.elapsed() >= Duration::from_millis(whole.len() as u64));
}

#[tokio::test]
async fn an_answer_is_reset_at_its_byte_and_the_server_has_acted() {
    let (horde, _running, proxy) = stage(Spoil::ResetAnswerAt(20)).await;
    let error = ask(&proxy).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(horde.state().requests.len(), 1);
}

#[tokio::test]
async fn a_request_reset_on_its_way_is_never_acted_on() {
    let (horde, _running, proxy) = stage(Spoil::ResetRequestAt(40)).await;
    let error = ask(&proxy).await.expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!((horde.state().requests.len(), proxy.connections()), (0, 1));
}

#[tokio::test]
async fn a_black_hole_takes_and_never_answers_a_half_close_acts_and_says_nothing() {
    let (horde, _running, proxy) = stage(Spoil::BlackHole).await;
    let waited = tokio::time::timeout(Duration::from_millis(100), ask(&proxy)).await;
    assert!(waited.is_err(), "it answered {waited:?}");
    assert_eq!(horde.state().requests.len(), 0);
    proxy.set(Spoil::HalfClose);
    let silent = tokio::time::timeout(Duration::from_secs(20), ask(&proxy)).await;
    assert!(matches!(silent, Ok(Ok(answer)) if answer.is_empty()));
    assert_eq!(horde.state().requests.len(), 1);
}
