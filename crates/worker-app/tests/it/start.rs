//! Before a worker works: reasons not to start, what doctor sees, what setup writes.

use std::path::Path;
use std::process::Stdio;

use local_horde::WORKER_KEY;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::echo::{Echo, Hosted};

#[test]
fn each_reason_not_to_start_has_its_code_one_message_and_a_hint() {
    let hosted = Hosted::new();
    let base = hosted.running.base();
    let named = || Echo::at(&base);
    let cases: Vec<(&str, i32, Echo)> = vec![
        ("no key", 78, Echo::new().env("ECHO_WORKER_NAME", "echo-tester")),
        ("no name", 78, Echo::new().env("HORDE_API_KEY", WORKER_KEY)),
        (
            "unknown key",
            78,
            named().env("HORDE_API_KEY", "nobodyhasthiskey000000"),
        ),
        ("value out of range", 78, named().env("ECHO_WORDS", "0")),
        ("no model", 66, named().env("ECHO_MODELS", "[]")),
        ("broken model", 66, named().env("ECHO_FAIL", "model")),
        ("no such device", 69, named().env("HORDE_DEVICES", "cuda:7")),
        ("broken device", 69, named().env("ECHO_FAIL", "device")),
        (
            "no state directory",
            73,
            named().env("HORDE_STATE_DIR", "/proc/nowhere"),
        ),
    ];
    let mut told = String::new();
    for (what, code, echo) in cases {
        let output = echo.output(&["--log", "text", "--log-level", "off"]);
        let stderr = output.stderr.replace(&*echo.home.path().to_string_lossy(), "~");
        assert_eq!(output.code, code, "{what}: {stderr}");
        told.push_str(&format!("── {what}: exit {code}\n{stderr}"));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn a_name_that_belongs_to_somebody_else_is_78_before_any_work_and_doctor_sees_it() {
    let hosted = Hosted::new();
    let pop = json!({ "name": "echo-tester", "models": ["echo/one"], "bridge_agent": "other:1:x" });
    hosted
        .horde
        .call("POST", "generate/text/pop", local_horde::CLIENT_KEY, &pop)
        .unwrap();
    let echo = hosted.echo();
    let output = echo.output(&["--log", "text", "--log-level", "off"]);
    assert_eq!(output.code, 78, "{}", output.stderr);
    assert!(
        output
            .stderr
            .contains("choose another `worker_name` than `echo-tester`"),
        "{}",
        output.stderr
    );
    let found = echo.output(&["doctor"]);
    assert_eq!(found.code, 78, "{}", found.stdout);
    assert!(
        found
            .stdout
            .contains("FAIL  worker name: `echo-tester` belongs to another account"),
        "{}",
        found.stdout
    );
}

#[test]
fn doctor_looks_at_everything_and_its_code_is_that_of_the_first_failure() {
    let hosted = Hosted::new();
    let output = hosted.echo().output(&["doctor", "--json"]);
    let found: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((output.code, &found["exit_code"]), (0, &json!(0)), "{found:#}");
    let verdicts: Vec<String> = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["name"] != "sandbox" && check["name"] != "read speed (models)")
        .map(|check| {
            format!(
                "{}: {}",
                check["name"].as_str().unwrap(),
                check["verdict"].as_str().unwrap()
            )
        })
        .collect();
    insta::assert_snapshot!(verdicts.join("\n"));
    assert!(!output.stdout.contains(WORKER_KEY));

    let no_model = hosted.echo().env("ECHO_MODELS", "[]").output(&["doctor"]);
    assert_eq!(no_model.code, 66);
    assert!(
        no_model.stdout.contains("FAIL  models: no model is configured"),
        "{}",
        no_model.stdout
    );
    let bad_key = hosted
        .echo()
        .env("HORDE_API_KEY", "nobodyhasthiskey000000")
        .output(&["doctor"]);
    assert_eq!(bad_key.code, 78, "{}", bad_key.stdout);
    let offline = Echo::at("http://127.0.0.1:9/api").output(&["doctor"]);
    assert_eq!(offline.code, 1);
    assert!(
        offline.stdout.contains("FAIL  Horde: `127.0.0.1` cannot be used"),
        "{}",
        offline.stdout
    );
}

#[test]
fn setup_asks_four_things_and_what_it_writes_runs() {
    use std::io::Write;
    let hosted = Hosted::new();
    let mut echo = Echo::new();
    echo.horde_url = hosted.running.base();
    let mut child = echo
        .command(&["setup"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let answers = format!("0000000000\n{WORKER_KEY}\ncolab\nkitchen echo\n7\n1\n2\n");
    child.stdin.take().unwrap().write_all(answers.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!said.contains(WORKER_KEY));
    let config = echo.home.path().join(".config/horde-workers/echo.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("worker_name = \"kitchen echo\""), "{text}");
    assert!(
        text.contains("devices = [\"cpu\"]") && text.contains("models = [\"echo/two\"]"),
        "{text}"
    );
    for file in [
        config.as_path(),
        &echo.home.path().join(".config/horde-workers/api-key"),
    ] {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    assert_eq!(
        echo.output(&["setup"]).code,
        64,
        "an existing configuration is not overwritten"
    );
    assert_eq!(std::fs::read_to_string(&config).unwrap(), text);

    let worker = echo.start();
    let status = echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    assert_eq!(status["worker_name"], "kitchen echo");
    worker.signal(Signal::SIGINT);
    assert_eq!(worker.end().0, 0);
}

#[test]
fn setup_takes_over_what_a_python_worker_was_told() {
    use std::io::Write;
    let hosted = Hosted::new();
    let mut echo = Echo::new();
    echo.horde_url = hosted.running.base();
    let yaml = echo.home.path().join("bridgeData.yaml");
    let text = format!(
        "api_key: \"{WORKER_KEY}\"\nworker_name: 'old faithful'\npriority_usernames:\n  - friend#12\nnsfw: false\nmax_power: 8\n"
    );
    std::fs::write(&yaml, text).unwrap();
    let mut child = echo
        .command(&["setup", "--import", yaml.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"1\n1\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("Not taken over") && said.contains("max_power") && !said.contains(WORKER_KEY),
        "{said}"
    );
    let text = std::fs::read_to_string(echo.home.path().join(".config/horde-workers/echo.toml")).unwrap();
    for line in [
        "worker_name = \"old faithful\"",
        "priority_usernames = [\"friend#12\"]",
        "nsfw = false",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(echo.output(&["doctor"]).code, 0);
    let missing = echo.output(&["setup", "--import", "/nowhere.yaml"]);
    assert_eq!(missing.code, 64, "{}", missing.stderr);
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}
