//! Engines in real child processes, on the real clock: whatever they do, one job ends and the worker goes on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker_runtime::backend::Fault;
use worker_runtime::device::{ChildCommand, ChildDevice, Device, DeviceState, Progress, RunLine, RunResult};

use crate::toy::ToyWork;

type Toys = ChildDevice<ToyWork, String>;

fn device(config: serde_json::Value) -> Arc<Toys> {
    device_in(config, Some(Duration::from_secs(20)))
}

/// As [`device`], with this much time to load.
fn device_in(config: serde_json::Value, load_timeout: Option<Duration>) -> Arc<Toys> {
    let command = ChildCommand {
        program: env!("CARGO_BIN_EXE_toy-engine").into(),
        args: Vec::new(),
        env: Vec::new(),
        config,
        load_timeout,
    };
    Arc::new(ChildDevice::new("toy:0", command))
}

async fn until(device: &Toys, what: impl FnMut(&DeviceState) -> bool) -> DeviceState {
    let mut state = device.state();
    let reached = tokio::time::timeout(Duration::from_secs(20), state.wait_for(what)).await;
    reached.expect("in time").expect("a keeper").clone()
}

async fn ready(device: &Toys) {
    device.start();
    until(device, |state| matches!(state, DeviceState::Ready(_))).await;
}

fn work(steps: u32, step_ms: u64, end: &str) -> ToyWork {
    ToyWork {
        ids: vec!["a".to_owned()],
        steps,
        step_ms,
        prepare_ms: 0,
        end: end.to_owned(),
    }
}

async fn run(device: &Toys, work: ToyWork) -> RunResult<String> {
    let line = RunLine {
        progress: watch::channel(Progress::default()).0,
        cancel: CancellationToken::new(),
    };
    tokio::time::timeout(Duration::from_secs(20), device.run(work, line))
        .await
        .expect("in time")
}

