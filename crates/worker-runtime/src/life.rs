//! The life of a job. [`live`] is the whole way from pop to close; every step it names is below it or in `deliver`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use horde_client::kind::JobKind;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, EngineReport, Fault};
use crate::board::Tile;
use crate::deliver::{check, close, hand_back, keep, submit, upload};
use crate::device::{Progress, RunLine};
use crate::job::{Generated, Head, Job, Popped, Prepared, Validated};
use crate::law::watchdog::Watchdog;
use crate::ledger::Taken;
use crate::slots::Slot;
use crate::status::Stage;
use crate::workshop::{Haste, Workshop, caught};

/// A job that would take more of its lease than this is not begun.
const LEASE_SHARE: f64 = 0.8;

/// Lives one job to its end: every generation of it is submitted, handed back or expired when this returns.
///
/// Overlap comes from several lives at once; the slots of the devices are all they share.
pub(crate) async fn live<B: Backend>(shop: Arc<Workshop<B>>, job: Job<Popped<B>>, tile: Tile) {
    let Some(job) = remember(&shop, job).await else { return };
    let head = job.head.clone();
    let mut is_valid = false;
    let made = caught(async {
        let job = validate(&shop, job)?;
        is_valid = true;
        let job = prepare(&shop, job).await?;
        let (job, slot) = take_slot(&shop, job, &tile).await?;
        generate(&shop, job, slot, &tile).await
    })
    .await;
    if is_valid {
        shop.backend.left(made.is_ok());
    }
    tile.stage(Stage::Delivering);
    let deliveries = head.fan_out(made).into_iter().map(async |job| {
        let head = job.head.clone();
        let delivered = caught(async {
            let job = check(&shop, job).await?;
            let job = keep(&shop, job).await;
            let job = upload(&shop, job).await?;
            submit(&shop, job).await
        })
        .await;
        match delivered {
            Ok(closing) => close(&shop, &head, closing, false).await,
            Err(fault) => close(&shop, &head, hand_back(&shop, &head, &fault).await, fault.ours).await,
        }
    });
    join_all(deliveries).await;
}

/// Notes the job durably before anything else. Ids that are alive already, or were delivered before, are left out.
async fn remember<B: Backend>(shop: &Workshop<B>, mut job: Job<Popped<B>>) -> Option<Job<Popped<B>>> {
    let generations = &mut job.head.generations;
    generations.retain(|generation| {
        let is_new = shop.board.claim(&generation.id);
        if !is_new {
            tracing::warn!(id = %generation.id, "the server gave an id twice; the second is ignored");
        }
        is_new
    });
    let ids: Vec<_> = generations.iter().map(|generation| generation.id.clone()).collect();
    let taken = Taken {
        kind: B::Kind::NAME,
        at_ms: shop.settings.clock.unix_ms(),
        ttl: job.head.lease.ttl,
        fault_model: job.head.fault_model.clone(),
    };
    let noted = shop.record(move |ledger| ledger.popped(&ids, &taken)).await;
    if let Some(fresh) = noted {
        let mut fresh = fresh.into_iter();
        generations.retain(|generation| {
            let is_fresh = fresh.next().unwrap_or(true);
            if !is_fresh {
                shop.board.disclaim(&generation.id);
                tracing::warn!(id = %generation.id, "the server gave an id that was delivered before; it is ignored");
            }
            is_fresh
        });
    }
    let is_empty = generations.is_empty();
    job.stage.0.generations.clone_from(generations);
    (!is_empty).then_some(job)
}

fn validate<B: Backend>(shop: &Workshop<B>, mut job: Job<Popped<B>>) -> Result<Job<Validated<B>>, Fault> {
    if let Err(reason) = &job.stage.0.payload {
        return Err(Fault::of_job(format!("its parameters could not be read: {reason}")));
    }
    let valid = shop.backend.validate(&mut job.stage.0)?;
    Ok(job.with(|_| Validated(valid)))
}

/// Fetches what the job needs, within its lease.
async fn prepare<B: Backend>(shop: &Workshop<B>, job: Job<Validated<B>>) -> Result<Job<Prepared<B>>, Fault> {
    let Job {
        head,
        stage: Validated(valid),
    } = job;
    let work = tokio::select! {
        biased;
        () = shop.hurried(Haste::Waiting, &head.lease) => return Err(handed_back()),
        () = sleep_until(head.lease.end) => return Err(Fault::of_job("its inputs did not come in time")),
        work = shop.backend.prepare(valid) => work?,
    };
    if let Some(estimate) = shop.estimate(&work)
        && estimate > head.lease.ttl.mul_f64(LEASE_SHARE)
    {
        let (needs, has) = (estimate.as_secs(), head.lease.ttl.as_secs());
        return Err(Fault::of_job(format!("it would take {needs} s and has {has} s")));
    }
    shop.board.write(|board| board.lead.on(head.lease.asked.elapsed()));
    Ok(Job {
        head,
        stage: Prepared(work),
    })
}

