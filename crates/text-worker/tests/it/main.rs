//! The shipped configuration is what the program means, and a real model earns its living through the worker's seams.

mod bridged;

use std::sync::Mutex;

use horde_client::kind::{Generation, PoppedJob};
use horde_client::text::{Payload, Submission};
use test_support::models_dir;
use text_worker::Config;
use worker_app::Program;
use worker_runtime::backend::{Backend, Engine, JobContext};

/// Every line of the section that could be a setting, with its `#` taken away.
fn uncommented(section: &str) -> String {
    let setting = |line: &str| {
        let key = line.split('=').next().unwrap_or_default().trim();
        line.contains(" = ") && !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let lines = section
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|bare| setting(bare)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_shipped_configuration_shows_the_defaults_and_every_key() {
    let file = text_worker::Scribe::CONFIG_FILE;
    let section = &file[file.find("[scribe]").expect("the section is there")..];
    let parse = |text: &str| -> Config {
        #[derive(serde::Deserialize)]
        struct File {
            scribe: Config,
        }
        toml::from_str::<File>(text).expect("the section can be read").scribe
    };
    assert_eq!(parse(section), Config::default(), "as shipped");
    let mut shown = parse(&uncommented(section));
    // These two have no default that could be written down.
    assert_eq!(
        (shown.llama.gpu_layers.take(), shown.llama.main_gpu.take()),
        (Some(99), Some(0))
    );
    assert_eq!(shown, Config::default(), "with every comment taken away");
    let serde_json::Value::Object(keys) = serde_json::to_value(Config::default()).expect("plain data") else {
        panic!("a section is a table");
    };
    let nested = ["llama", "bridge"];
    let inner = nested
        .iter()
        .flat_map(|table| keys[*table].as_object().expect("a table").keys());
    for key in keys.keys().chain(inner) {
        assert!(
            section.contains(&format!("{key} = ")) || nested.contains(&key.as_str()),
            "`{key}` is not shown"
        );
    }
}

/// Notes what it is told.
#[derive(Default)]
struct Notes(Mutex<Vec<(u32, u32)>>);

impl JobContext for Notes {
    fn progress(&self, done: u32, total: u32, _phase: &str) {
        self.0
            .lock()
            .expect("no test panics while it holds this")
            .push((done, total));
    }
    fn is_cancelled(&self) -> bool {
        false
    }
}

fn job(payload: serde_json::Value) -> PoppedJob<Payload> {
    PoppedJob {
        generations: vec![Generation {
            id: serde_json::from_value("eaea5304-01f0-4e9a-864d-028665a62de4".into()).expect("an id"),
            upload: None,
        }],
        model: None,
        fault_model: None,
        ttl: None,
        payload: Ok(Payload::Prompt(Box::new(
            serde_json::from_value(payload).expect("tolerated"),
        ))),
    }
}

fn backend() -> text_worker::ScribeBackend {
    backend_of(text_worker::Served::File("koboldcpp/SmolLM2-135M-Instruct".into()))
}

fn backend_of(served: text_worker::Served) -> text_worker::ScribeBackend {
    configured(served, Config::default())
}

fn configured(served: text_worker::Served, config: Config) -> text_worker::ScribeBackend {
    let common = worker_app::Common {
        horde_url: url::Url::parse("http://127.0.0.1:9/api/").expect("a URL"),
        worker_name: "a test of scribe".parse().expect("a name"),
        bridge_agent: horde_client::agent::BridgeAgent::new("scribe", "0.1.0", "https://example.org")
            .expect("an agent"),
        proxy: None,
        devices: vec!["cpu".into()],
        prefetch: 1,
        nsfw: true,
        priority_usernames: Vec::new(),
        pause_between: Vec::new(),
        grace: std::time::Duration::from_secs(60),
        log: worker_app::config::LogSettings {
            filter: "info".into(),
            format: worker_app::config::LogFormat::Text,
        },
        state_dir: std::path::PathBuf::new(),
        models_dir: models_dir(),
    };
    text_worker::ScribeBackend::new(common, config, served)
}

#[test]
fn nothing_is_offered_without_an_engine_and_a_chat_job_is_handed_back() {
    let backend = backend();
    assert!(backend.offer(&[], 1).is_err());
    let mut chat = job(serde_json::json!({}));
    chat.payload = Ok(Payload::Chat(serde_json::Value::Null));
    assert!(backend.validate(&mut chat).is_err_and(|fault| !fault.ours));
    let mut unread = job(serde_json::json!({}));
    unread.payload = Err("payload: Data error".into());
    assert!(backend.validate(&mut unread).is_err());
}

/// A chat job through both halves of the worker: the reply without its id, or the fault.
#[cfg(feature = "llama")]
async fn chatted(
    backend: &text_worker::ScribeBackend,
    engine: &text_worker::ScribeEngine,
    payload: serde_json::Value,
) -> Result<serde_json::Value, worker_runtime::backend::Fault> {
    let mut popped = job(serde_json::json!({}));
    popped.model = Some("koboldcpp/SmolLM2-135M-Instruct".into());
    popped.payload = Ok(Payload::Chat(payload));
    let valid = backend.validate(&mut popped)?;
    let work = backend.prepare(valid).await?;
    let output = engine.run(work, &Notes::default())?.pop().expect("one generation")?;
    match backend.check(output).await?.submission {
        Submission::Chat(reply) => Ok(reply),
        Submission::Prompt { .. } => panic!("a chat job is answered as one"),
    }
}

#[cfg(feature = "llama")]
#[tokio::test]
async fn chat_jobs_are_answered_by_a_real_model_with_calls_and_schemas_kept_to() {
    use serde_json::{Value, json};

    let config = Config {
        chat: true,
        ..Config::default()
    };
    let order = json!({ "model": config.model_path(&models_dir()), "llama": { "slots": 1, "threads": 1 } });
    let engine = text_worker::Scribe::engine(order, "cpu").unwrap_or_else(|stop| panic!("{stop}"));
    let report = engine.report();
    let name = "koboldcpp/SmolLM2-135M-Instruct";
    let backend = configured(text_worker::Served::File(name.into()), config);
    let offer = backend.offer(std::slice::from_ref(&report), 1).expect("served");
    assert_eq!((offer.chat_jobs, offer.model_id.as_deref()), (Some(true), Some(name)));
    assert!(
        offer
            .chat_features
            .iter()
            .any(|feature| feature == "tool_choice_enforced")
    );
    let silent = backend_of(text_worker::Served::File(name.into()));
    let plain = silent.offer(&[report], 1).expect("served");
    assert_eq!(
        (plain.chat_jobs, plain.chat_features.len()),
        (None, 0),
        "only where the owner said so"
    );

    let ask = |question: &str, more: Value| {
        let mut payload = json!({
            "messages": [
                { "role": "system", "content": "You are a helpful assistant." },
                { "role": "user", "content": [{ "type": "text", "text": question }] }
            ],
            "max_length": 96, "max_context_length": 1024, "temperature": 0.0, "top_p": 1.0, "rep_pen": 1.0, "seed": 7,
        });
        payload
            .as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().unwrap_or_default());
        payload
    };
    let said = chatted(&backend, &engine, ask("What is the capital of France?", json!({})))
        .await
        .expect("a reply");
    assert!(
        said["message"]["content"]
            .as_str()
            .is_some_and(|text| text.contains("Paris")),
        "{said}"
    );
    assert_eq!(
        (&said["finish_reason"], &said["model_id"]),
        (&json!("stop"), &json!(name))
    );

    let weather = json!({ "type": "function", "function": { "name": "weather", "parameters": {
        "type": "object", "properties": { "city": { "type": "string", "maxLength": 20 } }, "required": ["city"],
        "additionalProperties": false,
    } } });
    let tools = json!({ "tools": [weather], "tool_choice": "required", "parallel_tool_calls": false });
    let called = chatted(&backend, &engine, ask("What is the weather in Rome?", tools))
        .await
        .expect("a reply");
    let call = &called["message"]["tool_calls"][0]["function"];
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap_or_default()).expect("JSON");
    assert!(call["name"] == "weather" && arguments["city"].is_string(), "{called}");
    assert_eq!(called["finish_reason"], "tool_calls");

    let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } }, "required": ["n"], "additionalProperties": false });
    let format =
        json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } } });
    let made = chatted(&backend, &engine, ask("How many legs has a cat?", format))
        .await
        .expect("a reply");
    let value: Value = serde_json::from_str(made["message"]["content"].as_str().unwrap_or_default()).expect("JSON");
    assert!(
        value["n"].is_i64() && value.as_object().is_some_and(|keys| keys.len() == 1),
        "{made}"
    );

    let long = chatted(&backend, &engine, ask(&"word ".repeat(5_000), json!({}))).await;
    assert!(long.is_err_and(|fault| !fault.ours && fault.reason.contains("longer than")));
    let teapot =
        json!({ "response_format": { "type": "json_schema", "json_schema": { "schema": { "type": "teapot" } } } });
    assert!(
        chatted(&backend, &engine, ask("Hi", teapot))
            .await
            .is_err_and(|fault| !fault.ours)
    );
}

