//! How a worker ends, and what the next start finds.

use std::collections::BTreeSet;
use std::time::Duration;

use local_horde::Fate;
use tokio::time::Instant;
use worker_runtime::status::{Stage, State};
use worker_runtime::{Command, Shutdown};

use crate::toy::Toy;
use crate::world::{Call, Meddling, World};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn one() -> Toy {
    Toy {
        amount: 1,
        ..Toy::default()
    }
}

#[tokio::test(start_paused = true)]
async fn f057_the_first_signal_at_any_moment_ends_every_job_and_loses_none() {
    // From before the engine is loaded over popping, preparing, running, uploading and submitting to idle.
    for moment_ms in (0..9_000).step_by(150) {
        let (world, dir) = (World::new(moment_ms), tempfile::tempdir().expect("a directory"));
        for _ in 0..2 {
            world.file("steps=4 ms=500", 1);
        }
        let backend = Toy {
            prepare: Duration::from_millis(500),
            ..one()
        };
        let worker = world.start(dir.path(), backend, world.settings(1));
        tokio::time::sleep(Duration::from_millis(moment_ms)).await;
        let asked = Instant::now();
        worker.shutdown.send_replace(Shutdown::Drain);
        let summary = worker.task.await.expect("no panic").expect("a good end");
        assert!(
            asked.elapsed() < s(8),
            "at {moment_ms} ms it took {:?}",
            asked.elapsed()
        );
        assert_eq!(summary.left_in_ledger, 0);
        assert!(
            world.horde.state().ledger.open().is_empty(),
            "at {moment_ms} ms a job was left open"
        );
        assert_eq!(world.reckon(dir.path(), &BTreeSet::new()), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn f057_a_running_job_is_finished_within_the_grace_and_handed_back_beyond_it() {
    for (play, fate) in [
        ("steps=60 ms=1000", Fate::Accepted),
        ("steps=110 ms=1000", Fate::Faulted),
    ] {
        let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
        world.file(play, 1);
        let mut worker = world.start(dir.path(), one(), world.settings(1));
        worker.until(|status| status.jobs.iter().any(|job| job.done >= 2)).await;
        worker.shutdown.send_replace(Shutdown::Drain);
        let asked = Instant::now();
        worker.task.await.expect("no panic").expect("a good end");
        assert_eq!(world.fates().into_values().collect::<Vec<_>>(), [fate]);
        if fate == Fate::Faulted {
            assert!(asked.elapsed() < s(3), "{:?}", asked.elapsed());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn f058_the_second_signal_hands_everything_back_within_five_seconds() {
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    for _ in 0..3 {
        world.file("steps=60 ms=1000", 1);
    }
    let mut worker = world.start(dir.path(), one(), world.settings(1));
    worker.until(|status| status.jobs.iter().any(|job| job.done >= 2)).await;
    worker.shutdown.send_replace(Shutdown::Drain);
    tokio::time::sleep(s(3)).await;
    let asked = Instant::now();
    worker.shutdown.send_replace(Shutdown::HandBack);
    let summary = worker.task.await.expect("no panic").expect("a good end");
    assert!(asked.elapsed() <= s(5), "{:?}", asked.elapsed());
    assert_eq!((summary.submitted, summary.left_in_ledger), (0, 0));
    assert!(world.horde.state().ledger.open().is_empty());
}

#[tokio::test(start_paused = true)]
async fn f059_the_third_signal_leaves_at_once_and_the_next_start_cleans_up() {
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    world.file("steps=60 ms=1000", 1);
    let mut worker = world.start(dir.path(), one(), world.settings(1));
    worker.until(|status| status.jobs.iter().any(|job| job.done >= 2)).await;
    worker.shutdown.send_replace(Shutdown::Abort);
    let asked = Instant::now();
    let summary = worker.task.await.expect("no panic").expect("a good end");
    assert!(asked.elapsed() <= s(1));
    assert_eq!(summary.left_in_ledger, 1);
    let mut next = world.start(dir.path(), one(), world.settings(2));
    next.until(|status| status.totals.faulted == 1).await;
    next.finish().await.expect("a good end");
    assert_eq!(world.reckon(dir.path(), &BTreeSet::new()), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn f048_a_pop_answered_after_the_signal_is_handed_back_and_never_dropped() {
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    world.file("steps=2 ms=500", 1);
    world.meddle(|call, _| (call == Call::Pop).then_some(Meddling::Delay(s(5))));
    let worker = world.start(dir.path(), one(), world.settings(1));
    tokio::time::sleep(s(4)).await;
    assert_eq!(world.count(Call::Pop), 1);
    worker.shutdown.send_replace(Shutdown::Drain);
    let status = worker.status.clone();
    worker.task.await.expect("no panic").expect("a good end");
    assert_eq!(world.fates().into_values().collect::<Vec<_>>(), [Fate::Faulted]);
    assert_eq!(status.borrow().poll.dropped, 0);
    assert!(world.runs.lock().expect("lock").is_empty());
}

#[tokio::test(start_paused = true)]
async fn f060_killed_at_any_moment_the_next_start_loses_nothing_and_makes_nothing_twice() {
    for uploads in [true, false] {
        for moment_ms in (2_000..8_000).step_by(100) {
            let (world, dir) = (World::new(moment_ms), tempfile::tempdir().expect("a directory"));
            world.file("steps=4 ms=500", 2);
            let backend = Toy {
                prepare: Duration::from_millis(500),
                uploads,
                amount: 2,
                ..Toy::default()
            };
            let worker = world.start(dir.path(), backend.clone(), world.settings(1));
            tokio::time::sleep(Duration::from_millis(moment_ms)).await;
            let kills = BTreeSet::from([Instant::now()]);
            worker.kill().await;
            let next = world.start(dir.path(), backend, world.settings(2));
            assert!(world.until_done(s(7200)).await, "killed at {moment_ms} ms");
            next.finish().await.expect("a good end");
            assert_eq!(
                world.reckon(dir.path(), &kills),
                Vec::<String>::new(),
                "killed at {moment_ms} ms"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn f060_finished_bytes_are_delivered_by_the_next_start() {
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    world.file("steps=1", 1);
    world.meddle(|call, _| (call != Call::Pop).then_some(Meddling::LoseRequest));
    let mut worker = world.start(dir.path(), one(), world.settings(1));
    worker.until(|status| status.outbox == 1).await;
    worker.kill().await;
    world.meddle(|_, _| None);
    let mut next = world.start(dir.path(), one(), world.settings(2));
    next.until(|status| status.totals.submitted == 1).await;
    next.finish().await.expect("a good end");
    assert_eq!(world.fates().into_values().collect::<Vec<_>>(), [Fate::Accepted]);
    assert!(world.runs.lock().expect("lock").values().all(|n| *n == 1));
}

#[tokio::test(start_paused = true)]
async fn a_pause_finishes_what_runs_then_empties_the_devices_and_resuming_loads_them_again() {
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    for _ in 0..10 {
        world.file("steps=4 ms=1000", 1);
    }
    let mut worker = world.start(dir.path(), one(), world.settings(1));
    worker.until(|status| status.jobs.iter().any(|job| job.done >= 2)).await;
    worker
        .commands
        .send(Command::Pause {
            for_: Some(s(600)),
            now: false,
        })
        .await
        .expect("sent");
    let paused = worker.until(|status| status.devices[0].state == "stopped").await;
    assert_eq!((paused.totals.faulted, paused.jobs.len()), (0, 0));
    assert!(paused.paused_until_unix_ms.is_some());
    let pops = world.count(Call::Pop);
    tokio::time::sleep(s(300)).await;
    assert_eq!(world.count(Call::Pop), pops);
    worker.until(|status| status.totals.submitted == 10).await;
    worker.finish().await.expect("a good end");
    assert_eq!(world.reckon(dir.path(), &BTreeSet::new()), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn an_order_shows_at_once_although_a_long_job_says_nothing() {
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    world.file("steps=1 ms=60000", 1);
    let mut worker = world.start(dir.path(), one(), world.settings(1));
    worker
        .until(|status| status.jobs.iter().any(|job| job.stage == Stage::Running))
        .await;
    tokio::time::sleep(s(20)).await;
    for (order, shown) in [
        (Command::Finish, State::Finishing),
        (Command::Resume, State::Running),
        (Command::Stop, State::Stopping),
    ] {
        // Somewhere between two tellings that nothing has changed.
        tokio::time::sleep(Duration::from_millis(5_700)).await;
        let asked = Instant::now();
        worker.commands.send(order).await.expect("sent");
        worker.until(|status| status.state == shown).await;
        assert!(asked.elapsed() <= s(1), "{shown:?} after {:?}", asked.elapsed());
    }
    worker.finish().await.expect("a good end");
    assert_eq!(world.reckon(dir.path(), &BTreeSet::new()), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_age_of_a_long_job_that_says_nothing_moves_every_second() {
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    world.file("steps=1 ms=60000", 1);
    let mut worker = world.start(dir.path(), one(), world.settings(1));
    for age_s in 20..30 {
        let told = worker
            .until(|status| status.jobs.iter().any(|job| job.age_s >= f64::from(age_s)))
            .await;
        assert!(told.jobs[0].age_s < f64::from(age_s) + 1.3, "{}", told.jobs[0].age_s);
    }
    worker.finish().await.expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn a_pause_at_once_hands_back_and_frees_the_device_in_seconds() {
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    world.file("steps=60 ms=1000", 1);
    let mut worker = world.start(dir.path(), one(), world.settings(1));
    worker.until(|status| status.jobs.iter().any(|job| job.done >= 2)).await;
    let asked = Instant::now();
    worker
        .commands
        .send(Command::Pause { for_: None, now: true })
        .await
        .expect("sent");
    worker.until(|status| status.devices[0].state == "stopped").await;
    assert!(asked.elapsed() < s(3), "{:?}", asked.elapsed());
    assert_eq!(world.fates().into_values().collect::<Vec<_>>(), [Fate::Faulted]);
    worker.finish().await.expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn several_devices_and_slots_share_the_work_of_one_worker() {
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    for _ in 0..60 {
        world.file("steps=6 ms=1000", 1);
    }
    let devices = vec![world.device(1), world.device(1), world.device(4)];
    let mut worker = world.start_on(dir.path(), one(), world.settings(1), devices);
    let started = Instant::now();
    let status = worker.until(|status| status.totals.submitted == 60).await;
    // Six slots need ten rounds of six seconds.
    assert!(started.elapsed() < s(75), "{:?}", started.elapsed());
    assert!(
        status.devices.iter().all(|device| device.busy_fraction > 0.8),
        "{:?}",
        status.devices
    );
    worker.finish().await.expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn what_lies_on_the_disk_is_private_and_holds_no_prompt_no_key_and_no_signed_address() {
    use std::os::unix::fs::PermissionsExt;
    let (world, dir) = (World::new(1), tempfile::tempdir().expect("a directory"));
    world.file("steps=1 secret-canary-words", 2);
    world.meddle(|call, _| (call == Call::Upload).then_some(Meddling::LoseRequest));
    let mut worker = world.start(
        dir.path(),
        Toy {
            amount: 2,
            ..Toy::default()
        },
        world.settings(1),
    );
    worker.until(|status| status.outbox == 2).await;
    let told = format!("{:?}", worker.status.borrow());
    let mut n_spooled = 0;
    let files =
        [dir.path().to_owned(), dir.path().join("spool")].map(|dir| std::fs::read_dir(dir).expect("a directory"));
    for entry in files
        .into_iter()
        .flatten()
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.path().is_file())
    {
        let bytes = std::fs::read(entry.path()).expect("bytes");
        let holds = |needle: &str| bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
        for needle in ["canary", local_horde::WORKER_KEY, "X-Amz-Signature"] {
            assert!(!holds(needle), "{needle} is in {:?}", entry.path());
            assert!(!told.contains(needle), "{needle} is in the status");
        }
        let mode = entry.metadata().expect("metadata").permissions().mode() & 0o777;
        assert_eq!(mode & 0o077, 0, "{:?} is {mode:o}", entry.path());
        n_spooled += usize::from(holds("result of"));
    }
    assert_eq!(n_spooled, 2);
    worker.kill().await;
}
