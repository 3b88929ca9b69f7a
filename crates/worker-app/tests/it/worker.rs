//! Whole workers: the `echo` example as a real process with a real engine child, against a Horde on loopback.

use std::time::{Duration, Instant};

use local_horde::WORKER_KEY;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::echo::{Echo, Hosted, PATIENCE};

#[test]
fn a_worker_starts_serves_pauses_resumes_and_finishes() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let started = Instant::now();
    let worker = echo.start();
    echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    // The promise is one second; a busy machine gets the tenfold.
    assert!(started.elapsed() < Duration::from_secs(10));
    for _ in 0..3 {
        hosted.ask("CANARYPROMPT hello");
    }
    let status = echo.wait_for("three deliveries", |status| {
        status["status"]["totals"]["submitted"] == 3
    });
    assert_eq!(status["worker_name"], "echo-tester");
    assert_eq!(worker.engines().len(), 1);

    let paused = echo.output(&["pause", "2h"]);
    assert_eq!(paused.code, 0);
    assert!(paused.stdout.contains("pauses for 2 h 00 min"), "{}", paused.stdout);
    echo.wait_for("the pause", |status| {
        status["status"]["devices"][0]["state"] == "stopped"
    });
    assert!(worker.engines().is_empty(), "a pause gives all device memory back");
    assert_eq!(echo.output(&["resume"]).code, 0);
    echo.wait_for("serving again", |status| {
        status["status"]["devices"][0]["state"] == "ready"
    });

    assert_eq!(echo.output(&["finish"]).code, 0);
    let (code, log) = worker.end();
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("CANARYPROMPT") && !log.contains(WORKER_KEY), "{log}");
    let told = std::fs::read_to_string(echo.state_dir().join("status.json")).unwrap();
    assert!(!told.contains("CANARYPROMPT") && !told.contains(WORKER_KEY));
    assert!(
        log.lines()
            .filter(|line| line.starts_with('{'))
            .all(|line| serde_json::from_str::<Value>(line).is_ok())
    );
    assert_eq!(echo.status(), json!({ "running": false }));
}

#[test]
fn nothing_listens_and_the_key_is_not_handed_on() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let worker = echo.start();
    let status = echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    let engines = worker.engines();
    assert_eq!(engines.len(), 1);
    for pid in engines.iter().chain([&worker.child.id()]) {
        match listening(*pid) {
            Some(sockets) => assert_eq!(sockets, Vec::<String>::new(), "pid {pid}"),
            // Only root may look into a supervisor that has closed its memory; then the kernel's word must do.
            None => assert_eq!(status["sandbox"], "listening on TCP is denied by the kernel (Landlock)"),
        }
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&command_line).contains(WORKER_KEY));
    }
    let environment = std::fs::read(format!("/proc/{}/environ", engines[0])).unwrap();
    assert!(
        !String::from_utf8_lossy(&environment).contains(WORKER_KEY),
        "the engine must not get the key"
    );
}

/// Sockets of `pid` that listen: inodes of its descriptors found in LISTEN state. `None` when it may not be looked into.
fn listening(pid: u32) -> Option<Vec<String>> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let inodes: Vec<String> = links
        .filter_map(|link| std::fs::read_link(link.path()).ok())
        .filter_map(|target| {
            Some(
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .trim_end_matches(']')
                    .to_owned(),
            )
        })
        .collect();
    let listening = ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
        .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(3) == Some(&"0A") && fields.get(9).is_some_and(|inode| inodes.iter().any(|own| own == inode))
        })
        .collect();
    Some(listening)
}

#[test]
fn f078_a_second_instance_is_75_and_names_the_first() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let worker = echo.start();
    echo.wait_for("the start", |status| status["running"] == true);
    let second = echo.output(&["--log", "text"]);
    assert_eq!(second.code, 75);
    assert!(
        second.stderr.contains(&format!("pid {}", worker.child.id())),
        "{}",
        second.stderr
    );
}

#[test]
fn f060_f076_after_sigkill_the_engine_is_gone_and_a_new_start_is_free() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let worker = echo.start();
    echo.wait_for("a ready engine", |status| {
        status["status"]["devices"][0]["state"] == "ready"
    });
    let engine = worker.engines()[0];
    worker.signal(Signal::SIGKILL);
    drop(worker);
    let give_up = Instant::now() + PATIENCE;
    while is_alive(engine) {
        assert!(Instant::now() < give_up, "the engine outlives its supervisor");
        std::thread::sleep(Duration::from_millis(10));
    }
    let _next = echo.start();
    echo.wait_for("the next start", |status| status["running"] == true);
}

fn is_alive(pid: u32) -> bool {
    // A zombie that waits for its new parent has ended.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.trim_start().starts_with('Z'))
    })
}

#[test]
fn f057_f058_f059_signals_drain_then_hand_back_then_leave() {
    let hosted = Hosted::new();
    // It takes 100 s, which is within lease and grace: only handing back ends it soon.
    let echo = hosted
        .echo()
        .env("ECHO_WORD_MS", "100")
        .env("ECHO_WORDS", "1000")
        .env("HORDE_GRACE", "2m");
    let worker = echo.start();
    hosted.ask("a long answer");
    echo.wait_for("a running job", |status| {
        status["status"]["jobs"][0]["stage"] == "running"
    });
    worker.signal(Signal::SIGTERM);
    echo.wait_for("the drain", |status| status["status"]["state"] == "stopping");
    worker.signal(Signal::SIGINT);
    let (code, log) = worker.end();
    assert_eq!(code, 0, "{log}");
    let summary = hosted.horde.state().ledger.summary();
    assert_eq!(hosted.horde.state().ledger.open(), Vec::<&str>::new(), "{summary:?}");

    let worker = echo.start();
    echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    let asked = Instant::now();
    worker.signal(Signal::SIGQUIT);
    worker.end();
    assert!(asked.elapsed() < Duration::from_secs(5));
}

#[test]
fn without_a_network_the_worker_keeps_trying_and_says_so() {
    let echo = Echo::at("http://127.0.0.1:9/api");
    let worker = echo.start();
    let status = echo.wait_for("a failed pop", |status| {
        status["status"]["poll"]["failed"].as_u64() > Some(0)
    });
    let why = echo.wait_for("the reason", |status| status["status"]["idle"].is_string());
    assert!(
        why["status"]["idle"]
            .as_str()
            .unwrap()
            .contains("could not reach `127.0.0.1`"),
        "{status}"
    );
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.end().0, 0);
}

#[test]
fn the_supervisor_is_small() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let worker = echo.start();
    echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 64 * 1024, "{kib} KiB resident");
}

#[test]
fn f118_a_configuration_that_is_edited_broken_or_gone_while_the_worker_runs_changes_nothing_until_the_next_start() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("watched.toml");
    std::fs::write(&file, "nsfw = true\n").unwrap();
    let worker = echo.start_with(&["--config", &file.display().to_string()]);
    let served = |n: u64| {
        hosted.ask("hello");
        echo.wait_for("a delivery", |status| status["status"]["totals"]["submitted"] == n);
    };
    served(1);
    // Half written, replaced by renaming, and gone.
    std::fs::write(&file, "worker_name = \"echo-te").unwrap();
    served(2);
    let beside = file.with_extension("new");
    std::fs::write(&beside, "no_such_key = 1\n").unwrap();
    std::fs::rename(&beside, &file).unwrap();
    served(3);
    std::fs::remove_file(&file).unwrap();
    served(4);
    assert_eq!(echo.output(&["finish"]).code, 0);
    let (code, log) = worker.end();
    assert_eq!(code, 0, "{log}");
}
