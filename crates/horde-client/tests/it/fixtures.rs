//! Every captured payload goes through the types and comes out equal.

use std::path::{Path, PathBuf};

use horde_client::ids::GenerationId;
use horde_client::kind::{Cause, HandBack, Popped};
use horde_client::metadata::Metadata;
use horde_client::{Alchemy, Image, JobKind, Text, alchemy, image, text};
use serde_json::{Value, json};

fn folder(kind: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("fixtures")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        (
            name,
            serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON"),
        )
    };
    paths.into_iter().map(read).collect()
}

/// `1` and `1.0` are one number on the wire.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .all(|(key, value)| right.get(key).is_some_and(|other| same(value, other)))
        }
        _ => left == right,
    }
}

fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned>(name: &str, value: &Value) {
    let typed: T = serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let back = serde_json::to_value(&typed).expect("it serialises");
    // An empty list and an absent one are the same to the server.
    let without_empty_lists = |value: &Value| -> Value {
        let object = value.as_object().expect("an object").iter();
        Value::Object(
            object
                .filter(|(_, value)| **value != json!([]))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        )
    };
    assert!(
        same(&without_empty_lists(&back), &without_empty_lists(value)),
        "{name}\n{back}\n{value}"
    );
}

fn pop<K: JobKind>(value: &Value) -> Popped<K::Payload> {
    K::split(serde_json::from_value(value.clone()).expect("a pop response decodes"))
}

fn id(value: &Value) -> GenerationId {
    GenerationId(value["id"].as_str().expect("an id").to_owned())
}

fn metadata(value: &Value) -> Vec<Metadata> {
    serde_json::from_value(value.get("gen_metadata").cloned().unwrap_or(json!([]))).expect("metadata")
}

/// A submit that leaves out a default is equal to one that spells it out.
fn assert_submit(name: &str, body: &Value, wanted: &Value) {
    let mut wanted = wanted.clone();
    if wanted.get("gen_metadata") == Some(&json!([])) {
        wanted.as_object_mut().expect("an object").remove("gen_metadata");
    }
    if wanted.get("state").is_none() && wanted.get("model_id").is_none() {
        wanted["state"] = json!("ok");
    }
    assert!(same(body, &wanted), "{name}\n{body}\n{wanted}");
}

#[test]
fn image_payloads_go_through_the_types_unchanged() {
    for (name, value) in folder("image") {
        if name.starts_with("pop_request") {
            round_trip::<image::PopRequest>(&name, &value);
        } else if name.starts_with("pop_response") {
            let popped = pop::<Image>(&value);
            let n_ids = value["ids"].as_array().map_or(0, Vec::len);
            assert_eq!(
                popped.jobs.iter().map(|job| job.generations.len()).sum::<usize>(),
                n_ids,
                "{name}"
            );
            for job in popped.jobs {
                let payload = job.payload.expect("a payload");
                assert!(job.generations.iter().all(|one| one.upload.is_some()), "{name}");
                assert_eq!(payload.params.n_iter.map(|n| n as usize), Some(n_ids), "{name}");
                let seed = value["payload"]["seed"].as_str().and_then(|text| text.parse().ok());
                assert_eq!(payload.params.seed, seed, "{name}");
                assert_eq!(job.ttl.map(|ttl| ttl.as_secs()), value["ttl"].as_u64(), "{name}");
                assert_eq!(
                    payload.source_image.as_deref(),
                    value["source_image"].as_str(),
                    "{name}"
                );
                assert_eq!(
                    payload.params.loras.len(),
                    value["payload"]["loras"].as_array().map_or(0, Vec::len),
                    "{name}"
                );
                assert_eq!(
                    payload.params.tis.len(),
                    value["payload"]["tis"].as_array().map_or(0, Vec::len),
                    "{name}"
                );
            }
        } else if value["state"] == "faulted" {
            let body = Image::fault_body(id(&value), HandBack::default());
            assert_eq!((&body["id"], &body["state"]), (&value["id"], &value["state"]), "{name}");
            assert!(body["generation"].is_string() && body["seed"].is_i64(), "{name}");
        } else {
            let submission = image::Submission {
                generation: value["generation"].as_str().expect("a generation").to_owned(),
                state: value["state"].as_str().unwrap_or("ok").into(),
                seed: value["seed"].as_i64().expect("a seed"),
                gen_metadata: metadata(&value),
            };
            assert_submit(&name, &Image::submit_body(id(&value), &submission), &value);
        }
    }
}