#[cfg(feature = "llama")]
#[tokio::test]
async fn a_popped_job_becomes_a_submission_that_a_real_model_wrote() {
    let config = Config::default();
    let order = serde_json::json!({ "model": config.model_path(&models_dir()), "llama": { "slots": 2, "threads": 1 } });
    let engine = text_worker::Scribe::engine(order, "cpu")
        .unwrap_or_else(|stop| panic!("{stop}; `just models smollm2-135m-instruct` fetches the model"));
    let report = engine.report();
    assert_eq!(report.capacity, 2);
    let backend = backend();
    let offer = backend
        .offer(std::slice::from_ref(&report), 1)
        .expect("the model can be served");
    assert_eq!(offer.models, ["koboldcpp/SmolLM2-135M-Instruct"]);
    let (length, context) = (offer.max_length.unwrap_or(0), offer.max_context_length.unwrap_or(0));
    assert!(
        (16..=1_024).contains(&length) && (1_024..=4_096).contains(&context),
        "{offer:?}"
    );

    let prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let mut popped = job(serde_json::json!({
        "prompt": prompt, "max_length": 40, "max_context_length": 1024, "temperature": 0, "unknown_key": {"a": [1]}
    }));
    let valid = backend.validate(&mut popped).expect("a sound job");
    let work = backend.prepare(valid).await.expect("nothing to fetch");
    assert!(
        backend
            .estimate(&work, &report)
            .is_some_and(|time| time < std::time::Duration::from_secs(60))
    );
    let notes = Notes::default();
    let mut written = engine.run(work, &notes).expect("the engine runs");
    let output = written.pop().expect("one generation").expect("written");
    let finished = backend.check(output).await.expect("nothing against it");
    let Submission::Prompt { generation, .. } = finished.submission else {
        panic!("a prompt job is answered as one");
    };
    assert_eq!(generation, "The capital of France is Paris.");
    assert!(finished.units >= 6.0);
    assert!(
        notes
            .0
            .lock()
            .expect("not poisoned")
            .iter()
            .all(|(done, total)| done <= total)
    );
}

