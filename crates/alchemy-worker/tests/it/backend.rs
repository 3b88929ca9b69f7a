use std::sync::Arc;

use alchemy_worker::backend::{AlchemyBackend, BackendSettings};
use alchemy_worker::work::Output;
use async_trait::async_trait;
use bytes::Bytes;
use horde_client::Client;
use horde_client::alchemy::{Alchemy, Form, Payload, PopResponse};
use horde_client::client::ClientConfig;
use horde_client::error::{ApiError, ErrorClass};
use horde_client::kind::{JobKind, PoppedJob};
use horde_client::transport::{Request, RequestClass, Response, Transport, TransportError};
use serde_json::json;
use worker_runtime::backend::{Backend, EngineReport};

/// Answers every request with one body and remembers nothing; anything but a guarded fetch is refused.
struct Source(Bytes);

#[async_trait]
impl Transport for Source {
    async fn send(&self, request: Request) -> Result<Response, TransportError> {
        assert_eq!(request.class, RequestClass::Stranger);
        assert!(request.max_body_bytes <= 8 << 20);
        Ok(Response {
            status: http::StatusCode::OK,
            headers: http::HeaderMap::new(),
            body: self.0.clone(),
        })
    }
}

fn backend(body: &[u8]) -> AlchemyBackend {
    let settings = BackendSettings {
        name: "a test alchemist".into(),
        bridge_agent: "alchemist:0.1.0:test".into(),
        priority_usernames: Vec::new(),
        max_tiles: 1,
    };
    let config = ClientConfig {
        base_url: url::Url::parse("https://horde.invalid/api").unwrap(),
        api_key: horde_client::ApiKey::new("0000000000"),
        client_agent: "alchemist:0.1.0:test".into(),
    };
    AlchemyBackend::new(
        settings,
        Client::new(Arc::new(Source(Bytes::copy_from_slice(body))), config),
    )
}

fn popped(form: serde_json::Value) -> PoppedJob<Payload> {
    let response: PopResponse = serde_json::from_value(json!({ "forms": [form], "skipped": {} })).unwrap();
    Alchemy::split(response).jobs.pop().unwrap()
}

fn png(side: u32) -> Vec<u8> {
    imaging::encode_png(&imaging::Picture::filled(side, side, [1, 2, 3])).unwrap()
}

#[test]
fn a_pop_names_the_forms_of_all_engines_and_none_else() {
    let report = |forms: &[(&str, f64)]| EngineReport {
        capacity: 2,
        facts: json!({ "forms": forms.iter().map(|(form, seconds)| {
            ((*form).to_owned(), json!({ "base_seconds": 0.0, "tile_seconds": seconds }))
        }).collect::<serde_json::Map<_, _>>() }),
    };
    let backend = backend(b"");
    let request = backend
        .offer(
            &[report(&[("caption", 1.0), ("nsfw", 3.0)]), report(&[("caption", 2.0)])],
            3,
        )
        .unwrap();
    assert_eq!(
        request.forms.iter().map(|f| f.as_str()).collect::<Vec<_>>(),
        ["caption", "nsfw"]
    );
    assert_eq!(
        (request.amount, request.threads, request.max_tiles),
        (Some(3), Some(4), Some(1))
    );
    assert!(backend.offer(&[report(&[])], 1).is_err());
}

#[test]
fn a_horde_that_does_not_say_what_it_refuses_is_asked_without_annotation_once() {
    let report = EngineReport {
        capacity: 1,
        facts: json!({ "forms": {
            "annotation": { "base_seconds": 0.1, "tile_seconds": 0.0 }, "nsfw": { "base_seconds": 0.1, "tile_seconds": 0.0 },
        } }),
    };
    let backend = backend(b"");
    let error = ApiError::Refused {
        status: http::StatusCode::BAD_REQUEST,
        rc: None,
        message: "Bad Request".into(),
        fields: Vec::new(),
        class: ErrorClass::BadRequest,
    };
    let request = backend.offer(std::slice::from_ref(&report), 1).unwrap();
    assert_eq!(request.annotation_types, ["canny", "scribble"]);
    assert!(backend.pop_refused(&request, &error));
    let request = backend.offer(&[report], 1).unwrap();
    assert!(
        request.annotation_types.is_empty() && request.forms == [Form::Nsfw],
        "{request:?}"
    );
    assert!(!backend.pop_refused(&request, &error));
}

#[test]
fn forms_without_a_web_address_or_unknown_are_faults_of_the_job() {
    let backend = backend(b"");
    for form in [
        json!({ "id": "1", "form": "caption" }),
        json!({ "id": "1", "form": "caption", "source_image": "file:///etc/passwd" }),
        json!({ "id": "1", "form": "caption", "source_image": "no address" }),
        json!({ "id": "1", "form": "divination", "source_image": "https://example.org/a.png" }),
        json!({ "id": "1", "source_image": "https://example.org/a.png" }),
    ] {
        let fault = backend.validate(&mut popped(form.clone())).err().unwrap();
        assert!(!fault.ours, "{form}: {fault}");
    }
}

#[tokio::test]
async fn a_source_is_refused_by_its_header_before_it_reaches_an_engine() {
    let form = json!({ "id": "1", "form": "caption", "source_image": "https://example.org/a.png" });
    for (body, fits) in [(png(512), true), (png(520), false), (b"<html>".to_vec(), false)] {
        let backend = backend(&body);
        let valid = backend.validate(&mut popped(form.clone())).unwrap();
        assert_eq!(backend.prepare(valid).await.is_ok(), fits, "{} bytes", body.len());
    }
}

#[tokio::test]
async fn results_are_in_the_shapes_of_the_wire() {
    let backend = backend(b"");
    let picture = Output::Picture {
        form: "GFPGAN".into(),
        webp: vec![1, 2].into(),
        tiles: 1.0,
    };
    let finished = backend.check(picture).await.unwrap();
    assert_eq!(finished.upload.as_deref(), Some(&[1, 2][..]));
    assert_eq!(finished.submission.result, json!({ "GFPGAN": "R2" }));
    let value = Output::Value {
        result: json!({ "nsfw": false }).to_string(),
        tiles: 1.0,
    };
    let finished = backend.check(value).await.unwrap();
    assert!(finished.upload.is_none());
    assert_eq!(finished.submission.result, json!({ "nsfw": false }));
}
