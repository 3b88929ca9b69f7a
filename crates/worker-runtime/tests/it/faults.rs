//! One test per fault of the catalogue that lies between worker and server: calls, answers, results on their way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use local_horde::Fate;
use serde_json::json;
use tokio::time::Instant;
use worker_runtime::RunError;

use crate::case::{Case, first, rc};
use crate::toy::Toy;
use crate::world::{Call, Meddling};

#[tokio::test(start_paused = true)]
async fn f006_a_pop_whose_answer_is_lost_is_counted_as_a_ghost_and_the_next_one_works() {
    let case = Case::new();
    case.world.file("steps=1", 1);
    case.world.file("steps=1", 1);
    case.world.meddle(first(1, Call::Pop, Meddling::LoseAnswer));
    let status = case.settle(Toy::default()).await;
    assert_eq!(status.poll.ghosts, 1);
    assert!(case.fates().contains(&Fate::Accepted));
}

#[tokio::test(start_paused = true)]
async fn f007_f033_a_submission_whose_answer_is_lost_is_sent_again_and_counts_once() {
    let case = Case::new();
    case.world.file("steps=1", 1);
    case.world.meddle(first(1, Call::Submit, Meddling::LoseAnswer));
    let status = case.settle(Toy::default()).await;
    assert_eq!(case.world.count(Call::Submit), 2);
    assert_eq!((status.totals.submitted, status.totals.faulted), (1, 0));
    assert_eq!(case.fates(), [Fate::Accepted]);
}