#[test]
fn text_payloads_go_through_the_types_unchanged() {
    for (name, value) in folder("text") {
        if name.contains("pop_request") {
            round_trip::<text::PopRequest>(&name, &value);
        } else if name.contains("pop_response") {
            let popped = pop::<Text>(&value);
            assert_eq!(popped.jobs.len(), usize::from(value["id"].is_string()), "{name}");
            for job in popped.jobs {
                match job.payload.expect("a payload") {
                    text::Payload::Chat(payload) => assert_eq!(payload, value["payload"], "{name}"),
                    text::Payload::Prompt(params) => {
                        let sent = &value["payload"];
                        assert_eq!(params.prompt.as_deref(), sent["prompt"].as_str(), "{name}");
                        assert_eq!(params.max_length.map(u64::from), sent["max_length"].as_u64(), "{name}");
                        assert_eq!(params.temperature, sent["temperature"].as_f64(), "{name}");
                        assert_eq!(
                            params.sampler_order.is_some(),
                            sent["sampler_order"].is_array(),
                            "{name}"
                        );
                        assert_eq!(
                            params.stop_sequence.len(),
                            sent["stop_sequence"].as_array().map_or(0, Vec::len),
                            "{name}"
                        );
                    }
                }
            }
        } else if name == "chat_submit_fault" {
            let told = HandBack {
                model: value["model_id"].as_str(),
                cause: Cause::Overflow,
            };
            assert!(same(&Text::fault_body(id(&value), told), &value), "{name}");
        } else if name.starts_with("chat_submit") {
            assert_submit(
                &name,
                &Text::submit_body(id(&value), &text::Submission::Chat(value.clone())),
                &value,
            );
        } else if value["state"] == "faulted" {
            let body = Text::fault_body(id(&value), HandBack::default());
            assert_eq!((&body["id"], &body["state"]), (&value["id"], &value["state"]), "{name}");
        } else {
            let submission = text::Submission::Prompt {
                generation: value["generation"].as_str().expect("a generation").to_owned(),
                state: value["state"].as_str().unwrap_or("ok").into(),
                seed: value["seed"].as_i64(),
                gen_metadata: metadata(&value),
            };
            assert_submit(&name, &Text::submit_body(id(&value), &submission), &value);
        }
    }
}

#[test]
fn alchemy_payloads_go_through_the_types_unchanged() {
    for (name, value) in folder("alchemy") {
        if name.starts_with("pop_request") {
            round_trip::<alchemy::PopRequest>(&name, &value);
        } else if name.starts_with("pop_response") {
            let popped = pop::<Alchemy>(&value);
            let forms = value["forms"].as_array().cloned().unwrap_or_default();
            assert_eq!(popped.jobs.len(), forms.len(), "{name}");
            for (job, form) in popped.jobs.iter().zip(&forms) {
                let payload = job.payload.as_ref().expect("a payload");
                assert_eq!(Some(payload.form.as_str()), form["form"].as_str(), "{name}");
                assert!(!matches!(payload.form, alchemy::Form::Other(_)), "{name}");
                assert_eq!(job.model.as_deref(), form["form"].as_str(), "{name}");
                assert_eq!(
                    job.generations[0].upload.is_some(),
                    form["r2_upload"].is_string(),
                    "{name}"
                );
            }
        } else if value["state"] == "faulted" {
            assert!(
                same(&Alchemy::fault_body(id(&value), HandBack::default()), &value),
                "{name}"
            );
        } else {
            let submission = alchemy::Submission {
                result: value["result"].clone(),
            };
            assert_submit(&name, &Alchemy::submit_body(id(&value), &submission), &value);
        }
    }
}

#[test]
fn common_answers_decode() {
    for (name, value) in folder("common") {
        match name.as_str() {
            "find_user" => {
                let user: horde_client::client::User = serde_json::from_value(value).expect("a user");
                assert!(user.username.is_some_and(|name| name.contains('#')));
            }
            "worker_get_image" => {
                let worker: horde_client::client::WorkerDetails = serde_json::from_value(value).expect("a worker");
                assert_eq!(worker.r#type.as_deref(), Some("image"));
            }
            "status_models_single" => {
                let models: Vec<horde_client::client::ModelDemand> = serde_json::from_value(value).expect("models");
                assert_eq!(models.len(), 1);
            }
            _ => {}
        }
    }
}
