//! The binary's own promises: it starts, says what it is, and refuses what it cannot serve with words and a code.

use std::path::Path;
use std::process::{Command, Output};

fn dreamer(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dreamer"))
        .args(arguments)
        .env_clear()
        .env("HOME", folder)
        .env("HORDE_API_KEY", "a-key-of-nobody-at-all")
        .output()
        .expect("the binary starts")
}

/// Runs with `section` as its configuration and expects the code, the words and a hint.
fn refused(section: &str, code: i32, words: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("dreamer.toml");
    let elsewhere = section.starts_with("horde_url");
    let url = if elsewhere {
        ""
    } else {
        "horde_url = \"http://127.0.0.1:9/api/\"\n"
    };
    let text = format!("worker_name = \"a test of dreamer\"\n{url}{section}\n");
    std::fs::write(&config, text).expect("the folder can be written");
    let output = dreamer(folder.path(), &["run", "--config", &config.display().to_string()]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{section}: {errors}");
    for words in words.iter().chain(&["hint:"]) {
        assert!(errors.contains(words), "{section}: `{words}` is not in: {errors}");
    }
}

#[test]
fn help_names_the_worker() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = dreamer(folder.path(), &["--help"]);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("Makes pictures for the AI Horde"),
        "{output:?}"
    );
}

#[test]
fn no_models_and_unknown_models_are_refused_with_the_way_out() {
    refused("[dreamer]\nmodels = []", 78, &["dreamer.models"]);
    refused(
        "[dreamer]\nmodels = [\"a model of nobody\"]\nunchecked_on_loopback = true",
        78,
        &["a model of nobody"],
    );
}

#[test]
fn numbers_out_of_their_range_are_refused_by_name() {
    refused("[dreamer]\nmodels = [\"m\"]\nmax_power = 0", 78, &["max_power"]);
    refused("[dreamer]\nmodels = [\"m\"]\nmax_batch = 21", 78, &["max_batch"]);
    refused(
        "[dreamer]\nmodels = [\"m\"]\nmodels_in_memory = 99",
        78,
        &["models_in_memory"],
    );
}

#[test]
fn an_unchecked_worker_is_refused_for_a_horde_elsewhere() {
    refused(
        "horde_url = \"https://horde.example/api/\"\n[dreamer]\nmodels = [\"m\"]\nunchecked_on_loopback = true",
        78,
        &["unchecked_on_loopback"],
    );
}

#[test]
fn models_can_be_listed_and_a_wrong_name_is_answered_with_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = dreamer(folder.path(), &["models", "list", "--all"]);
    assert!(list.status.success(), "{list:?}");
    let wrong = dreamer(folder.path(), &["models", "pull", "no-such-model"]);
    let errors = String::from_utf8_lossy(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(66), "{errors}");
    assert!(errors.contains("hint:"), "{errors}");
}

#[test]
fn models_alone_says_what_is_missing_and_doctor_says_each_thing_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let alone = dreamer(folder.path(), &["models"]);
    let errors = String::from_utf8_lossy(&alone.stderr);
    assert_eq!(alone.status.code(), Some(64), "{errors}");
    assert_eq!(
        errors,
        "error: `dreamer models` needs a verb of its own\nhint: `dreamer models --help` lists them\n"
    );
    let doctor = dreamer(folder.path(), &["doctor", "--horde-url", "http://127.0.0.1:9/api"]);
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert_eq!(said.matches("`dreamer.models` is empty").count(), 1, "{said}");
}

#[test]
fn setup_and_doctor_of_a_new_user_name_all_that_is_to_be_fetched() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = ["--horde-url", "http://127.0.0.1:9/api"];
    let setup = dreamer(
        folder.path(),
        &[&["setup", "--yes", "--name", "a test of dreamer"], &nowhere[..]].concat(),
    );
    let said = String::from_utf8_lossy(&setup.stdout);
    let pull = "`dreamer models pull stable_diffusion clip-vit-large-patch14`";
    assert!(setup.status.success() && said.contains(pull), "{setup:?}");

    let doctor = dreamer(folder.path(), &[&["doctor"], &nowhere[..]].concat());
    let said = String::from_utf8_lossy(&doctor.stdout);
    for part in [
        "FAIL  models: `stable_diffusion` cannot be served",
        "hint: `dreamer models pull stable_diffusion`",
        "FAIL  content check:",
        "hint: `dreamer models pull clip-vit-large-patch14`",
    ] {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
    assert!(
        said.ends_with("checks failed: Horde, models, content check; 1 warning.\n"),
        "{said}"
    );
}
