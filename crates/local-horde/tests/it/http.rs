//! The server on a socket.

use std::net::SocketAddr;

use local_horde::http::{Running, serve};
use local_horde::{CLIENT_KEY, Horde, Settings, WORKER_KEY};
use serde_json::{Value, json};

use crate::wire::{api, send};

async fn served() -> (Horde, Running) {
    let horde = Horde::new(Settings::default());
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let running = serve(horde.clone(), address).await.expect("a server");
    (horde, running)
}

/// Path and query of an address that lies on the server itself.
fn target(address: &Value, running: &Running) -> String {
    let address = address.as_str().expect("an address");
    let rest = address.strip_prefix(&format!("http://{}", running.address));
    rest.expect("an address on the same server").to_owned()
}

#[tokio::test]
async fn a_picture_travels_through_the_object_store_and_the_book_tells() {
    let (_horde, running) = served().await;
    let at = running.address;
    let ask = json!({ "prompt": "a hill", "models": ["Deliberate"] });
    let filed = api(at, "POST", "generate/async", CLIENT_KEY, &ask).await;
    assert_eq!(filed.status, 202);
    let agent = "AI Horde Worker reGen:13.0.0:u";
    let pop = json!({ "name": "painter", "models": ["Deliberate"], "bridge_agent": agent });
    let job = api(at, "POST", "generate/pop", WORKER_KEY, &pop).await.json();
    let upload = target(&job["r2_uploads"][0], &running);

    let chunked = send(
        at,
        "PUT",
        &upload,
        "transfer-encoding: chunked\r\n",
        b"3\r\nabc\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!(chunked.status, 411);
    let forged = upload.replace("Signature=", "Signature=0");
    let put = |path: String| async move { send(at, "PUT", &path, "content-length: 4\r\n", b"RIFF").await };
    assert_eq!(put(forged).await.status, 403);
    assert_eq!(put(upload).await.status, 200);

    let submit = json!({ "id": job["id"], "generation": "R2", "state": "ok", "seed": 1 });
    let paid = api(at, "POST", "generate/submit", WORKER_KEY, &submit).await.json();
    assert!(paid["reward"].as_f64().is_some_and(|reward| reward > 1.0), "{paid}");
    let id = filed.json()["id"].as_str().expect("an id").to_owned();
    let status = api(at, "GET", &format!("generate/status/{id}"), CLIENT_KEY, &json!({}))
        .await
        .json();
    let picture = target(&status["generations"][0]["img"], &running);
    assert_eq!(send(at, "GET", &picture, "", b"").await.body, b"RIFF");

    let book = send(at, "GET", "/local/ledger", "", b"").await.json();
    assert_eq!(
        (&book["summary"]["accepted"], &book["summary"]["open"]),
        (&json!(1), &json!(0))
    );
    let generation = &book["generations"][job["id"].as_str().expect("an id")];
    assert_eq!(
        (&generation["fate"], &generation["worker"]),
        (&json!("accepted"), &json!("painter"))
    );
}

#[tokio::test]
async fn what_is_not_a_call_of_the_api_is_refused_in_the_shapes_of_the_real_server() {
    let (_horde, running) = served().await;
    let at = running.address;
    let outside = send(at, "GET", "/favicon.ico", "", b"").await;
    assert_eq!(
        (outside.status, outside.header("content-type")),
        (404, Some("text/html"))
    );
    let no_json = "content-type: text/plain\r\ncontent-length: 2\r\n";
    let plain = send(at, "POST", "/api/v2/generate/text/pop", no_json, b"{}").await;
    assert!(plain.status == 400 && plain.json().get("rc").is_none() && plain.json()["message"].is_string());
    let broken = "content-type: application/json\r\ncontent-length: 2\r\n";
    let broken = send(at, "POST", "/api/v2/generate/text/pop", broken, b"{\"").await;
    assert!(broken.status == 400 && broken.json()["message"].is_string());
    let unnamed = api(at, "POST", "generate/text/pop", WORKER_KEY, &json!({})).await;
    assert!(unnamed.status == 400 && unnamed.json()["errors"]["name"].is_string());
    let gone = json!({ "id": "00000000-0000-0000-0000-000000000000", "generation": "x" });
    let gone = api(at, "POST", "generate/text/submit", WORKER_KEY, &gone).await;
    assert_eq!((gone.status, &gone.json()["rc"]), (404, &json!("InvalidJobID")));
}

#[tokio::test]
async fn calls_over_the_limit_are_told_when_to_come_back() {
    let (_horde, running) = served().await;
    let at = running.address;
    let call = || send(at, "GET", "/api/v2/status/news", "", b"");
    let first = call().await;
    assert_eq!(
        (first.header("x-ratelimit-limit"), first.header("x-ratelimit-remaining")),
        (Some("90"), Some("89"))
    );
    for _ in 1..90 {
        assert_eq!(call().await.status, 200);
    }
    let over = call().await;
    assert_eq!(
        (over.status, over.json()),
        (429, json!({ "message": "90 per 1 minute" }))
    );
    let wait: u64 = over
        .header("retry-after")
        .and_then(|text| text.parse().ok())
        .expect("a wait");
    assert!((1..60).contains(&wait), "{wait}");
    let heartbeat = send(at, "GET", "/api/v2/status/heartbeat", "", b"").await;
    assert_eq!(heartbeat.status, 200);
}
