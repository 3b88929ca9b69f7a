//! Answers that are cut, wrong or strange: nothing panics and no id that was named is lost.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use horde_client::client::ClientConfig;
use horde_client::error::ErrorClass;
use horde_client::kind::HandBack;
use horde_client::transport::{Request, Response, Transport, TransportError};
use horde_client::{Alchemy, ApiError, ApiKey, Client, Image, JobKind, Text, alchemy, image, text};
use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use serde_json::{Value, json};

const IMAGE: &str = include_str!("../fixtures/image/pop_response_txt2img_full.json");
const TEXT: &str = include_str!("../fixtures/text/pop_response_full.json");
const ALCHEMY: &str = include_str!("../fixtures/alchemy/pop_response_three_forms.json");

/// Answers everything with one body.
struct Canned(StatusCode, Vec<u8>);

#[async_trait]
impl Transport for Canned {
    async fn send(&self, _: Request) -> Result<Response, TransportError> {
        Ok(Response {
            status: self.0,
            headers: HeaderMap::new(),
            body: Bytes::from(self.1.clone()),
        })
    }
}

pub fn client(transport: impl Transport) -> Client {
    let config = ClientConfig {
        base_url: "https://horde.invalid/api".parse().expect("an address"),
        api_key: ApiKey::new("canary-key"),
        client_agent: "test:1:x".to_owned(),
    };
    Client::new(Arc::new(transport), config)
}

fn ids<K: JobKind>(body: &[u8], request: &K::PopRequest) -> Result<Vec<String>, ApiError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let popped = runtime.block_on(client(Canned(StatusCode::OK, body.to_vec())).pop::<K>(request))?;
    Ok(popped
        .jobs
        .into_iter()
        .flat_map(|job| job.generations)
        .map(|one| one.id.0)
        .collect())
}

