//! Chat jobs through the whole protocol: the real scribe with a real model, against a Horde that checks every reply.

use std::time::{Duration, Instant};

use e2e::demo::scribe::MODEL;
use e2e::demo::stage::start_worker;
use e2e::programs::Program;
use e2e::requester::Requester;
use local_horde::CLIENT_KEY;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(240);

/// A request with greedy answers.
fn ask(text: &str, extra: &Value) -> Value {
    let mut body = json!({
        "messages": [{ "role": "system", "content": "You are a helpful assistant." }, { "role": "user", "content": text }],
        "models": [MODEL], "temperature": 0, "top_k": 1, "max_tokens": 48,
    });
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

/// Waits until a request is done or was handed back.
async fn ended(requester: &Requester, id: &str, until: Instant) -> Value {
    loop {
        let status = requester
            .read(&format!("generate/chat/status/{id}"))
            .await
            .expect("a status");
        let handed_back = status["fault_reasons"]
            .as_array()
            .is_some_and(|reasons| !reasons.is_empty());
        if status["done"] == true || handed_back {
            return status;
        }
        assert!(Instant::now() < until, "not done in time: {status}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scribe_answers_calls_and_keeps_to_schemas_and_hands_back_what_does_not_fit() {
    let (_horde, base) = Program::local_horde(&["--no-rate-limits"]).await.expect("a Horde");
    let requester = Requester::new(&base, CLIENT_KEY).expect("a client");
    let state = tempfile::tempdir().expect("a folder");
    let config = state.path().join("config/horde-workers");
    std::fs::create_dir_all(&config).expect("a folder");
    let settings = "[scribe]\nchat = true\n[scribe.llama]\nslots = 2\ncontext_tokens = 1024\n";
    std::fs::write(config.join("scribe.toml"), settings).expect("a configuration");

    let parameters = json!({
        "type": "object", "properties": { "city": { "type": "string", "enum": ["Rome", "Oslo"] } },
        "required": ["city"], "additionalProperties": false,
    });
    let tool = json!({ "type": "function", "function": { "name": "weather", "parameters": parameters } });
    let schema = json!({
        "type": "object", "properties": { "capital": { "type": "string" }, "sure": { "type": "boolean" } },
        "required": ["capital", "sure"], "additionalProperties": false,
    });
    let format =
        json!({ "type": "json_schema", "json_schema": { "name": "answer", "strict": true, "schema": schema } });
    let asked = [
        ask("What is the capital of France?", &json!({ "seed": 7 })),
        ask(
            "What is the weather in Rome?",
            &json!({ "tools": [tool], "tool_choice": "required" }),
        ),
        ask("What is the capital of Italy?", &json!({ "response_format": format })),
        ask(
            &"Sing. ".repeat(400),
            &json!({ "max_context_length": 128, "max_tokens": 16 }),
        ),
    ];
    let mut ids = Vec::new();
    for body in &asked {
        ids.push(requester.file("generate/chat/async", body).await.expect("filed"));
    }
    let _scribe = start_worker("scribe", &base, state.path(), &[]).expect("scribe starts");
    let until = Instant::now() + PATIENCE;
    let mut statuses = Vec::new();
    for id in &ids {
        statuses.push(ended(&requester, id, until).await);
    }
    let reply = |index: usize| &statuses[index]["generations"][0];
    let said = reply(0)["message"]["content"].as_str().unwrap_or_default();
    assert!(
        said.contains("Paris") && reply(0)["finish_reason"] == "stop",
        "{}",
        statuses[0]
    );
    assert!(
        reply(0)["prompt_tokens"].as_u64().is_some_and(|count| count > 5),
        "{}",
        statuses[0]
    );

    let call = &reply(1)["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap_or_default()).expect("arguments");
    assert_eq!(
        (&call["name"], &reply(1)["finish_reason"]),
        (&json!("weather"), &json!("tool_calls"))
    );
    assert!(
        arguments["city"] == "Rome" || arguments["city"] == "Oslo",
        "{arguments}"
    );

    let content = reply(2)["message"]["content"].as_str().unwrap_or_default();
    let answer: Value = serde_json::from_str(content).unwrap_or_else(|_| panic!("no JSON: {content}"));
    assert!(answer["capital"].is_string() && answer["sure"].is_boolean(), "{answer}");

    assert_eq!(statuses[3]["fault_reasons"][0], "prompt_overflow", "{}", statuses[3]);
}
