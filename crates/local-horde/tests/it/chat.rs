//! Chat jobs: who gets them, what they hold, and what is taken back for them, in the shapes of horde-sdk 0.33.

use std::time::Duration;

use local_horde::{CLIENT_KEY, Horde, Settings, WORKER_KEY};
use serde_json::{Value, json};

const MODEL: &str = "koboldcpp/Chat-8B";

fn horde() -> Horde {
    Horde::new(Settings {
        rate_limits: false,
        ..Settings::default()
    })
}

/// Lays `extra` over `base`, one level deep; `null` takes a key away.
fn with(mut base: Value, extra: &Value) -> Value {
    for (key, value) in extra.as_object().expect("an object") {
        base[key] = value.clone();
    }
    base.as_object_mut()
        .expect("an object")
        .retain(|_, value| !value.is_null());
    base
}

fn weather() -> Value {
    let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
    json!({ "type": "function", "function": { "name": "weather", "parameters": parameters } })
}

fn file(horde: &Horde, extra: &Value) -> Result<String, Value> {
    let base = json!({ "messages": [{ "role": "user", "content": "Hello" }], "models": [MODEL] });
    horde.file("generate/chat/async", &with(base, extra))
}

fn pop(horde: &Horde, extra: &Value) -> Result<Value, Value> {
    let features = [
        "json_object",
        "json_schema",
        "prompt_overflow_refused",
        "seed",
        "structured_output_enforced",
        "tool_choice_enforced",
        "tools",
    ];
    let base = json!({
        "name": "chatter", "models": ["other", MODEL], "bridge_agent": "KoboldCppEmbedWorker:1:u", "chat_jobs": true,
        "model_id": MODEL, "chat_features": features, "chat_limits": { "max_length": 512, "max_context_length": 4096 },
    });
    horde.call("POST", "generate/text/pop", WORKER_KEY, &with(base, extra))
}

fn submit(horde: &Horde, job: &Value, body: &Value) -> Result<Value, Value> {
    let base = json!({ "id": job["id"], "model_id": MODEL });
    horde.call("POST", "generate/text/submit", WORKER_KEY, &with(base, body))
}

fn status(horde: &Horde, id: &str) -> Value {
    let path = format!("generate/chat/status/{id}");
    horde.call("GET", &path, CLIENT_KEY, &json!({})).expect("a status")
}