#[test]
fn f015_every_prefix_of_an_answer_that_names_its_id_gives_that_id() {
    let id = serde_json::from_str::<Value>(TEXT).expect("JSON")["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let named_at = TEXT.find(&id).expect("the id stands in the body") + id.len();
    for end in 0..TEXT.len() {
        let found = ids::<Text>(&TEXT.as_bytes()[..end], &text::PopRequest::default());
        if end >= named_at {
            assert_eq!(found.expect("an id").first(), Some(&id), "cut at {end}");
        } else {
            assert!(found.is_err(), "cut at {end}");
        }
    }
}

#[tokio::test]
async fn f015_a_cut_chat_job_is_handed_back_as_one() {
    let id = "5980ddf0-b82b-4089-ab60-4085679c9e4b";
    let whole =
        json!({ "chat": true, "id": id, "ids": [id], "model": "koboldcpp/Lite", "payload": { "messages": [] } });
    let whole = whole.to_string();
    let popped = |body: &str| {
        let client = client(Canned(StatusCode::OK, body.as_bytes().to_vec()));
        async move { client.pop::<Text>(&text::PopRequest::default()).await.expect("a job") }
    };
    for cut in [whole.len(), whole.len() - 1, whole.find("messages").expect("a key")] {
        let popped = popped(&whole[..cut]).await;
        assert_eq!(popped.jobs[0].fault_model.as_deref(), Some("koboldcpp/Lite"), "{cut}");
    }
    let prompt = whole.replace("true", "false");
    assert_eq!(popped(&prompt[..prompt.len() - 1]).await.jobs[0].fault_model, None);
}

#[test]
fn f015_no_prefix_of_any_kind_panics() {
    for (end, _) in IMAGE.char_indices() {
        ids::<Image>(&IMAGE.as_bytes()[..end], &image::PopRequest::default()).ok();
    }
    for (end, _) in ALCHEMY.char_indices() {
        ids::<Alchemy>(&ALCHEMY.as_bytes()[..end], &alchemy::PopRequest::default()).ok();
    }
}

#[test]
fn f016_one_strange_form_never_hurts_its_siblings() {
    let mut body: Value = serde_json::from_str(ALCHEMY).expect("JSON");
    body["forms"][1] = json!({"id": "11111111-1111-1111-1111-111111111111", "form": {"new": "shape"}});
    body["forms"].as_array_mut().expect("forms").push(json!(17));
    let found = ids::<Alchemy>(body.to_string().as_bytes(), &alchemy::PopRequest::default()).expect("jobs");
    assert_eq!(found.len(), 3);
}

#[test]
fn f005_a_portal_page_is_a_bad_body_and_may_have_acted() {
    let error = ids::<Text>(b"<html>Sign in</html>", &text::PopRequest::default()).expect_err("no job");
    assert!(matches!(error, ApiError::BadBody { .. }) && error.may_have_acted() && error.is_transient());
    assert!(error.to_string().len() <= 300 && !error.to_string().contains("Sign in"));
}

#[tokio::test]
async fn f053_a_reward_that_cannot_be_read_is_zero_and_the_job_is_still_accepted() {
    for reward in [json!(null), json!("NaN"), json!(-3.0), json!({})] {
        let answer = json!({ "reward": reward }).to_string().into_bytes();
        let submitted = client(Canned(StatusCode::OK, answer))
            .fault::<Text>(&horde_client::ids::GenerationId("x".into()), HandBack::default())
            .await
            .expect("accepted");
        assert!(submitted.reward == 0.0 && !submitted.reward_known);
    }
}

#[tokio::test]
async fn f013_html_of_a_gateway_is_retried() {
    for status in [500, 502, 503, 504, 520, 530, 408] {
        let transport = Canned(
            StatusCode::from_u16(status).expect("a status"),
            b"<html>bad gateway</html>".to_vec(),
        );
        let error = client(transport).find_user().await.expect_err("an error");
        assert!(matches!(error.class(), ErrorClass::Retry { .. }), "{status}");
    }
}

const ID_1: &str = "11111111-1111-1111-1111-111111111111";
const ID_2: &str = "22222222-2222-2222-2222-222222222222";

async fn pop_image(body: Value) -> horde_client::kind::Popped<image::Payload> {
    client(Canned(StatusCode::OK, body.to_string().into_bytes()))
        .pop::<Image>(&image::PopRequest::default())
        .await
        .expect("an answer")
}

#[tokio::test]
async fn f045_an_id_named_twice_is_one_generation() {
    let popped = pop_image(json!({ "ids": [ID_1, ID_1, ID_2], "payload": {} })).await;
    let found: Vec<_> = popped.jobs[0].generations.iter().map(|one| one.id.0.as_str()).collect();
    assert_eq!(found, [ID_1, ID_2]);
}

#[tokio::test]
async fn f046_ids_without_an_upload_target_stay_generations_of_their_own() {
    let popped = pop_image(json!({ "ids": [ID_1, ID_2], "r2_uploads": ["https://store.invalid/1"] })).await;
    let targets: Vec<_> = popped.jobs[0]
        .generations
        .iter()
        .map(|one| one.upload.is_some())
        .collect();
    assert_eq!(targets, [true, false]);
}

#[tokio::test]
async fn f047_a_payload_without_an_id_is_no_job_and_an_id_without_a_payload_is_one() {
    let none = pop_image(json!({ "id": null, "ids": [], "payload": { "width": 512, "seed": "1" } })).await;
    assert!(none.jobs.is_empty());
    let popped = pop_image(json!({ "id": ID_1, "payload": null, "model": null })).await;
    let job = &popped.jobs[0];
    assert!(job.payload.is_err() && job.model.is_none() && job.generations[0].id.0 == ID_1);
}

#[tokio::test]
async fn f050_keys_that_come_and_go_do_not_matter() {
    let popped = pop_image(json!({
        "id": ID_1, "payload": { "prompt": "a", "seed": 5, "news": {} }, "traceparent": "00-1", "messages": "soon",
        "skipped": ["a"]
    }))
    .await;
    let job = &popped.jobs[0];
    let payload = job.payload.as_ref().expect("a payload");
    assert!(job.ttl.is_none() && popped.messages.is_empty() && popped.skipped.is_empty());
    assert_eq!(
        (payload.params.prompt.as_deref(), payload.params.seed),
        (Some("a"), Some(5))
    );
}

#[test]
fn f015_the_id_of_a_message_in_a_cut_answer_is_no_job() {
    let cut = format!(r#"{{"id": null, "ids": [], "messages": [{{"id": "{ID_1}", "message": "hello"#);
    assert!(ids::<Image>(cut.as_bytes(), &image::PopRequest::default()).is_err());
    let cut = format!(r#"{{"messages": [{{"id": "{ID_1}", "message": "hello"}}], "ids": ["{ID_2}"], "pay"#);
    let found = ids::<Image>(cut.as_bytes(), &image::PopRequest::default()).expect("a job");
    assert_eq!(found, [ID_2]);
}

#[tokio::test]
async fn f050_a_lease_beyond_a_day_is_a_day() {
    for (told, believed) in [
        (json!(150), Some(150)),
        (json!(150.0), Some(150)),
        (json!(i64::MAX), Some(86_400)),
        (json!(-5), None),
        (json!("soon"), None),
    ] {
        let popped = pop_image(json!({ "id": ID_1, "payload": {}, "ttl": told })).await;
        assert_eq!(popped.jobs[0].ttl.map(|ttl| ttl.as_secs()), believed, "{told}");
    }
}

/// Replaces the value at one of the first two levels.
fn mutated(body: &str, key: usize, inner: Option<usize>, value: Value) -> Value {
    let mut body: Value = serde_json::from_str(body).expect("JSON");
    let top = body.as_object_mut().expect("an object");
    let n_keys = top.len();
    let (_, slot) = top.iter_mut().nth(key % n_keys).expect("a key");
    match (slot.as_object_mut().filter(|object| !object.is_empty()), inner) {
        (Some(object), Some(inner)) => {
            let n_inner = object.len();
            *object.iter_mut().nth(inner % n_inner).expect("a key").1 = value;
        }
        _ => *slot = value,
    }
    body
}

fn any_json() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!(null)),
        Just(json!(true)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|n| json!(n)),
        ".{0,40}".prop_map(|s| json!(s)),
        Just(json!([])),
        Just(json!({})),
        Just(json!([null, 1, "x", {"id": 3}])),
        Just(json!({"a": [1]})),
        Just(json!(1e308)),
        Just(json!(-1)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn f017_a_value_of_the_wrong_type_never_panics_and_never_loses_the_ids(key in 0..40_usize, inner in proptest::option::of(0..40_usize), value in any_json()) {
        let body = mutated(IMAGE, key, inner, value);
        let named = body["ids"].as_array().map_or(0, |ids| ids.iter().filter(|id| id.is_string()).count());
        if let Ok(found) = ids::<Image>(body.to_string().as_bytes(), &image::PopRequest::default()) {
            prop_assert!(found.len() >= named);
        } else {
            prop_assert_eq!(named, 0);
        }
        let body = mutated(TEXT, key, inner, body["payload"].clone());
        ids::<Text>(body.to_string().as_bytes(), &text::PopRequest::default()).ok();
    }
}
