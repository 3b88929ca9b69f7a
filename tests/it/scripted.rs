//! A Horde within this process that hands out jobs made by hand, and what becomes of them.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use e2e::listening::process_tree;
use e2e::programs::Program;
use e2e::usage::most_bytes;
use local_horde::{Horde, Settings, http};
use nix::sys::signal::Signal;

/// All that an engine may hold at any time: the plan for the demo model of text is below 0.6 GiB, the tiny model of images and
/// pictures of 64×64 need a fraction of it.
const MOST_BYTES: u64 = 1 << 30;

/// One job as it was handed out, and what is to become of it.
pub struct Expected<'a, E> {
    /// What it is called in messages.
    pub name: &'a str,
    /// Its id.
    pub id: String,
    /// Its end.
    pub end: &'a E,
}

/// A Horde without limits of calls, and its address for as long as the second part lives.
pub async fn horde() -> (Horde, http::Running) {
    let horde = Horde::new(Settings {
        rate_limits: false,
        ..Settings::default()
    });
    let running = http::serve(horde.clone(), SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .expect("a free port");
    (horde, running)
}

/// Looks until there is an end; `what` names the job where there is none in time.
pub async fn outcome<E>(what: &str, until: Instant, mut look: impl FnMut() -> Option<E>) -> E {
    loop {
        if let Some(end) = look() {
            return end;
        }
        assert!(Instant::now() < until, "\"{what}\" was not answered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Expects of each job, in turn, its end by `ended`, of one engine that it did them all within its memory, and of the worker
/// that it drains.
pub async fn answered<E: Debug + PartialEq>(
    horde: &Horde,
    mut worker: Program,
    jobs: &[Expected<'_, E>],
    patience: Duration,
    ended: impl Fn(&Horde, &str) -> Option<E>,
) {
    let pid = worker.pid().expect("it runs");
    let engines = || -> BTreeSet<u32> { process_tree(pid).into_iter().filter(|one| *one != pid).collect() };
    let until = Instant::now() + patience;
    let mut at_first = None;
    let mut wrong = Vec::new();
    for job in jobs {
        let end = outcome(job.name, until, || {
            let end = ended(horde, &job.id);
            let is_over = worker.ended().expect("it can be asked").is_some();
            assert!(
                end.is_some() || !is_over,
                "the worker ended at \"{}\"; before it: {wrong:?}",
                job.name
            );
            end
        })
        .await;
        at_first.get_or_insert_with(engines);
        if end != *job.end {
            wrong.push(format!("\"{}\": {end:?} and not {:?}", job.name, job.end));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let at_first = at_first.expect("there are jobs");
    assert_eq!((at_first.len(), &at_first), (1, &engines()), "one engine did all of it");
    let held = at_first
        .iter()
        .map(|one| most_bytes(*one).unwrap_or(0))
        .max()
        .unwrap_or(0);
    assert!((1..MOST_BYTES).contains(&held), "the engine held {held} bytes");
    drained(horde, worker).await;
}

/// Ends the worker; nothing is left open, late or twice in the book.
pub async fn drained(horde: &Horde, mut worker: Program) {
    worker.signal(Signal::SIGTERM).expect("it runs");
    assert!(worker.wait(Duration::from_secs(60)).await.expect("it ends").success());
    let summary = horde.state().ledger.summary();
    assert_eq!((summary.open, summary.expired, summary.duplicates), (0, 0, 0));
}
