//! One test per fault of the catalogue that lies with the worker's own machine: engines, disk, sleep, terminal.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::case::Case;
use crate::toy::Toy;

#[tokio::test(start_paused = true)]
async fn every_accepted_job_is_told_to_have_left_once_also_when_it_fails() {
    let case = Case::new();
    case.world.file("steps=1", 1);
    case.world.file("steps=1 end=die", 1);
    case.world.file("steps=2000 ms=1000", 1);
    let toy = Toy::default();
    case.settle(toy.clone()).await;
    let mut left = toy.left.lock().expect("lock").clone();
    left.sort_unstable();
    assert!(left.contains(&true) && left.contains(&false), "{left:?}");
    assert_eq!(
        left.iter().filter(|is_made| **is_made).count(),
        toy.outputs.lock().expect("lock").len()
    );
}

#[tokio::test(start_paused = true)]
async fn f023_after_a_night_asleep_what_was_held_is_handed_back_and_work_goes_on() {
    let case = Case::new();
    case.world.file("steps=60 ms=1000", 1);
    case.world.file("steps=60 ms=1000", 1);
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    worker.until(|status| status.jobs.iter().any(|job| job.done >= 3)).await;
    case.world.slept_ms.store(8 * 3600 * 1000, Ordering::Relaxed);
    let woken = Instant::now();
    worker.until(|status| status.totals.faulted >= 1).await;
    assert!(woken.elapsed() <= Duration::from_secs(10), "{:?}", woken.elapsed());
    let status = worker.until(|status| status.totals.submitted >= 1).await;
    assert_eq!(status.totals.faulted, 1);
    worker.kill().await;
}

#[tokio::test(start_paused = true)]
async fn f043_a_job_that_cannot_end_in_time_is_handed_back_at_once() {
    let case = Case::new();
    case.world.file("steps=100 ms=1300", 1);
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    worker.until(|status| status.totals.faulted == 1).await;
    let popped = *case.world.seen().ids.values().next().expect("an id");
    assert!(popped.elapsed() < Duration::from_secs(2), "{:?}", popped.elapsed());
    assert!(case.world.runs.lock().expect("lock").is_empty());
    worker.kill().await;
}

#[tokio::test(start_paused = true)]
async fn f054_an_engine_that_always_fails_never_comes_near_the_servers_limit() {
    for play in [
        "steps=1 end=fault",
        "steps=1 end=die",
        "steps=1 end=invalid",
        "steps=1 end=hang",
    ] {
        let case = Case::new();
        for _ in 0..200 {
            case.world.file(play, 1);
        }
        let mut settings = case.world.settings(1);
        settings.faults_per_hour = 10;
        let worker = case.world.start(
            case.dir.path(),
            Toy {
                amount: 1,
                ..Toy::default()
            },
            settings,
        );
        tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
        let mut handed_back: Vec<Instant> = case.world.seen().ids.values().copied().collect();
        handed_back.sort();
        let hour = Duration::from_secs(3600);
        let most = handed_back.iter().map(|from| {
            handed_back
                .iter()
                .filter(|at| *at >= from && **at < *from + hour)
                .count()
        });
        let most = most.max().unwrap_or_default();
        assert!(
            (3..=10).contains(&most),
            "{play}: {most} in an hour, {} in three",
            handed_back.len()
        );
        worker.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn f071_f072_a_hung_engine_is_found_out_and_the_next_job_runs() {
    let case = Case::new();
    case.world.file("steps=3 ms=1000 end=hang", 1);
    let started = Instant::now();
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    worker.until(|status| status.totals.faulted == 1).await;
    // Load 2 s, pop 0.3 s, three steps, twenty seconds of silence, hand-back 0.3 s.
    assert!(
        started.elapsed() < Duration::from_secs(2 + 3 + 20 + 2),
        "{:?}",
        started.elapsed()
    );
    worker
        .until(|status| status.devices[0].state == "ready" && status.devices[0].running == 0)
        .await;
    case.world.file("steps=1", 1);
    worker.until(|status| status.totals.submitted == 1).await;
    worker.kill().await;
}

#[tokio::test(start_paused = true)]
async fn f062_without_room_for_the_ledger_nothing_is_popped_and_the_job_in_flight_is_delivered() {
    let case = Case::new();
    for _ in 0..4 {
        case.world.file("steps=2 ms=1000", 1);
    }
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    worker.until(|status| status.poll.hits == 1).await;
    // A spool that is no directory refuses every file, as a full disk does.
    let (spool, aside) = (case.dir.path().join("spool"), case.dir.path().join("spool-aside"));
    std::fs::rename(&spool, &aside).expect("moved");
    std::fs::write(&spool, b"").expect("written");
    let status = worker
        .until(|status| status.totals.submitted >= 1 && status.idle.is_some())
        .await;
    assert!(
        status
            .idle
            .as_deref()
            .is_some_and(|idle| idle.contains("the ledger in")),
        "{:?}",
        status.idle
    );
    tokio::time::sleep(Duration::from_secs(120)).await;
    let hits = worker.status.borrow().poll.hits;
    let events = worker.status.borrow().events.clone();
    assert!(hits <= 2, "{hits} jobs were popped on a full disk: {events:#?}");
    std::fs::remove_file(&spool).expect("removed");
    std::fs::rename(&aside, &spool).expect("moved");
    worker.until(|status| status.totals.submitted == 4).await;
    worker.finish().await.expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn f051_messages_of_operators_are_shown_once_and_hold_no_control_characters() {
    let case = Case::new();
    case.world
        .horde
        .state()
        .messages
        .push(json!({ "id": "m1", "message": "\u{1b}[31mred\u{7}", "origin": "ops", "expiry": "2030-01-01" }));
    let mut worker = case.start(Toy::default());
    let status = worker.until(|status| status.poll.pops >= 5).await;
    assert_eq!(status.messages.len(), 1);
    assert!(!status.messages[0].text.contains('\u{1b}'));
    worker.finish().await.expect("a good end");
}