#[tokio::test(start_paused = true)]
async fn a_chat_goes_to_a_worker_that_declares_all_it_needs() {
    let schema = |strict: bool| {
        let schema = json!({ "name": "n", "strict": strict, "schema": { "type": "object" } });
        json!({ "response_format": { "type": "json_schema", "json_schema": schema } })
    };
    let declares = |features: &[&str]| json!({ "chat_features": features });
    let needed = json!({ "tools": [weather()], "tool_choice": "required" });
    let loose = json!({ "horde": { "conformance": "best_effort" } });
    for (request, pop_with, is_given) in [
        (json!({}), json!({}), true),
        (json!({}), json!({ "chat_jobs": false }), false),
        (json!({}), declares(&[]), false),
        (loose.clone(), declares(&[]), true),
        (json!({ "seed": 7 }), declares(&["prompt_overflow_refused"]), false),
        (json!({ "presence_penalty": 0.0 }), json!({}), true),
        (json!({ "presence_penalty": 0.5 }), json!({}), false),
        (json!({ "reasoning_effort": "none" }), json!({}), false),
        (
            schema(false),
            declares(&["prompt_overflow_refused", "json_schema"]),
            true,
        ),
        (
            schema(true),
            declares(&["prompt_overflow_refused", "json_schema"]),
            false,
        ),
        (schema(true), json!({}), true),
        (needed.clone(), json!({}), true),
        (needed.clone(), declares(&["prompt_overflow_refused", "tools"]), false),
        (with(needed.clone(), &schema(true)), json!({}), false),
        (
            with(needed, &json!({ "temperature": 1.5 })),
            json!({ "chat_limits": { "max_length": 512, "max_context_length": 4096, "tools_max_temperature": 1.0 } }),
            false,
        ),
        (json!({ "max_tokens": 513 }), json!({}), false),
        (json!({ "models": ["other"] }), json!({}), false),
        (json!({ "models": [] }), json!({}), true),
    ] {
        let horde = horde();
        file(&horde, &request).expect("filed");
        let answer = pop(&horde, &pop_with).expect("an answer");
        assert_eq!(answer["id"].is_string(), is_given, "{request} {pop_with}");
        if is_given {
            assert_eq!((&answer["chat"], &answer["model"]), (&json!(true), &json!(MODEL)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn prompts_go_to_workers_that_take_them() {
    let horde = horde();
    let body = json!({ "prompt": "Once", "models": [MODEL] });
    horde.file("generate/text/async", &body).expect("filed");
    let chats_only = pop(&horde, &json!({ "prompt_jobs": false })).expect("an answer");
    assert!(chats_only["id"].is_null());
    let both = pop(&horde, &json!({})).expect("an answer");
    assert!(both["chat"].is_null() && both["payload"]["prompt"] == "Once", "{both}");
}

#[tokio::test(start_paused = true)]
async fn a_declaration_that_contradicts_itself_is_refused() {
    let horde = horde();
    for pop_with in [
        json!({ "model_id": null }),
        json!({ "model_id": "unheard of" }),
        json!({ "chat_limits": null }),
        json!({ "chat_limits": { "max_length": 512 } }),
        json!({ "chat_limits": { "max_length": 0, "max_context_length": 4096 } }),
        json!({ "chat_features": "tools" }),
        json!({ "chat_features": ["vision"] }),
        json!({ "chat_features": ["vision"], "image_transports": ["messages_url"] }),
        json!({ "chat_jobs": false, "prompt_jobs": false }),
        json!({ "chat_jobs": "yes" }),
    ] {
        assert!(pop(&horde, &pop_with).is_err(), "{pop_with}");
    }
    let newer = json!({ "chat_features": ["vision", "telepathy"], "image_transports": ["url"] });
    assert!(pop(&horde, &newer).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_job_carries_every_value_and_no_tool_that_may_not_be_called() {
    let payload = |request: &Value| {
        let horde = horde();
        file(&horde, request).expect("filed");
        pop(&horde, &json!({})).expect("a job")["payload"].clone()
    };
    let plain = payload(&json!({ "stop": "\n", "seed": 7 }));
    let expected = json!({
        "messages": [{ "role": "user", "content": "Hello" }], "max_length": 512, "max_context_length": 4096,
        "temperature": 1.0, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "rep_pen": 1.0, "top_k": 0,
        "min_p": 0.0, "stop_sequence": ["\n"], "seed": 7,
    });
    assert_eq!(plain, expected);
    let other = json!({ "type": "function", "function": { "name": "launch" } });
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    let forced = payload(&json!({ "tools": [other, weather()], "tool_choice": named }));
    assert_eq!(
        (&forced["tools"], &forced["tool_choice"]),
        (&json!([weather()]), &json!("required"))
    );
    let barred = payload(&json!({ "tools": [weather()], "tool_choice": "none", "parallel_tool_calls": false }));
    let keys = ["tools", "tool_choice", "parallel_tool_calls"].map(|key| barred[key].is_null());
    assert_eq!(keys, [true; 3]);
    let free =
        payload(&json!({ "tools": [weather()], "response_format": { "type": "text" }, "max_completion_tokens": 32 }));
    assert!(free["tool_choice"].is_null() && free["response_format"].is_null() && free["max_length"] == 32);
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_bounds_are_refused() {
    let horde = horde();
    let mut deep = json!({ "type": "object" });
    for _ in 0..11 {
        deep = json!({ "type": "object", "properties": { "a": deep } });
    }
    let message = |text: String| json!({ "messages": [{ "role": "user", "content": text }] });
    let format = |schema: &Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": schema } } });
    for request in [
        json!({ "messages": [] }),
        json!({ "messages": "Hello" }),
        message("x".repeat((1 << 20) + 1)),
        json!({ "tools": vec![weather(); 129] }),
        json!({ "tools": [{ "type": "function", "function": { "name": "f", "description": "x".repeat(256 << 10) } }] }),
        json!({ "tools": [{ "type": "function" }] }),
        json!({ "tool_choice": "required" }),
        json!({ "tools": [weather()], "tool_choice": "always" }),
        format(&deep),
        json!({ "tools": [{ "type": "function", "function": { "name": "f", "parameters": deep } }] }),
        json!({ "response_format": { "type": "xml" } }),
        json!({ "max_tokens": 15 }),
        json!({ "max_completion_tokens": 16_385 }),
        json!({ "stop": ["a", "b", "c", "d", "e"] }),
        json!({ "temperature": 2.5 }),
        json!({ "top_p": "high" }),
        json!({ "n": 2 }),
    ] {
        assert!(file(&horde, &request).is_err(), "{request:.200}");
    }
    assert!(file(&horde, &message("x".repeat(1 << 20))).is_ok());
    assert!(file(&horde, &format(&deep["properties"]["a"])).is_ok());
}

#[tokio::test(start_paused = true)]
async fn replies_are_held_to_their_shape_and_to_what_was_asked() {
    let said = |message: Value, finish: &str| json!({ "message": message, "finish_reason": finish });
    let text = |content: &str| json!({ "role": "assistant", "content": content });
    let call = |name: &str, arguments: &str| {
        let function = json!({ "name": name, "arguments": arguments });
        let calls = json!([{ "id": "call_1", "type": "function", "function": function }]);
        json!({ "role": "assistant", "content": null, "tool_calls": calls })
    };
    let plain = json!({});
    let tools = json!({ "tools": [weather()] });
    let required = json!({ "tools": [weather()], "tool_choice": "required" });
    let object = json!({ "response_format": { "type": "json_object" } });
    let thought = json!({ "role": "assistant", "content": "Hi", "reasoning_content": "They greet." });
    for (request, reply, is_taken) in [
        (&plain, said(text("Hi"), "stop"), true),
        (&plain, said(text(""), "length"), true),
        (&plain, said(thought, "stop"), true),
        (
            &plain,
            with(said(text("Hi"), "stop"), &json!({ "model_id": "other" })),
            false,
        ),
        (
            &plain,
            with(
                said(text("Hi"), "stop"),
                &json!({ "native_finish_reason": "x".repeat(33) }),
            ),
            false,
        ),
        (
            &plain,
            with(said(text("Hi"), "stop"), &json!({ "prompt_tokens": -1 })),
            false,
        ),
        (
            &plain,
            with(
                said(text("Hi"), "stop"),
                &json!({ "prompt_tokens": 5, "completion_tokens": 2 }),
            ),
            true,
        ),
        (&plain, said(text("Hi"), "done"), false),
        (&plain, said(text("Hi"), "tool_calls"), false),
        (&plain, said(json!({ "role": "user", "content": "Hi" }), "stop"), false),
        (
            &plain,
            said(json!({ "role": "assistant", "content": null }), "stop"),
            false,
        ),
        (&plain, said(json!("Hi"), "stop"), false),
        (&plain, json!({ "generation": "Hi", "state": "ok" }), false),
        (&plain, said(call("weather", "{}"), "tool_calls"), false),
        (&tools, said(text("Hi"), "stop"), true),
        (&tools, said(call("weather", r#"{"city":"Rome"}"#), "tool_calls"), true),
        (&tools, said(call("launch", "{}"), "tool_calls"), false),
        (&tools, said(call("weather", "Rome"), "tool_calls"), false),
        (&required, said(text("Hi"), "stop"), false),
        (&object, said(text("Hi"), "stop"), false),
        (&object, said(text(r#"{"a": 1}"#), "stop"), true),
        (&object, said(text(r#"{"a": "#), "length"), true),
    ] {
        let horde = horde();
        let id = file(&horde, request).expect("filed");
        let job = pop(&horde, &plain).expect("a job");
        let answer = submit(&horde, &job, &reply);
        assert_eq!(answer.is_ok(), is_taken, "{request} {reply}: {answer:?}");
        if is_taken {
            assert!(
                answer.expect("taken")["reward"]
                    .as_f64()
                    .is_some_and(|reward| reward > 0.0)
            );
            let status = status(&horde, &id);
            let generation = &status["generations"][0];
            assert_eq!(
                (&generation["message"], &status["done"]),
                (&reply["message"], &json!(true))
            );
            assert_eq!(submit(&horde, &job, &reply).expect_err("twice")["rc"], "DuplicateGen");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_back_names_model_and_reason_and_three_of_them_end_the_request() {
    let horde = horde();
    let id = file(&horde, &json!({})).expect("filed");
    let fault = |reason: &str| json!({ "state": "faulted", "fault_reason": reason });
    for reason in ["prompt_overflow", "generation_error", "reply_refused"] {
        let job = pop(&horde, &json!({})).expect("a job");
        for wrong in [
            json!({ "state": "faulted", "generation": "faulted" }),
            fault("bored"),
            with(fault(reason), &json!({ "model_id": "other" })),
            json!({ "state": "ok", "fault_reason": reason }),
        ] {
            assert!(submit(&horde, &job, &wrong).is_err(), "{wrong}");
        }
        assert_eq!(submit(&horde, &job, &fault(reason)).expect("taken")["reward"], 0.0);
        let generation = job["id"].as_str().expect("an id");
        let told = horde.state().ledger.generations[generation].fault_reason.clone();
        assert_eq!(told.as_deref(), Some(reason));
    }
    tokio::time::advance(Duration::from_secs(61)).await;
    let status = status(&horde, &id);
    assert_eq!(
        status["fault_reasons"],
        json!(["prompt_overflow", "generation_error", "reply_refused"])
    );
    assert_eq!((&status["faulted"], &status["done"]), (&json!(true), &json!(true)));
}

#[test]
fn pops_and_submits_are_written_down_without_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("record.jsonl");
    let horde = horde();
    horde.state().recorder = Some(local_horde::recording::Recorder::create(&path).expect("a file"));
    file(&horde, &json!({})).expect("filed");
    let job = pop(&horde, &json!({})).expect("a job");
    submit(&horde, &job, &json!({ "state": "faulted" })).expect_err("no reason");
    let text = std::fs::read_to_string(&path).expect("a record");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| (line["route"].as_str(), line["status"].as_u64()))
        .collect();
    assert_eq!(
        told,
        [
            (Some("generate/text/pop"), Some(200)),
            (Some("generate/text/submit"), Some(400))
        ]
    );
    assert_eq!(lines[0]["answer"], job);
    assert!(!text.contains(WORKER_KEY) && !text.contains(CLIENT_KEY));
}
