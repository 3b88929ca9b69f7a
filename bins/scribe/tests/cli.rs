//! The binary's own promises: it starts, says what it is, and refuses a model it cannot use with words and code 66.

use std::path::Path;
use std::process::{Command, Output};

fn scribe(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_scribe"))
        .args(arguments)
        .env_clear()
        .env("HOME", folder)
        .env("HORDE_URL", "http://127.0.0.1:9/api/")
        .env("HORDE_API_KEY", "a-key-of-nobody-at-all")
        .output()
        .expect("the binary starts")
}

fn refused(model: &Path, folder: &Path, words: &str) {
    let config = folder.join("scribe.toml");
    let text = format!(
        "worker_name = \"a test of scribe\"\n[scribe]\nmodel = {:?}\n",
        model.display().to_string()
    );
    std::fs::write(&config, text).expect("the folder can be written");
    let output = scribe(folder, &["run", "--config", &config.display().to_string()]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(66), "{errors}");
    assert!(errors.contains(words) && errors.contains("hint:"), "{errors}");
}

#[test]
fn help_names_the_worker() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = scribe(folder.path(), &["--help"]);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("Writes text for the AI Horde"),
        "{output:?}"
    );
}

#[test]
fn a_model_that_is_missing_or_broken_ends_with_66_and_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    refused(&folder.path().join("nowhere.gguf"), folder.path(), "nowhere.gguf");
    let broken = folder.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").expect("the folder can be written");
    refused(&broken, folder.path(), "number of tensors");
}

#[test]
fn numbers_beyond_reason_end_with_78_the_key_and_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("scribe.toml");
    for (line, key, hint) in [
        (
            "[scribe.llama]\ncontext_tokens = 1_000_000_000",
            "`scribe.llama.context_tokens` is `1000000000`",
            "256 to 1048576",
        ),
        (
            "[scribe.llama]\nslots = 1_000_000",
            "`scribe.llama.slots` is `1000000`",
            "1 to 64",
        ),
        (
            "[scribe.llama]\nbatch_tokens = 0",
            "`scribe.llama.batch_tokens` is `0`",
            "32 to 512",
        ),
        (
            "[scribe]\nmax_length = 1_000_000",
            "`scribe.max_length` is `1000000`",
            "16 to 16384",
        ),
        ("[scribe.llama]\nslots = -1", "slots", "hint:"),
        ("[scribe.llama]\nslots = 99999999999999999999", "scribe.toml", "hint:"),
    ] {
        std::fs::write(&config, format!("worker_name = \"a test of scribe\"\n{line}\n")).expect("written");
        for verb in ["run", "doctor"] {
            let output = scribe(folder.path(), &[verb, "--config", &config.display().to_string()]);
            let text = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
            assert_eq!(output.status.code(), Some(78), "{verb}, {line}: {text}");
            assert!(text.contains(key) && text.contains(hint), "{verb}, {line}: {text}");
        }
    }
}

#[test]
fn doctor_says_what_will_fit_before_anything_is_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let models = test_support::models_dir();
    let config = folder.path().join("scribe.toml");
    let memory = |slots: u32| {
        let text =
            format!("worker_name = \"a test of scribe\"\nmodels_dir = {models:?}\n[scribe.llama]\nslots = {slots}\n");
        std::fs::write(&config, text).expect("written");
        let output = scribe(
            folder.path(),
            &["doctor", "--json", "--config", &config.display().to_string()],
        );
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let checks = report["checks"].as_array().cloned().unwrap_or_default();
        let memory = checks
            .into_iter()
            .find(|check| check["name"] == "memory")
            .expect("a check of memory");
        (
            memory["verdict"].clone(),
            memory["message"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let (verdict, message) = memory(2);
    assert_eq!(verdict, "ok", "{message}");
    assert!(
        message.contains("2 slots of 4096 tokens: weights 92 MiB + cache 180 MiB + work space 111 MiB"),
        "{message}"
    );
    assert!(memory(64).1.contains("64 slots of 4096 tokens"));
}

#[test]
fn models_can_be_listed_and_a_wrong_name_is_answered_with_the_right_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = scribe(folder.path(), &["models", "list", "--all"]);
    let text = String::from_utf8_lossy(&list.stdout);
    assert!(list.status.success(), "{list:?}");
    assert!(
        text.contains("missing") && text.contains("smollm2-135m-instruct") && !text.contains("esrgan"),
        "{text}"
    );
    let wrong = scribe(folder.path(), &["models", "pull", "smollm2-135m"]);
    let errors = String::from_utf8_lossy(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(66), "{errors}");
    assert!(errors.contains("did you mean `smollm2-135m-instruct`"), "{errors}");
    let verify = scribe(folder.path(), &["models", "verify", "smollm2-135m-instruct", "--json"]);
    assert_eq!(verify.status.code(), Some(1), "{verify:?}");
    let outcome: String = String::from_utf8_lossy(&verify.stdout).into_owned();
    assert!(outcome.contains(r#""state":"missing""#), "{outcome}");
}

#[test]
fn a_pickle_is_converted_by_the_program_itself_with_an_empty_environment() {
    let pickle = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../crates/model-store/tests/fixtures/torch/zip.pt"
    );
    let output = Command::new(env!("CARGO_BIN_EXE_scribe"))
        .args(["models", "convert-pickle"])
        .env_clear()
        .stdin(std::fs::File::open(pickle).expect("a pickle"))
        .output()
        .expect("scribe runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (length, rest) = output.stdout.split_at_checked(8).expect("a safetensors head");
    let length = usize::try_from(u64::from_le_bytes(length.try_into().expect("8 bytes"))).expect("a length");
    assert!(rest.len() > length && rest.starts_with(b"{"));
}
