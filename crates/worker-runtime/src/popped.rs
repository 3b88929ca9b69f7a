//! What follows from a pop's answer: a life for each job, and the law's word on when to ask again.

use std::sync::Arc;
use std::time::Duration;

use horde_client::error::{ApiError, ErrorClass, SlowReason, StopReason};
use horde_client::kind::{JobKind, Popped as PopAnswer};
use tokio::time::Instant;

use crate::backend::Backend;
use crate::job::{Job, Lease, Payload, Popped};
use crate::law::poll::{PopEnd, only_hopeless};
use crate::life::{head_of, live};
use crate::run::Worker;
use crate::settings::RunError;
use crate::status::Level;

impl<B: Backend> Worker<B> {
    /// Consumes a pop's answer: a life for each job, and the law's word on when to ask again.
    pub fn on_pop(
        &mut self,
        asked: Instant,
        request: &<B::Kind as JobKind>::PopRequest,
        answer: Result<PopAnswer<Payload<B>>, ApiError>,
    ) -> Result<(), RunError> {
        let now = Instant::now();
        let n_sleeps = self.shop.hurry.borrow().n_sleeps;
        let mut error_text = String::new();
        let end = match answer {
            Ok(popped) => {
                self.has_served = true;
                self.poll.pops += 1;
                self.shop.board.messages(popped.messages);
                let end = if popped.jobs.is_empty() {
                    let hopeless = only_hopeless(&popped.skipped);
                    self.poll.skipped = popped.skipped.into_iter().take(32).collect();
                    PopEnd::Empty { hopeless }
                } else {
                    self.poll.hits += 1;
                    PopEnd::Hit
                };
                for job in popped.jobs.into_iter().filter(|job| !job.generations.is_empty()) {
                    let lease = Lease::new(asked, now, job.ttl.unwrap_or(B::Kind::DEFAULT_TTL), n_sleeps);
                    let job = Popped::<B>(job);
                    let head = head_of(&job, lease);
                    // On the wall before the life begins, so that the next look at the devices counts it.
                    let tile = self.shop.board.tile(&head);
                    self.lives
                        .spawn(live(Arc::clone(&self.shop), Job { head, stage: job }, tile));
                }
                end
            }
            Err(error) => {
                self.poll.failed += 1;
                self.poll.ghosts += u64::from(error.may_have_acted());
                error_text = error.to_string();
                self.pop_failed(request, &error)?
            }
        };
        // Told once, not at every attempt.
        if !error_text.is_empty() && error_text != self.last_error {
            self.shop
                .board
                .event(Level::Warning, &format!("asking for work failed: {error_text}"));
        } else if error_text.is_empty() && !self.last_error.is_empty() {
            self.shop.board.event(Level::Good, "the Horde answers again");
        }
        self.last_error = error_text;
        let chance = self.shop.board.write(|board| board.chance.unit());
        self.last_pop_hit = end == PopEnd::Hit;
        self.next_pop = now + self.law.on(end, now, chance);
        Ok(())
    }

    fn pop_failed(&self, request: &<B::Kind as JobKind>::PopRequest, error: &ApiError) -> Result<PopEnd, RunError> {
        let refuse = |reason| {
            Err(RunError::Refused {
                reason,
                message: error.to_string(),
            })
        };
        match (error.class(), error) {
            (ErrorClass::Stop(reason), _) if !self.has_served && reason != StopReason::Account => refuse(reason),
            (ErrorClass::Stop(_), _) => Ok(PopEnd::Permanent),
            (ErrorClass::BadRequest, _) if self.shop.backend.pop_refused(request, error) => {
                Ok(PopEnd::Asked(Duration::ZERO))
            }
            // The server names what it does not like in this pop: models, a name; nothing that waiting cures.
            (ErrorClass::BadRequest, ApiError::Refused { rc: Some(_), .. }) if !self.has_served => {
                refuse(StopReason::Settings)
            }
            (ErrorClass::BadRequest, _) => Ok(PopEnd::Permanent),
            (
                ErrorClass::SlowDown {
                    why: SlowReason::Maintenance,
                    wait,
                },
                _,
            ) if wait > Duration::from_secs(60) => Ok(PopEnd::Permanent),
            (
                ErrorClass::SlowDown {
                    why: SlowReason::Maintenance,
                    ..
                },
                _,
            ) => Ok(PopEnd::Maintenance),
            (
                ErrorClass::SlowDown {
                    why: SlowReason::RateLimit,
                    wait,
                },
                _,
            ) => Ok(PopEnd::Asked(wait)),
            (
                ErrorClass::SlowDown {
                    why: SlowReason::Address,
                    ..
                },
                _,
            ) => Ok(PopEnd::Permanent),
            (ErrorClass::Retry { after: Some(wait) }, _) if !wait.is_zero() => Ok(PopEnd::Asked(wait)),
            (ErrorClass::Retry { .. } | ErrorClass::Gone | ErrorClass::AlreadyAccepted, _) => Ok(PopEnd::Failed),
        }
    }
}