#[tokio::test]
async fn a_child_loads_runs_jobs_side_by_side_and_tells_its_progress() {
    let device = device(serde_json::json!({ "capacity": 2 }));
    ready(&device).await;
    let (progress, mut news) = watch::channel(Progress::default());
    let watched = tokio::spawn(async move {
        news.wait_for(|progress| progress.done == 2)
            .await
            .map(|seen| seen.clone())
    });
    let line = RunLine {
        progress,
        cancel: CancellationToken::new(),
    };
    let started = Instant::now();
    let (one, two) = tokio::join!(device.run(work(3, 100, ""), line), run(&device, work(3, 100, "print")));
    assert!(
        started.elapsed() < Duration::from_millis(550),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(one, Ok(vec![Ok("result of a".to_owned())]));
    assert_eq!(one, two, "a print to stdout does not get between the frames");
    assert_eq!(watched.await.expect("no panic").expect("seen").total, 3);
    device.stop().await;
    assert_eq!(*device.state().borrow(), DeviceState::Stopped);
    assert_eq!(
        run(&device, work(1, 1, "")).await,
        Err(Fault::of_worker("the engine is not running"))
    );
}

#[tokio::test]
async fn an_idle_child_tells_what_has_changed_by_itself() {
    let folder = tempfile::tempdir().expect("a folder");
    let mood = folder.path().join("mood");
    std::fs::write(&mood, "poor").expect("written");
    let device = device(serde_json::json!({ "mood": mood }));
    ready(&device).await;
    let says = |word: &'static str| move |state: &DeviceState| matches!(state, DeviceState::Ready(report) if report.facts["mood"] == word);
    until(&device, says("poor")).await;
    std::fs::write(&mood, "rich").expect("written");
    until(&device, says("rich")).await;
    device.stop().await;
}

#[tokio::test]
async fn f073_a_panic_costs_one_job_and_the_child_lives() {
    let device = device(serde_json::json!({}));
    ready(&device).await;
    assert_eq!(
        run(&device, work(1, 1, "panic")).await,
        Err(Fault::of_worker("the engine panicked"))
    );
    assert!(run(&device, work(1, 1, "")).await.is_ok());
    device.stop().await;
}

#[tokio::test]
async fn f064_f074_an_abort_costs_the_job_at_once_and_a_new_child_comes() {
    let device = device(serde_json::json!({}));
    ready(&device).await;
    for end in ["abort", "exit"] {
        let started = Instant::now();
        assert_eq!(
            run(&device, work(1, 1, end)).await,
            Err(Fault::of_worker("the engine died"))
        );
        assert!(started.elapsed() < Duration::from_secs(2));
        until(
            &device,
            |state| matches!(state, DeviceState::Failed(reason) if reason.contains("it ended")),
        )
        .await;
        until(&device, |state| matches!(state, DeviceState::Ready(_))).await;
        assert!(run(&device, work(1, 1, "")).await.is_ok());
    }
    device.stop().await;
}

#[tokio::test]
async fn a_cancelled_job_ends_at_its_next_step_and_the_child_lives() {
    let device = device(serde_json::json!({}));
    ready(&device).await;
    let cancel = CancellationToken::new();
    let line = RunLine {
        progress: watch::channel(Progress::default()).0,
        cancel: cancel.clone(),
    };
    let running = tokio::spawn({
        let device = Arc::clone(&device);
        async move { device.run(work(1_000, 20, ""), line).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    cancel.cancel();
    let started = Instant::now();
    assert!(running.await.expect("no panic").is_err());
    assert!(started.elapsed() < Duration::from_secs(1));
    assert!(run(&device, work(1, 1, "")).await.is_ok());
    device.stop().await;
}

#[tokio::test]
async fn f071_a_child_that_hangs_is_ended_by_the_ladder() {
    let device = device(serde_json::json!({}));
    ready(&device).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let line = RunLine {
        progress: watch::channel(Progress::default()).0,
        cancel,
    };
    let started = Instant::now();
    assert_eq!(
        device.run(work(0, 0, "hang"), line).await,
        Err(Fault::of_worker("the engine died"))
    );
    assert!((4..8).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    until(&device, |state| matches!(state, DeviceState::Ready(_))).await;
    let stopping = Instant::now();
    device.stop().await;
    assert!(stopping.elapsed() < Duration::from_secs(1), "{:?}", stopping.elapsed());
}

#[tokio::test]
async fn an_engine_that_says_it_cannot_load_is_not_tried_again() {
    let device = device(serde_json::json!({ "load": "refuse" }));
    device.start();
    let state = until(&device, |state| matches!(state, DeviceState::Refused(_))).await;
    assert!(matches!(state, DeviceState::Refused(error) if error.detail["code"] == 66));
    device.stop().await;
    assert_eq!(*device.state().borrow(), DeviceState::Stopped);
}

#[tokio::test]
async fn a_child_that_dies_while_loading_or_is_no_engine_is_told_as_failed() {
    for command in [
        ChildCommand {
            program: env!("CARGO_BIN_EXE_toy-engine").into(),
            args: Vec::new(),
            env: Vec::new(),
            config: serde_json::json!({ "load": "panic" }),
            load_timeout: Some(Duration::from_secs(20)),
        },
        ChildCommand {
            program: "/bin/echo".into(),
            args: vec!["this is no frame".to_owned()],
            env: Vec::new(),
            config: serde_json::Value::Null,
            load_timeout: Some(Duration::from_secs(20)),
        },
        ChildCommand {
            program: "/nowhere/engine".into(),
            args: Vec::new(),
            env: Vec::new(),
            config: serde_json::Value::Null,
            load_timeout: Some(Duration::from_secs(20)),
        },
    ] {
        let device = Toys::new("toy:0", command);
        device.start();
        until(&device, |state| matches!(state, DeviceState::Failed(_))).await;
        device.stop().await;
    }
}

#[tokio::test]
async fn a_child_that_never_loads_is_ended_when_its_time_is_up() {
    let device = device_in(
        serde_json::json!({ "load": "forever" }),
        Some(Duration::from_millis(300)),
    );
    device.start();
    let state = until(&device, |state| matches!(state, DeviceState::Failed(_))).await;
    assert_eq!(state, DeviceState::Failed("it did not load in time".to_owned()));
    device.stop().await;
}

#[tokio::test]
async fn a_child_without_a_time_limit_loads_for_as_long_as_it_takes() {
    let device = device_in(serde_json::json!({ "load": "forever" }), None);
    device.start();
    until(&device, |state| matches!(state, DeviceState::Loading)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*device.state().borrow(), DeviceState::Loading);
    device.stop().await;
}

#[test]
fn f076_an_engine_whose_supervisor_is_gone_exits_even_while_busy() {
    use std::io::Write;
    use worker_runtime::engine::frames::{ToEngine, encode};
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_toy-engine"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("started");
    let mut pipe = child.stdin.take().expect("a pipe");
    let load = ToEngine::<ToyWork>::Load {
        config: serde_json::Value::Null,
    };
    pipe.write_all(&encode(&load).expect("a frame")).expect("written");
    let mut out = child.stdout.take().expect("a pipe");
    worker_runtime::engine::frames::read_blocking(&mut out)
        .expect("a frame")
        .expect("ready");
    let hang = ToEngine::Run {
        job: 1,
        work: work(0, 0, "hang"),
    };
    pipe.write_all(&encode(&hang).expect("a frame")).expect("written");
    drop(pipe);
    let started = Instant::now();
    assert!(child.wait().expect("ended").success());
    assert!(started.elapsed() < Duration::from_secs(2));
}
