//! What a new start does with the generations the last one left open: finished bytes within their time are handed in,
//! the rest is handed back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use horde_client::kind::Generation;
use tokio::time::Instant;

use crate::backend::{Backend, Fault};
use crate::deliver::{close, hand_back, submit};
use crate::job::{Head, Job, Lease, SWEEP, Submission, Uploaded};
use crate::ledger::{OpenRow, OpenStage};
use crate::workshop::{Workshop, caught};

/// Ends one generation that was left open. Even one whose time is up gets its one attempt, as evidence.
pub(crate) async fn replay<B: Backend>(shop: Arc<Workshop<B>>, row: OpenRow) {
    shop.board.claim(&row.id);
    let head = head_of(&row, shop.settings.clock.unix_ms());
    let delivered = caught(async {
        let submission = finished(&shop, &row).await?;
        submit(
            &shop,
            Job {
                head: head.clone(),
                stage: Uploaded(submission),
            },
        )
        .await
    })
    .await;
    match delivered {
        Ok(closing) => close(&shop, &head, closing, false).await,
        Err(fault) => close(&shop, &head, hand_back(&shop, &head, &fault).await, fault.ours).await,
    }
}

/// The submission to hand in without its upload target, which is in no ledger.
async fn finished<B: Backend>(shop: &Workshop<B>, row: &OpenRow) -> Result<Submission<B>, Fault> {
    if row.stage == OpenStage::Popped {
        return Err(Fault::of_job("the worker was restarted before it was finished"));
    }
    let (ledger, id) = (Arc::clone(&shop.ledger), row.id.clone());
    let read = tokio::task::spawn_blocking(move || ledger.finished(&id)).await;
    let spooled = match read {
        Ok(Ok(spooled)) => spooled,
        Ok(Err(error)) => return Err(Fault::of_job(error.to_string())),
        Err(_) => return Err(Fault::of_job("its finished bytes could not be read")),
    };
    let unreadable = |_| Fault::of_job("its finished bytes are of another version of this worker");
    let submission: Submission<B> = serde_json::from_slice(&spooled.submission).map_err(unreadable)?;
    match spooled.upload {
        Some(bytes) if row.stage == OpenStage::Generated => shop
            .backend
            .inline(&submission, &Bytes::from(bytes.into_vec()))
            .ok_or_else(|| Fault::of_job("the worker was restarted before its bytes were uploaded")),
        _ => Ok(submission),
    }
}

/// What is left of the lease, by wall time; a clock set back counts as no time passed.
fn head_of(row: &OpenRow, now_ms: i64) -> Head {
    let passed = Duration::from_millis(u64::try_from(now_ms.saturating_sub(row.popped_at_ms)).unwrap_or_default());
    let now = Instant::now();
    let lease = Lease {
        asked: now,
        ttl: row.ttl,
        end: now + row.ttl.saturating_sub(passed),
        last_call: now + (row.ttl + SWEEP).saturating_sub(passed),
        n_sleeps: 0,
    };
    Head {
        generations: vec![Generation {
            id: row.id.clone(),
            upload: None,
        }],
        model: None,
        fault_model: row.fault_model.clone(),
        lease,
    }
}
