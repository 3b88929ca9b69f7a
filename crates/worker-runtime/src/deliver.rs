//! The second half of a generation's life: checked, kept, uploaded, submitted, or handed back; and closed.

use std::time::Duration;

use horde_client::client::Submitted;
use horde_client::error::{ApiError, ErrorClass, SlowReason};
use horde_client::kind::{Cause, HandBack};
use serde_bytes::ByteBuf;
use tokio::time::{Instant, sleep_until};

use crate::backend::{Backend, Fault};
use crate::job::{Checked, Head, Job, Lease, Made, Submission, Uploaded};
use crate::law::retry::{Backoff, RETRY_COST, THROTTLED_COST};
use crate::ledger::{Closing, Spooled};
use crate::status::Level;
use crate::workshop::Workshop;

/// While the key or the name is refused, results wait and are tried again at this pace.
const HELD_PACE: Duration = Duration::from_secs(60);

/// Looks at the result; nothing unchecked goes further.
pub(crate) async fn check<B: Backend>(shop: &Workshop<B>, job: Job<Made<B>>) -> Result<Job<Checked<B>>, Fault> {
    let Job {
        head,
        stage: Made(output),
    } = job;
    let finished = shop.backend.check(output?).await?;
    shop.board.write(|board| board.totals.units += finished.units.max(0.0));
    Ok(Job {
        head,
        stage: Checked(finished),
    })
}

/// Keeps the finished bytes on the disk until they are handed in.
pub(crate) async fn keep<B: Backend>(shop: &Workshop<B>, job: Job<Checked<B>>) -> Job<Checked<B>> {
    let id = job.head.only().id.clone();
    let finished = &job.stage.0;
    if let Ok(submission) = serde_json::to_vec(&finished.submission) {
        let upload = finished.upload.as_ref().map(|bytes| ByteBuf::from(bytes.to_vec()));
        let spooled = Spooled { submission, upload };
        shop.record(move |ledger| ledger.generated(&id, &spooled)).await;
    }
    job
}

/// Puts the bytes where the server said, until the job's time is up.
pub(crate) async fn upload<B: Backend>(shop: &Workshop<B>, job: Job<Checked<B>>) -> Result<Job<Uploaded<B>>, Fault> {
    let Job {
        head,
        stage: Checked(finished),
    } = job;
    let submission = finished.submission;
    let Some(bytes) = finished.upload else {
        return Ok(Job {
            head,
            stage: Uploaded(submission),
        });
    };
    let Some(target) = head.only().upload.clone() else {
        let inlined = shop.backend.inline(&submission, &bytes);
        let submission = inlined.ok_or_else(|| Fault::of_job("the server gave no place for its bytes"))?;
        return Ok(Job {
            head,
            stage: Uploaded(submission),
        });
    };
    let _in_outbox = shop.in_outbox();
    let (mut n_failed, mut n_refused) = (0u32, 0u32);
    loop {
        let error = {
            let _turn = shop.deliveries.acquire().await;
            match shop.client.upload(&target, bytes.clone()).await {
                Ok(()) => break,
                Err(error) => error,
            }
        };
        n_failed += 1;
        if is_refusal(&error) {
            n_refused += 1;
            if n_refused >= 2 {
                return Err(Fault::of_job(format!("the object store refused its bytes: {error}")));
            }
        }
        let now = Instant::now();
        let wait = shop.board.write(|board| {
            let backoff = Backoff::DELIVERY.wait(n_failed, board.chance.unit());
            // A refused address will not get better: one quick second try.
            if is_refusal(&error) {
                backoff
            } else {
                backoff.max(board.store_bucket.take(RETRY_COST, now))
            }
        });
        tracing::debug!(%error, ?wait, "an upload failed and is tried again");
        if now + wait >= head.lease.last_call {
            return Err(Fault::of_job("its bytes could not be uploaded in time"));
        }
        sleep_until(now + wait).await;
    }
    let id = head.only().id.clone();
    shop.record(move |ledger| ledger.uploaded(&id)).await;
    Ok(Job {
        head,
        stage: Uploaded(submission),
    })
}

/// Hands the result in, until the server has it or has given it up.
pub(crate) async fn submit<B: Backend>(shop: &Workshop<B>, job: Job<Uploaded<B>>) -> Result<Closing, Fault> {
    let (head, submission) = (job.head, job.stage.0);
    let mut answer = hand_in(shop, &head, &submission).await;
    if matches!(answer, Answer::Malformed) {
        answer = hand_in(shop, &head, &shop.backend.minimal(&submission)).await;
    }
    answer
        .closing()
        .ok_or_else(|| Fault::of_worker("the server refused the submission as malformed").because(Cause::Refused))
}

async fn hand_in<B: Backend>(shop: &Workshop<B>, head: &Head, submission: &Submission<B>) -> Answer {
    let id = &head.only().id;
    knock(shop, head.lease, || shop.client.submit::<B::Kind>(id, submission)).await
}

