//! The shipped configuration is what the program means, and a real model earns its living through the worker's seams.

use std::sync::Mutex;

use horde_client::kind::{Generation, PoppedJob};
use horde_client::text::{Payload, Submission};
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

fn models_dir() -> std::path::PathBuf {
    std::env::var_os("HORDE_WORKERS_MODELS")
        .map(Into::into)
        .unwrap_or_else(|| {
            std::path::PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/horde-workers/models")
        })
}

fn job(payload: serde_json::Value) -> PoppedJob<Payload> {
    PoppedJob {
        generations: vec![Generation {
            id: serde_json::from_value("eaea5304-01f0-4e9a-864d-028665a62de4".into()).expect("an id"),
            upload: None,
        }],
        model: None,
        ttl: None,
        payload: Ok(Payload::Prompt(Box::new(
            serde_json::from_value(payload).expect("tolerated"),
        ))),
    }
}

fn backend() -> text_worker::ScribeBackend {
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
    text_worker::ScribeBackend::new(
        common,
        Config::default(),
        text_worker::Served::File("koboldcpp/SmolLM2-135M-Instruct".into()),
    )
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
