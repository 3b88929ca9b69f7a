//! The binary's own promises: it starts, says what it is, and refuses what it cannot serve with words and a code.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn alchemist(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_alchemist"))
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
    let config = folder.path().join("alchemist.toml");
    let text = format!("worker_name = \"a test of alchemist\"\nhorde_url = \"http://127.0.0.1:9/api/\"\n{section}\n");
    std::fs::write(&config, text).expect("the folder can be written");
    let output = alchemist(folder.path(), &["run", "--config", &config.display().to_string()]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{section}: {errors}");
    for words in words.iter().chain(&["hint:"]) {
        assert!(errors.contains(words), "{section}: `{words}` is not in: {errors}");
    }
}

#[test]
fn help_names_the_worker() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = alchemist(folder.path(), &["--help"]);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("Upscales, repairs, cuts out"),
        "{output:?}"
    );
}

#[test]
fn forms_without_files_end_with_66_and_unknown_forms_with_the_nearest_name() {
    refused("[alchemist]\nforms = [\"caption\"]", 66, &["no form has all its files"]);
    refused(
        "[alchemist]\nforms = [\"captoin\"]",
        78,
        &["`captoin`", "did you mean `caption`?"],
    );
    refused(
        "[alchemist]\nforms = [\"divination\"]",
        78,
        &["`divination`", "the forms are caption, "],
    );
}

#[test]
fn models_can_be_listed_and_a_wrong_name_is_answered_with_a_hint() {
    let folder = tempfile::tempdir().expect("a folder");
    let list = alchemist(folder.path(), &["models", "list", "--all"]);
    assert!(list.status.success(), "{list:?}");
    let wrong = alchemist(folder.path(), &["models", "pull", "no-such-model"]);
    let errors = String::from_utf8_lossy(&wrong.stderr);
    assert_eq!(wrong.status.code(), Some(66), "{errors}");
    assert!(errors.contains("hint:"), "{errors}");
}

#[test]
fn doctor_of_a_new_user_tells_forms_without_files_in_one_line_and_named_ones_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let told = |forms: &str| {
        let doctor = Command::new(env!("CARGO_BIN_EXE_alchemist"))
            .args(["doctor", "--horde-url", "http://127.0.0.1:9/api"])
            .env_clear()
            .env("HOME", folder.path())
            .env("ALCHEMIST_FORMS", forms)
            .output()
            .expect("the binary starts");
        String::from_utf8(doctor.stdout).expect("it is text")
    };
    let all = told("");
    let lines: Vec<&str> = all.lines().filter(|line| line.contains("RealESRGAN_x4plus")).collect();
    assert_eq!(lines.len(), 1, "{all}");
    assert!(
        lines[0].starts_with("ok    other forms: ") && lines[0].contains("caption"),
        "{all}"
    );
    assert!(all.contains("ok    vectorize: it needs no file"), "{all}");
    assert!(
        all.contains("hint: `alchemist models pull ") && all.contains("open-nsfw"),
        "{all}"
    );
    let named = told("vectorize,nsfw");
    assert!(named.contains("warn  nsfw: not offered: "), "{named}");
    assert!(named.contains("hint: `alchemist models pull open-nsfw`"), "{named}");
}

#[test]
fn setup_without_questions_proposes_what_a_processor_can_do_and_run_takes_what_it_wrote() {
    let folder = tempfile::tempdir().expect("a folder");
    let nowhere = ["--horde-url", "http://127.0.0.1:9/api"];
    let say = |verb: &[&str]| alchemist(folder.path(), &[verb, &nowhere[..]].concat());
    let setup = say(&["setup", "--yes", "--name", "a test of alchemist"]);
    let said = String::from_utf8_lossy(&setup.stdout);
    assert!(setup.status.success(), "{setup:?}");
    let text = std::fs::read_to_string(folder.path().join(".config/horde-workers/alchemist.toml"));
    let text = text.expect("the configuration was written");
    let forms = text.lines().find(|line| line.starts_with("forms = ")).expect("forms");
    // The least a machine of one core and 2 GiB gets; the quick ones need no file, so it serves before anything is fetched.
    for form in ["vectorize", "annotation", "nsfw", "strip_background"] {
        assert!(forms.contains(&format!("\"{form}\"")), "{form}: {forms}");
    }
    let pull = said
        .lines()
        .find(|line| line.contains("`alchemist models pull "))
        .expect("what to fetch");
    assert!(pull.contains(" open-nsfw") && pull.contains(" u2netp"), "{pull}");

    let mut run = Command::new(env!("CARGO_BIN_EXE_alchemist"))
        .args([&["run", "--log", "text"], &nowhere[..]].concat())
        .env_clear()
        .env("HOME", folder.path())
        .env("HORDE_API_KEY", "a-key-of-nobody-at-all")
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("the binary starts");
    let limit = Instant::now() + Duration::from_secs(60);
    let status = loop {
        let status = String::from_utf8_lossy(&say(&["status"]).stdout).into_owned();
        if status.contains("device light: ready") || Instant::now() > limit {
            break status;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let stopped = say(&["stop"]).status;
    let ended = run.wait().expect("it can be waited for");
    assert!(status.contains("device light: ready"), "{status}");
    assert!(stopped.success() && ended.success(), "{stopped} {ended}");
}