/// Hands the generation back, until the server knows or has given it up.
pub(crate) async fn hand_back<B: Backend>(shop: &Workshop<B>, head: &Head, fault: &Fault) -> Closing {
    let id = &head.only().id;
    let told = HandBack {
        model: head.fault_model.as_deref(),
        cause: fault.cause,
    };
    tracing::warn!(%id, reason = %fault, ours = fault.ours, "a generation is handed back");
    loop {
        let answer = knock(shop, head.lease, || shop.client.fault::<B::Kind>(id, told)).await;
        match answer {
            Answer::Accepted(_) => {
                return Closing::Faulted {
                    reason: fault.reason.clone(),
                };
            }
            Answer::Malformed if Instant::now() < head.lease.last_call => {
                let next = Instant::now() + Backoff::DELIVERY.wait(20, 1.0);
                sleep_until(next.min(head.lease.last_call)).await;
            }
            Answer::Malformed => {
                return Closing::Expired {
                    evidence: "time passed, hand-back refused".to_owned(),
                };
            }
            other => {
                if let Some(closing) = other.closing() {
                    return closing;
                }
            }
        }
    }
}

/// Closes the generation for good, in the ledger and on the wall.
pub(crate) async fn close<B: Backend>(shop: &Workshop<B>, head: &Head, closing: Closing, fault_is_ours: bool) {
    let (id, at_ms) = (head.only().id.clone(), shop.settings.clock.unix_ms());
    shop.board.ended(&id, &closing, fault_is_ours);
    match &closing {
        Closing::Submitted { reward } => shop
            .board
            .event(Level::Good, &format!("{} done, {reward:.2} kudos", short(&id.0))),
        Closing::AlreadyAccepted => shop.board.event(
            Level::Good,
            &format!("{} done, the server had it already", short(&id.0)),
        ),
        Closing::Faulted { reason } => {
            shop.board
                .event(Level::Warning, &format!("{} handed back: {reason}", short(&id.0)));
        }
        Closing::Expired { evidence } => {
            shop.board
                .event(Level::Warning, &format!("{} expired: {evidence}", short(&id.0)));
        }
    }
    shop.record(move |ledger| ledger.closed(&id, &closing, at_ms)).await;
}

/// What the server said in the end.
enum Answer {
    Accepted(Submitted),
    AlreadyAccepted,
    Gone,
    /// Its time is up, after this many attempts without a final answer.
    TimePassed(u32),
    Malformed,
}

impl Answer {
    /// `None` for a malformed body, which is nobody's end.
    fn closing(self) -> Option<Closing> {
        match self {
            Self::Accepted(taken) => Some(Closing::Submitted { reward: taken.reward }),
            Self::AlreadyAccepted => Some(Closing::AlreadyAccepted),
            Self::Gone => Some(Closing::Expired {
                evidence: "the server has given it up".to_owned(),
            }),
            Self::TimePassed(n) => Some(Closing::Expired {
                evidence: format!("time passed after {n} attempts"),
            }),
            Self::Malformed => None,
        }
    }
}

/// Asks until there is a final answer or the job's last call has passed; at least once.
async fn knock<B, F>(shop: &Workshop<B>, lease: Lease, ask: impl Fn() -> F) -> Answer
where
    B: Backend,
    F: Future<Output = Result<Submitted, ApiError>>,
{
    let _in_outbox = shop.in_outbox();
    let mut n_failed = 0u32;
    loop {
        let answer = {
            let _turn = shop.deliveries.acquire().await;
            ask().await
        };
        let error = match answer {
            Ok(taken) => {
                shop.board.write(|board| board.held_until = None);
                return Answer::Accepted(taken);
            }
            Err(error) => error,
        };
        n_failed += 1;
        let now = Instant::now();
        let backoff = |cost: f64, at_least: Duration| {
            shop.board.write(|board| {
                let backoff = Backoff::DELIVERY.wait(n_failed, board.chance.unit());
                backoff.max(at_least).max(board.api_bucket.take(cost, now))
            })
        };
        let wait = match error.class() {
            ErrorClass::AlreadyAccepted => return Answer::AlreadyAccepted,
            ErrorClass::Gone => return Answer::Gone,
            ErrorClass::BadRequest => return Answer::Malformed,
            ErrorClass::Retry { after } => backoff(RETRY_COST, after.unwrap_or_default()),
            ErrorClass::SlowDown {
                wait,
                why: SlowReason::RateLimit,
            } => backoff(THROTTLED_COST, wait),
            ErrorClass::SlowDown { .. } | ErrorClass::Stop(_) => {
                let is_new = shop
                    .board
                    .write(|board| board.held_until.replace(now + HELD_PACE).is_none());
                if is_new {
                    shop.board
                        .event(Level::Bad, &format!("results wait and no work is asked for: {error}"));
                }
                HELD_PACE
            }
        };
        if now >= lease.last_call {
            return Answer::TimePassed(n_failed);
        }
        tracing::debug!(%error, ?wait, "a submission failed and is tried again");
        // The last attempt comes when the time is up, not before.
        sleep_until((now + wait).min(lease.last_call)).await;
    }
}

/// A permanent no of the object store, as far as one can tell: everything below 500 but time-outs and limits, and 501.
fn is_refusal(error: &ApiError) -> bool {
    match error {
        ApiError::Refused { status, .. } => !matches!(status.as_u16(), 408 | 421 | 425 | 429 | 500 | 502..=599),
        _ => false,
    }
}

fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

/// Counts one generation in the outbox while it lives.
pub(crate) struct InOutbox<'a>(&'a crate::board::Board);

impl<B: Backend> Workshop<B> {
    fn in_outbox(&self) -> InOutbox<'_> {
        self.board.write(|board| board.outbox += 1);
        InOutbox(&self.board)
    }
}

impl Drop for InOutbox<'_> {
    fn drop(&mut self) {
        self.0.write(|board| board.outbox = board.outbox.saturating_sub(1));
    }
}
