//! A worker without work leaves the machine to its owner: what the supervisor holds and burns while it waits.

use std::time::{Duration, Instant};

use e2e::demo::stage::Stage;
use e2e::usage::{processor_time, resident_bytes};

/// Loading on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);
/// How long the idle supervisor is watched.
const WATCH: Duration = Duration::from_secs(10);
/// Memory of a supervisor (bench target B10), in bytes.
const MEMORY: u64 = 64 << 20;
/// Share of one core that an idle supervisor may take. B10 asks for 0.005 of a release build; ticks of 10 ms and a
/// build without optimisation are allowed for.
const SHARE: f64 = 0.02;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scribe_without_work_takes_little_memory_and_next_to_no_processor() {
    let stage = Stage::set("scribe", &[]).await.expect("scribe starts");
    let pid = stage.worker_pid().expect("scribe runs");
    let start = Instant::now();
    while !is_waiting(&stage) {
        assert!(start.elapsed() < PATIENCE, "scribe was not ready within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = processor_time(pid).expect("scribe runs");
    tokio::time::sleep(WATCH).await;
    let burnt = processor_time(pid).expect("scribe runs") - before;
    let held = resident_bytes(pid).expect("scribe runs");
    let share = burnt.as_secs_f64() / WATCH.as_secs_f64();
    println!(
        "idle supervisor: {:.1} MiB, {:.2} % of a core",
        held as f64 / 1_048_576.0,
        100.0 * share
    );
    stage.close().await.expect("scribe ends");
    assert!(held <= MEMORY, "the supervisor holds {held} bytes");
    assert!(share <= SHARE, "{share} of a core");
}

/// Whether the engine is ready and the Horde has answered that there is no work.
fn is_waiting(stage: &Stage) -> bool {
    let text = std::fs::read_to_string(stage.state_dir().join("status.json")).unwrap_or_default();
    let file: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    file["status"]["devices"][0]["state"] == "ready" && file["status"]["idle"].is_string()
}
