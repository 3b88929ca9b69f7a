//! Whether to ask for work at this moment: every law asked in turn, the first that objects says why.

use std::time::Duration;

use horde_client::kind::JobKind;
use tokio::time::Instant;

use crate::backend::{Backend, EngineReport};
use crate::law::breaker::Rest;
use crate::law::owner::Wish;
use crate::law::prefetch::{EAGER_SLACK, Outlook, Prefetch, wait_until_pop};
use crate::run::{HAND_BACK_TIME, Worker};
use crate::status::{Level, Stage};

/// Pops under way at once while each brings a job; only one while they do not.
const POPS_AT_ONCE: usize = 4;
/// A backend with nothing to offer is asked again after this.
const OFFER_RETRY: Duration = Duration::from_secs(5);
/// A slot whose job was given up falls free after its engine was ended.
const STRAGGLER_TIME: Duration = Duration::from_secs(10);

/// What the laws say at one moment.
pub(crate) struct Plan<R> {
    pub pop: Option<R>,
    /// When to look again although nothing happens.
    pub wake: Option<Instant>,
    /// Why no pop is sent.
    pub idle: Option<String>,
}

impl<B: Backend> Worker<B> {
    /// Whether to pop now, and if not, why and until when.
    pub async fn plan(&mut self, now: Instant) -> Plan<<B::Kind as JobKind>::PopRequest> {
        let not = |idle: &str, wake| Plan {
            pop: None,
            wake,
            idle: Some(idle.to_owned()),
        };
        match self.wish {
            Wish::Run => {}
            Wish::Pause { until, .. } => return not("paused by its owner", until),
            Wish::Finish => return not("finishing what it holds", None),
            // The grace ends before the time to leave: what runs is handed back in between.
            Wish::Stop(_) => {
                return not(
                    "stopping",
                    self.leave_by
                        .and_then(|by| by.checked_sub(HAND_BACK_TIME))
                        .filter(|at| *at > now),
                );
            }
        }
        let disk_trouble = self.shop.board.look().disk_trouble.clone();
        if let Some((reason, retry_at)) = disk_trouble {
            if now < retry_at {
                return not(&reason, Some(retry_at));
            }
            let now_ms = self.shop.settings.clock.unix_ms();
            if self.shop.record(move |ledger| ledger.probe(now_ms)).await.is_none() {
                return not(&reason, Some(now + OFFER_RETRY));
            }
            self.shop.board.write(|board| board.disk_trouble = None);
            self.shop.board.event(Level::Good, "the ledger can be written again");
        }
        let (rest, held, outbox) = {
            let mut board = self.shop.board.look();
            (
                board.breaker.rest(now),
                board.held_until.filter(|until| now < *until),
                board.outbox,
            )
        };
        if held.is_some() {
            return not("the Horde refuses the key or the name", held);
        }
        if let Some((until, why)) = rest {
            let why = match why {
                Rest::AfterFault => "a short rest after a job that was handed back",
                Rest::Breaker => "too many jobs failed here",
                Rest::Budget => "as many jobs were handed back as an hour may have",
            };
            return not(why, Some(until));
        }
        if outbox >= self.shop.settings.max_outbox.max(1) {
            return not("results wait to be handed in", None);
        }
        let engines = self.shop.slots.reports();
        if engines.is_empty() {
            return match self.shop.backend.waits_for() {
                Some(why) => not(&why, Some(now + OFFER_RETRY)),
                None => not("no engine is ready", None),
            };
        }
        let outlook = self.outlook(now);
        let is_in_doubt = {
            let board = self.shop.board.look();
            board.breaker.is_in_doubt() && !(board.tiles.is_empty() && self.pops.is_empty())
        };
        if is_in_doubt {
            return Plan {
                pop: None,
                wake: None,
                idle: None,
            };
        }
        match wait_until_pop(self.prefetch(&engines), &outlook) {
            Some(Duration::ZERO) => {}
            later => {
                return Plan {
                    pop: None,
                    wake: later.map(|wait| now + wait),
                    idle: None,
                };
            }
        }
        if now < self.next_pop {
            let idle = (outlook.free > 0).then(|| self.why_waiting());
            return Plan {
                pop: None,
                wake: Some(self.next_pop),
                idle,
            };
        }
        if self.pops.len() >= if self.last_pop_hit { POPS_AT_ONCE } else { 1 } {
            return Plan {
                pop: None,
                wake: None,
                idle: None,
            };
        }
        let room = (outlook.free.saturating_sub(outlook.coming)).max(1);
        match self.shop.backend.offer(&self.shop.slots.reports_with_room(), room) {
            Ok(request) => Plan {
                pop: Some(request),
                wake: None,
                idle: None,
            },
            Err(nothing) => not(&nothing.0, Some(now + OFFER_RETRY)),
        }
    }

    fn why_waiting(&self) -> String {
        if !self.last_error.is_empty() {
            return self.last_error.clone();
        }
        let reasons: Vec<_> = self
            .poll
            .skipped
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(why, n)| format!("{n} for {why}"))
            .collect();
        if reasons.is_empty() {
            "the Horde has no work for this worker".to_owned()
        } else {
            format!(
                "the Horde has no work for this worker; passed over: {}",
                reasons.join(", ")
            )
        }
    }

    fn outlook(&self, now: Instant) -> Outlook {
        let (free, n_busy) = self.shop.slots.count();
        let board = self.shop.board.look();
        let tiles = board.tiles.values();
        let mut busy: Vec<Option<Duration>> = Vec::with_capacity(n_busy);
        let mut coming = self.pops.len();
        for tile in tiles {
            match tile.stage {
                Stage::Preparing | Stage::Waiting => coming += 1,
                Stage::Running => busy.push(tile.remaining.as_ref().and_then(|remaining| remaining.left(now))),
                Stage::Delivering => {}
            }
        }
        // For a moment after a change of jobs there are more tiles than busy slots: the one that just ended is nearest its end.
        busy.sort_by_key(|left| std::cmp::Reverse(left.unwrap_or_default()));
        busy.resize(n_busy, Some(STRAGGLER_TIME));
        Outlook {
            free,
            busy,
            coming,
            typical: board.typical,
            lead: board.lead.p95(),
        }
    }

    /// Eager where neither the lease nor the measured speed minds.
    fn prefetch(&self, engines: &[EngineReport]) -> Prefetch {
        let set = self.shop.settings.prefetch;
        let typical = self.shop.board.look().typical;
        let lease_slack = typical.is_some_and(|typical| B::Kind::DEFAULT_TTL > typical.mul_f64(EAGER_SLACK));
        let speed_slack = engines.iter().all(|engine| {
            self.shop
                .backend
                .speed_slack(engine)
                .is_some_and(|slack| slack > EAGER_SLACK)
        });
        Prefetch {
            eager: set.eager || (lease_slack && speed_slack),
            ..set
        }
    }
}
