//! The live display, drawn into memory at several sizes.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use worker_app::display::draw;
use worker_app::state::StatusFile;
use worker_runtime::Status;
use worker_runtime::status::{DeviceStatus, Event, JobStatus, Level, ServerMessage, Stage, State, Totals};

fn drawn(file: &StatusFile, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, file)).unwrap();
    terminal.backend().to_string()
}

pub fn busy() -> StatusFile {
    StatusFile {
        program: "scribe".to_owned(),
        version: "0.1.0".to_owned(),
        pid: 4711,
        worker_name: "kitchen-scribe".to_owned(),
        bridge_agent: "scribe:0.1.0:https://example.org".to_owned(),
        horde_url: "https://aihorde.net/api/".to_owned(),
        unit: "tokens".to_owned(),
        sandbox: "none".to_owned(),
        log_lines_dropped: 0,
        log_warnings: 0,
        log_file: Some("/state/worker.log".into()),
        status: Status {
            kind: "text".to_owned(),
            state: State::Running,
            jobs: vec![
                JobStatus {
                    id: "3f2a1b0c".to_owned(),
                    model: Some("koboldcpp/Llama-3-8B".to_owned()),
                    generations: 1,
                    stage: Stage::Running,
                    device: Some("cuda:0".to_owned()),
                    done: 128,
                    total: 512,
                    phase: "writing".to_owned(),
                    rate: Some(48.25),
                    eta_s: Some(8.0),
                    age_s: 4.5,
                    ttl_s: 150.0,
                },
                JobStatus {
                    id: "77aa0102".to_owned(),
                    model: Some("koboldcpp/Llama-3-8B".to_owned()),
                    generations: 3,
                    stage: Stage::Waiting,
                    age_s: 1.0,
                    ttl_s: 150.0,
                    ..JobStatus::default()
                },
            ],
            outbox: 2,
            devices: vec![
                DeviceStatus {
                    name: "cuda:0".to_owned(),
                    state: "ready".to_owned(),
                    capacity: 1,
                    running: 1,
                    busy_fraction: 0.987,
                    ..DeviceStatus::default()
                },
                DeviceStatus {
                    name: "cuda:1".to_owned(),
                    state: "failed".to_owned(),
                    reason: Some("it ended (signal: 9)".to_owned()),
                    ..DeviceStatus::default()
                },
            ],
            totals: Totals {
                submitted: 1234,
                faulted: 5,
                expired: 1,
                kudos: 20_345.5,
                units: 1e6,
            },
            kudos_per_hour: 812.3,
            busy_fraction: 0.97,
            events: [
                (90_000, Level::Good, "60e6887e done, 12.1 kudos"),
                (30_000, Level::Warning, "a job was handed back"),
                (2_000, Level::Bad, "cuda:1: it ended \u{1b}[2J(signal: 9)"),
            ]
            .map(|(ago_ms, level, text)| Event {
                at_unix_ms: 1_000_000 - ago_ms,
                level,
                text: text.to_owned(),
            })
            .into(),
            messages: vec![ServerMessage {
                id: "m1".to_owned(),
                text: format!("Maintenance on Sunday.\r\u{1b}[31m {}", "more ".repeat(200)),
                origin: Some("AI Horde".to_owned()),
            }],
            uptime_s: 8_000.0,
            updated_unix_ms: 1_000_000,
            ..Status::default()
        },
    }
}

#[test]
fn a_busy_worker_at_80_by_24() {
    insta::assert_snapshot!(drawn(&busy(), 80, 24));
}

#[test]
fn a_busy_worker_at_120_by_32() {
    insta::assert_snapshot!(drawn(&busy(), 120, 32));
}

#[test]
fn a_small_terminal_shows_the_most_important_lines() {
    insta::assert_snapshot!(drawn(&busy(), 60, 8));
}

#[test]
fn an_idle_worker_says_why() {
    let mut file = busy();
    file.status.jobs.clear();
    file.status.messages.clear();
    file.status.outbox = 0;
    file.status.idle = Some("the Horde has no work for this worker; passed over: 7 for models".to_owned());
    file.status.poll.skipped = [("models".to_owned(), 7), ("nsfw".to_owned(), 2)].into();
    file.log_lines_dropped = 12;
    file.log_warnings = 2;
    insta::assert_snapshot!(drawn(&file, 80, 16));
    file.log_file = Some(format!("/{}/worker.log", "state".repeat(20)));
    assert!(drawn(&file, 80, 16).contains(" Events · 2 warnings in worker.log of the state directory "));
}

#[test]
fn a_starting_and_a_paused_worker_have_something_to_show() {
    let mut file = StatusFile {
        program: "dreamer".to_owned(),
        version: "0.1.0".to_owned(),
        ..StatusFile::default()
    };
    let starting = drawn(&file, 60, 14);
    file.status.state = State::Paused;
    file.status.paused_until_unix_ms = Some(5_400_000);
    file.status.idle = Some("paused by its owner".to_owned());
    insta::assert_snapshot!(format!("{starting}\n{}", drawn(&file, 60, 14)));
}

#[test]
fn no_size_and_no_figure_breaks_the_drawing() {
    let mut file = busy();
    file.status.kudos_per_hour = f64::NAN;
    file.status.busy_fraction = f64::INFINITY;
    file.status.uptime_s = -1.0;
    file.status.jobs[0].rate = Some(f64::NAN);
    file.status.jobs[0].eta_s = Some(f64::INFINITY);
    file.status.jobs[0].done = u32::MAX;
    file.status.jobs[0].total = 0;
    file.status.updated_unix_ms = i64::MIN;
    file.worker_name = "日本語".repeat(200);
    for width in [1, 2, 3, 10, 39, 40, 41, 80, 300] {
        for height in [1, 2, 5, 11, 12, 13, 24, 100] {
            let picture = drawn(&file, width, height);
            assert!(!picture.contains('\u{1b}'));
        }
    }
}

#[test]
fn status_says_the_same_in_lines() {
    insta::assert_snapshot!(worker_app::verbs::status::report(&busy()));
}