/// Waits for a slot on a device that suits, as long as the job can still be done in time.
async fn take_slot<B: Backend>(
    shop: &Arc<Workshop<B>>,
    job: Job<Prepared<B>>,
    tile: &Tile,
) -> Result<(Job<Prepared<B>>, Slot), Fault> {
    tile.stage(Stage::Waiting);
    let needs = shop.estimate(&job.stage.0).unwrap_or_default();
    let latest_start = job.head.lease.end.checked_sub(needs).unwrap_or(job.head.lease.asked);
    let Job {
        head,
        stage: Prepared(work),
    } = job;
    let work = Arc::new(work);
    let suits = {
        let (shop, work) = (Arc::clone(shop), Arc::clone(&work));
        move |engine: &EngineReport| shop.backend.suits(&work, engine)
    };
    let slot = tokio::select! {
        biased;
        () = shop.hurried(Haste::Waiting, &head.lease) => return Err(handed_back()),
        slot = shop.slots.take(suits) => slot,
        () = sleep_until(latest_start) => return Err(Fault::of_worker("no device was free in time")),
    };
    // The closure that compared the work with engines is dropped with the wait, so this is the last holder.
    let work = Arc::into_inner(work).ok_or_else(|| Fault::of_worker("the work is still being looked at"))?;
    Ok((
        Job {
            head,
            stage: Prepared(work),
        },
        slot,
    ))
}

/// Runs the job on its slot, watched. When it has to be given up the device is told, and keeps the slot until it is free of it.
async fn generate<B: Backend>(
    shop: &Workshop<B>,
    job: Job<Prepared<B>>,
    slot: Slot,
    tile: &Tile,
) -> Result<Job<Generated<B>>, Fault> {
    let Job {
        head,
        stage: Prepared(work),
    } = job;
    let device = Arc::clone(&shop.devices[slot.device]);
    let expected = shop.backend.estimate(&work, &slot.engine);
    let started = Instant::now();
    tile.running(device.name(), expected);
    let mut watchdog = Watchdog::new(
        shop.settings.patience,
        started,
        head.lease.end,
        expected.unwrap_or_default(),
    );
    let (progress, mut news) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let _cancelled_when_left = cancel.clone().drop_guard();
    let mut run = tokio::spawn(async move {
        let result = device.run(work, RunLine { progress, cancel }).await;
        drop(slot);
        result
    });
    let mut is_draining = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut run => {
                let results = ended.unwrap_or_else(|_| Err(Fault::of_worker("the device panicked")))?;
                shop.board.write(|board| board.typical = Some(averaged(board.typical, started.elapsed())));
                return Ok(Job { head, stage: Generated(results) });
            }
            () = shop.hurried(Haste::All, &head.lease) => return Err(handed_back()),
            () = shop.hurried(Haste::Waiting, &head.lease), if !is_draining => {
                is_draining = true;
                if tile.left().is_some_and(|left| left > shop.settings.drain_grace) {
                    return Err(handed_back());
                }
            }
            Ok(()) = news.changed() => {
                let progress = news.borrow_and_update().clone();
                watchdog.on_progress(progress.done, &progress.phase, Instant::now());
                tile.progress(&progress);
            }
            () = sleep_until(watchdog.bites_at()) => return Err(Fault::of_worker(watchdog.reason(Instant::now()))),
        }
    }
}

/// Exponential average that follows a change of work within a few jobs.
fn averaged(before: Option<Duration>, now: Duration) -> Duration {
    before.map_or(now, |before| before.mul_f64(0.7) + now.mul_f64(0.3))
}

pub(crate) fn handed_back() -> Fault {
    Fault::of_job("handed back because the worker stops, rests or was asleep")
}

/// The head of a freshly popped job.
pub(crate) fn head_of<B: Backend>(job: &Popped<B>, lease: crate::job::Lease) -> Head {
    Head {
        generations: job.0.generations.clone(),
        model: job.0.model.clone(),
        fault_model: job.0.fault_model.clone(),
        lease,
    }
}
