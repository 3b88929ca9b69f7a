//! The server behind the transport trait, in every weather.

use std::time::Duration;

use horde_client::transport::{Request, RequestClass, Response, Transport, TransportError};
use local_horde::routes::Call;
use local_horde::{CLIENT_KEY, Horde, Settings, WORKER_KEY, Weather, fair};
use serde_json::{Value, json};
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(10);

fn filing() -> Request {
    let mut headers = http::HeaderMap::new();
    headers.insert("apikey", CLIENT_KEY.parse().expect("a header"));
    headers.insert("content-type", "application/json".parse().expect("a header"));
    let url = "http://127.0.0.1:1/api/v2/generate/text/async";
    Request {
        method: http::Method::POST,
        url: url.parse().expect("an address"),
        headers,
        body: json!({ "prompt": "Once", "models": ["m-1B"] }).to_string().into(),
        class: RequestClass::Api,
        deadline: DEADLINE,
        max_body_bytes: 1 << 20,
    }
}

fn horde() -> Horde {
    Horde::new(Settings {
        rate_limits: false,
        ..Settings::default()
    })
}

async fn once(weather: Weather) -> (Result<Response, TransportError>, usize) {
    let horde = horde();
    let answer = horde.transport(weather).send(filing()).await;
    let n_filed = horde.state().requests.len();
    (answer, n_filed)
}

#[tokio::test(start_paused = true)]
async fn fair_weather_answers_after_its_latency() {
    let started = Instant::now();
    let (answer, n_filed) = once(fair(Duration::from_millis(300))).await;
    assert_eq!(answer.map(|answer| answer.status.as_u16()).ok(), Some(202));
    assert_eq!((n_filed, started.elapsed()), (1, Duration::from_millis(300)));
}

#[tokio::test(start_paused = true)]
async fn each_trouble_acts_or_does_not_act_as_its_kind_says() {
    let weather = Weather::default;
    let lost = Weather {
        lost_request: 1.0,
        ..weather()
    };
    assert!(matches!(once(lost).await, (Err(TransportError::Unreachable { .. }), 0)));
    let answerless = Weather {
        lost_answer: 1.0,
        ..weather()
    };
    assert!(matches!(
        once(answerless).await,
        (Err(TransportError::Broken { .. }), 1)
    ));
    let started = Instant::now();
    let hole = Weather {
        black_hole: 1.0,
        ..weather()
    };
    assert!(matches!(once(hole).await, (Err(TransportError::TimedOut { .. }), 0)));
    assert_eq!(started.elapsed(), DEADLINE);
    let (page, n_filed) = once(Weather {
        gateway: 1.0,
        ..weather()
    })
    .await;
    let page = page.expect("a page");
    assert!(page.status.is_server_error() && page.body.starts_with(b"<html>") && n_filed == 0);
    let (limited, n_filed) = once(Weather {
        limited: 1.0,
        ..weather()
    })
    .await;
    assert_eq!((limited.expect("a refusal").status.as_u16(), n_filed), (429, 0));
    let (cut, n_filed) = once(Weather {
        truncated: 1.0,
        ..weather()
    })
    .await;
    let cut = cut.expect("a part of an answer");
    assert!(serde_json::from_slice::<Value>(&cut.body).is_err() && n_filed == 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_brings_the_same_weather_and_the_weather_clears() {
    let storm = |seed| Weather {
        seed,
        latency: (Duration::from_millis(20), Duration::from_millis(900)),
        lost_request: 0.2,
        lost_answer: 0.2,
        gateway: 0.2,
        clears_after: Some(Duration::from_secs(30)),
        ..Weather::default()
    };
    async fn lived(weather: Weather) -> (Vec<bool>, Duration) {
        let started = Instant::now();
        let way = horde().transport(weather);
        let mut good = Vec::new();
        for _ in 0..200 {
            good.push(matches!(way.send(filing()).await, Ok(answer) if answer.status.is_success()));
        }
        (good, started.elapsed())
    }
    let (first, again, other) = (lived(storm(7)).await, lived(storm(7)).await, lived(storm(8)).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
    assert!(first.0[..40].contains(&false));
    assert!(first.0[120..].iter().all(|good| *good));
}

#[tokio::test(start_paused = true)]
async fn a_refused_upload_is_not_stored_and_troubles_nothing_else() {
    let horde = horde();
    let way = horde.transport(Weather {
        refused_upload: 1.0,
        ..Weather::default()
    });
    assert_eq!(
        way.send(filing()).await.map(|answer| answer.status.as_u16()).ok(),
        Some(202)
    );
    let address = horde.state().objects.sign("PUT", "a.webp");
    let upload = Request {
        method: http::Method::PUT,
        url: address.parse().expect("an address"),
        headers: http::HeaderMap::new(),
        body: b"RIFF".as_slice().into(),
        class: RequestClass::ObjectStore,
        ..filing()
    };
    let answer = way.send(upload).await.expect("an answer");
    assert_eq!(answer.status.as_u16(), 503);
    assert!(horde.state().objects.look("a.webp").is_none());
}

#[test]
fn a_scripted_text_is_for_text_pops_alone() {
    let horde = horde();
    let id = horde
        .state()
        .script_text(|id| json!({ "id": id, "payload": { "grammar": "(" } }).to_string());
    let body = json!({ "name": "a worker", "models": ["m"], "bridge_agent": "x:1:y" });
    assert!(
        horde
            .call("POST", "generate/pop", WORKER_KEY, &body)
            .is_ok_and(|job| job["id"].is_null())
    );
    let text = json!({ "name": "another worker", "models": ["m"], "bridge_agent": "x:1:y" });
    let job = horde
        .call("POST", "generate/text/pop", WORKER_KEY, &text)
        .expect("a job");
    assert_eq!(
        (job["id"].as_str(), &job["payload"]["grammar"]),
        (Some(id.as_str()), &json!("("))
    );
}

#[test]
fn a_scripted_answer_goes_out_byte_for_byte_and_its_ids_stand_in_the_book() {
    let horde = horde();
    let mut told = String::new();
    let ids = horde.state().script_image(2, |ids, uploads| {
        told = format!(r#"{{"ids": {ids:?}, "r2_uploads": {uploads:?}, "payload": {{"cfg_scale": 1e309}}}}"#);
        told.clone()
    });
    let pop = || {
        let body = json!({ "name": "a worker", "models": ["m"], "bridge_agent": "x:1:y" }).to_string();
        let call = Call {
            method: "POST",
            path: "/api/v2/generate/pop",
            query: "",
            key: Some(WORKER_KEY),
            length_told: true,
            json: true,
            body: body.as_bytes(),
        };
        String::from_utf8(horde.answer(&call).body).expect("text")
    };
    assert_eq!(horde.state().ledger.summary().popped, 0, "nobody has it yet");
    assert_eq!(pop(), told);
    assert!(pop().contains(r#""id":null"#), "there was one");
    for (id, state) in ids.iter().zip(["faulted", "ok"]) {
        let body = json!({ "id": id, "generation": "R2", "state": state, "seed": 1 });
        assert!(horde.call("POST", "generate/submit", WORKER_KEY, &body).is_ok());
    }
    let summary = horde.state().ledger.summary();
    assert_eq!((summary.popped, summary.faulted, summary.accepted), (2, 1, 1));
}