#[cfg(feature = "llama")]
#[test]
fn what_was_measured_of_a_real_engine_is_kept_until_something_changes() {
    use text_worker::Facts;

    let folder = tempfile::tempdir().expect("a folder");
    let start = |threads: u32| -> Facts {
        let order = serde_json::json!({
            "model": Config::default().model_path(&models_dir()), "state_dir": folder.path(),
            "llama": { "slots": 2, "threads": threads, "context_tokens": 512 },
        });
        let engine = text_worker::Scribe::engine(order, "cpu").unwrap_or_else(|stop| panic!("{stop}"));
        serde_json::from_value(engine.report().facts).expect("facts")
    };
    let first = start(1);
    let file = folder.path().join("calibration/cpu.json");
    let read = || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&file).expect("kept")).expect("JSON") };
    let mut kept = read();
    assert_eq!(kept[0]["measured"]["write_per_second"], first.write_per_second);
    // A speed that no machine would be measured to have shows that it was not measured again.
    kept[0]["measured"]["write_per_second"] = 12_345.0.into();
    std::fs::write(&file, kept.to_string()).expect("written");
    let second = start(1);
    assert_eq!(second.write_per_second, 12_345.0);
    assert_eq!(second.measured_unix_ms, first.measured_unix_ms);
    let other = start(2);
    assert!(
        other.measured_unix_ms > first.measured_unix_ms,
        "another number of threads"
    );
    assert_eq!(read().as_array().map(Vec::len), Some(2));
    std::fs::write(&file, "{").expect("written");
    let anew = start(1);
    assert!(
        anew.write_per_second < 12_345.0 && anew.measured_unix_ms > other.measured_unix_ms,
        "a broken file"
    );
    assert_eq!(read().as_array().map(Vec::len), Some(1));
}