#[tokio::test(start_paused = true)]
async fn f010_f083_a_stuck_upload_holds_up_neither_the_device_nor_other_results() {
    let case = Case::new();
    for _ in 0..6 {
        case.world.file("steps=2 ms=1000", 1);
    }
    case.world
        .meddle(first(1, Call::Upload, Meddling::Delay(Duration::from_secs(29))));
    let started = Instant::now();
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    worker.until(|status| status.totals.submitted == 5).await;
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    worker.until(|status| status.totals.submitted == 6).await;
    worker.finish().await.expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn f010_popping_stops_while_the_outbox_is_full() {
    let case = Case::new();
    for _ in 0..30 {
        case.world.file("steps=1 ms=100", 1);
    }
    case.world
        .meddle(|call, _| (call == Call::Upload).then_some(Meddling::LoseRequest));
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    let full = worker
        .until(|status| status.idle.as_deref() == Some("results wait to be handed in"))
        .await;
    assert!((8..=11).contains(&full.outbox), "{}", full.outbox);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(worker.status.borrow().outbox <= 11);
    case.world.meddle(|_, _| None);
    worker.until(|status| status.totals.submitted >= 8).await;
    worker.finish().await.expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn f013_an_outage_with_pages_costs_few_attempts_and_no_result() {
    let case = Case::new();
    case.world.file("steps=2 ms=1000", 1);
    let started = Instant::now();
    let down = move |call: Call, _: u64| {
        let second = started.elapsed().as_secs();
        let is_down = (4..64).contains(&second) && call != Call::Pop;
        is_down.then(|| Meddling::Answer(502, json!("<html>bad gateway</html>")))
    };
    case.world.meddle(down);
    let status = case
        .settle(Toy {
            amount: 1,
            ..Toy::default()
        })
        .await;
    assert_eq!(status.totals.submitted, 1);
    assert!(
        case.world.count(Call::Upload) <= 14,
        "{} attempts",
        case.world.count(Call::Upload)
    );
    assert!(started.elapsed() < Duration::from_secs(64 + 60));
}

#[tokio::test(start_paused = true)]
async fn f026_a_refused_upload_is_tried_once_more_and_then_handed_back() {
    let case = Case::new();
    case.world.file("steps=1", 1);
    case.world
        .meddle(|call, _| (call == Call::Upload).then_some(Meddling::Answer(403, json!("expired"))));
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    worker.until(|status| status.totals.faulted == 1).await;
    assert_eq!(case.world.count(Call::Upload), 2);
    assert_eq!(case.fates()[0], Fate::Faulted);
    worker.kill().await;
}

#[tokio::test(start_paused = true)]
async fn f031_a_flapping_link_loses_nothing() {
    let case = Case::new();
    for _ in 0..40 {
        case.world.file("steps=2 ms=1000", 1);
    }
    let started = Instant::now();
    case.world.meddle(move |call, _| {
        let is_down = started.elapsed().as_secs() % 6 >= 3;
        // A request that reached the server is answered: only what is sent while the link is down is lost.
        (is_down && call != Call::Other).then_some(Meddling::LoseRequest)
    });
    let status = case.settle(Toy::default()).await;
    assert_eq!(
        (status.totals.submitted, status.totals.expired, status.totals.faulted),
        (40, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn f032_f034_what_the_server_has_given_up_is_closed_after_one_attempt_and_is_no_fault_of_ours() {
    for gone in [
        rc(404, "InvalidJobID"),
        rc(400, "AbortedGen"),
        rc(410, "RequestExpired"),
    ] {
        let case = Case::new();
        case.world.file("steps=1", 1);
        let gone_once = first(1, Call::Submit, gone.expect("an answer"));
        case.world.meddle(gone_once);
        let mut worker = case.start(Toy {
            amount: 1,
            ..Toy::default()
        });
        let status = worker.until(|status| status.totals.expired == 1).await;
        assert_eq!(case.world.count(Call::Submit), 1);
        assert_eq!(status.rest, None);
        worker.kill().await;
    }
}

#[tokio::test(start_paused = true)]
async fn f035_a_submission_refused_as_malformed_is_tried_once_more_and_then_handed_back() {
    let case = Case::new();
    case.world.file("steps=1", 1);
    case.world
        .meddle(first(2, Call::Submit, rc(400, "SomethingNew").expect("an answer")));
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    worker.until(|status| status.totals.faulted == 1).await;
    assert_eq!(case.world.count(Call::Submit), 3);
    worker.kill().await;
}

#[tokio::test(start_paused = true)]
async fn f036_a_key_refused_in_the_middle_holds_results_until_it_is_good_again() {
    let case = Case::new();
    case.world.file("steps=2 ms=1000", 1);
    let is_bad = Arc::new(AtomicBool::new(false));
    let bad = Arc::clone(&is_bad);
    case.world.meddle(move |call, _| {
        let held = matches!(call, Call::Pop | Call::Submit) && bad.load(Ordering::Relaxed);
        if held { rc(401, "InvalidAPIKey") } else { None }
    });
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    worker.until(|status| status.poll.hits == 1).await;
    is_bad.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(
        case.world.count(Call::Submit) <= 3,
        "{} submits",
        case.world.count(Call::Submit)
    );
    assert_eq!(
        worker.status.borrow().idle.as_deref(),
        Some("the Horde refuses the key or the name")
    );
    is_bad.store(false, Ordering::Relaxed);
    let status = worker.until(|status| status.totals.submitted == 1).await;
    assert_eq!(status.totals.faulted, 0);
    worker.finish().await.expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn f037_f040_a_worker_refused_at_the_start_ends_with_the_reason() {
    for refusal in [
        rc(401, "InvalidAPIKey"),
        rc(403, "WrongCredentials"),
        rc(400, "BadRequest"),
    ] {
        let case = Case::new();
        case.world
            .meddle(move |call, _| if call == Call::Pop { refusal.clone() } else { None });
        let started = Instant::now();
        let ended = case.start(Toy::default()).task.await.expect("no panic");
        assert!(matches!(ended, Err(RunError::Refused { .. })), "{ended:?}");
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(case.world.count(Call::Pop), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn f038_maintenance_is_polled_slowly_and_left_within_a_minute_of_its_end() {
    let case = Case::new();
    let started = Instant::now();
    case.world.meddle(move |call, _| {
        let in_maintenance = call == Call::Pop && started.elapsed() < Duration::from_secs(1800);
        if in_maintenance {
            rc(403, "WorkerMaintenance")
        } else {
            None
        }
    });
    let mut worker = case.start(Toy {
        amount: 1,
        ..Toy::default()
    });
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert!(
        (30..=62).contains(&case.world.count(Call::Pop)),
        "{} pops",
        case.world.count(Call::Pop)
    );
    case.world.file("steps=1", 1);
    worker.until(|status| status.totals.submitted == 1).await;
    assert!(started.elapsed() < Duration::from_secs(1800 + 65));
    worker.finish().await.expect("a good end");
}

#[tokio::test(start_paused = true)]
async fn f045_an_id_given_twice_is_made_once() {
    let case = Case::new();
    case.world.file("steps=2 ms=1000", 1);
    let twice = |id: &str| {
        let payload = json!({ "prompt": "steps=2 ms=1000", "ddim_steps": 30 });
        json!({ "id": id, "ids": [id, id], "payload": payload, "model": "toy-model", "ttl": 150, "skipped": {} })
    };
    let mut worker = case.start(Toy {
        amount: 1,
        uploads: false,
        ..Toy::default()
    });
    worker.until(|status| status.totals.submitted == 1).await;
    let id = case.world.fates().into_keys().next().expect("an id");
    // Delivered before: neither of the two is taken again.
    case.world
        .meddle(first(1, Call::Pop, Meddling::Answer(200, twice(&id))));
    worker.until(|status| status.poll.hits == 2).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    // Never seen: one of the two is lived, and closed on the server's word that it does not know it.
    let stranger = "00000000-0000-4000-8000-000000000000";
    case.world
        .meddle(first(1, Call::Pop, Meddling::Answer(200, twice(stranger))));
    worker.until(|status| status.totals.expired == 1).await;
    let runs = case.world.runs.lock().expect("lock").clone();
    assert_eq!((runs[&id], runs[stranger]), (1, 1));
    assert_eq!(worker.finish().await.expect("a good end").expired, 1);
}

#[tokio::test(start_paused = true)]
async fn f046_too_few_results_are_handed_back_one_by_one() {
    let case = Case::new();
    case.world.file("steps=1 end=few", 3);
    let mut worker = case.start(Toy::default());
    let status = worker.until(|status| status.totals.faulted >= 3).await;
    assert_eq!(status.totals.submitted, 0);
    worker.kill().await;
}

#[tokio::test(start_paused = true)]
async fn f047_a_job_without_parameters_is_handed_back_at_once() {
    let case = Case::new();
    let id = "00000000-0000-4000-8000-000000000001";
    let pop = json!({ "id": id, "ids": [id], "payload": null, "model": null, "skipped": {} });
    case.world.meddle(first(1, Call::Pop, Meddling::Answer(200, pop)));
    let mut worker = case.start(Toy::default());
    worker.until(|status| status.poll.hits == 1).await;
    let started = Instant::now();
    worker.until(|status| status.totals.expired == 1).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(case.world.runs.lock().expect("lock").is_empty());
    worker.kill().await;
}
