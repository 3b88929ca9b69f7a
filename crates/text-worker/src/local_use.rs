//! Whether somebody else uses the other program: what it says of its last request, less what were our own.

use std::time::{Duration, Instant};

use textgen::bridge::Usage;

/// Sees local use through a counter that does not tell local requests from ours. Without clock and I/O.
#[derive(Debug)]
pub(crate) struct LocalUse {
    /// How long after local use nothing is offered.
    yields: Duration,
    /// Most requests of ours that run there at once.
    parallel: usize,
    /// Jobs of ours that may still run there.
    open: usize,
    /// Until when jobs that have ended here may not have ended there.
    lingering: Vec<Instant>,
    /// Until when what is seen may be our own doing.
    own_until: Option<Instant>,
    /// When somebody else was seen to use it, while that still matters; about one a second, so at most some thousand.
    local: Vec<Instant>,
}

/// The other program's clock and its answer's way make our own requests look this much later than they were.
const BLUR: Duration = Duration::from_secs(2);
/// A job that was given up may keep the other program busy for so long: it ends a batch of the prompt first.
const LINGERS: Duration = Duration::from_secs(10);

impl LocalUse {
    pub(crate) fn new(yields: Duration, parallel: usize) -> Self {
        Self {
            yields,
            parallel,
            open: 0,
            lingering: Vec::new(),
            own_until: None,
            local: Vec::new(),
        }
    }

    /// One of our jobs will run there from now on.
    pub(crate) fn popped(&mut self, now: Instant) {
        self.open += 1;
        self.own_until = self.own_until.max(Some(now + BLUR));
    }

    /// One of our jobs has ended; `is_made` unless it failed or was given up.
    pub(crate) fn left(&mut self, is_made: bool, now: Instant) {
        self.open = self.open.saturating_sub(1);
        let lasts = if is_made { BLUR } else { LINGERS };
        self.lingering.retain(|until| *until > now);
        self.lingering.push(now + lasts);
        self.own_until = self.own_until.max(Some(now + lasts));
    }

    /// We measured its speed between `from` and `to`; what was seen then was us.
    pub(crate) fn measured(&mut self, from: Instant, to: Instant) {
        self.local.retain(|seen| *seen + BLUR < from || *seen > to + BLUR);
        self.own_until = self.own_until.max(Some(to + BLUR));
    }

    /// Takes what the program says at `now`.
    pub(crate) fn saw(&mut self, usage: Usage, now: Instant) {
        let yields = self.yields;
        self.local.retain(|seen| now.saturating_duration_since(*seen) < yields);
        self.lingering.retain(|until| *until > now);
        let there = usage.waiting.saturating_add(u64::from(usage.busy));
        if self.open > 0 {
            // Whatever runs or waits beyond what can be ours is somebody else's.
            let ours = self.open.min(self.parallel) + self.lingering.len();
            if there > ours as u64 {
                self.local.push(now);
            }
            return;
        }
        let seen = if there > 0 {
            Some(now)
        } else {
            now.checked_sub(usage.idle)
        };
        // `None` is earlier than any time: without anything of ours, all of it is somebody else's.
        if seen > self.own_until
            && let Some(seen) = seen.filter(|seen| now.saturating_duration_since(*seen) < yields)
        {
            self.local.push(seen);
        }
    }

    /// How long ago somebody else used it, where that is not long enough.
    pub(crate) fn in_use(&self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(*self.local.iter().max()?);
        (since < self.yields).then_some(since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Usage = Usage {
        idle: Duration::from_secs(3_600),
        busy: false,
        waiting: 0,
    };

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    /// Two hours of life before the test begins, so that an hour of idleness can be counted back.
    fn start() -> Instant {
        Instant::now() + seconds(7_200)
    }

    #[test]
    fn local_use_is_yielded_to_for_the_whole_time() {
        let now = start();
        let mut seen = LocalUse::new(seconds(20), 1);
        seen.saw(IDLE, now);
        assert_eq!(seen.in_use(now), None);
        seen.saw(
            Usage {
                idle: seconds(5),
                ..IDLE
            },
            now,
        );
        assert_eq!(seen.in_use(now), Some(seconds(5)));
        assert_eq!(seen.in_use(now + seconds(14)), Some(seconds(19)));
        assert_eq!(seen.in_use(now + seconds(15)), None);
    }

    #[test]
    fn our_own_requests_are_not_taken_for_somebody_elses() {
        let now = start();
        let mut seen = LocalUse::new(seconds(20), 1);
        seen.popped(now);
        seen.saw(
            Usage {
                idle: seconds(4),
                busy: true,
                waiting: 0,
            },
            now + seconds(5),
        );
        seen.left(true, now + seconds(9));
        seen.saw(
            Usage {
                idle: seconds(9),
                ..IDLE
            },
            now + seconds(10),
        );
        assert_eq!(seen.in_use(now + seconds(10)), None);
        // This one is nine seconds younger than our last.
        seen.saw(
            Usage {
                idle: seconds(1),
                ..IDLE
            },
            now + seconds(19),
        );
        assert_eq!(seen.in_use(now + seconds(19)), Some(seconds(1)));
    }

    /// `waiting` behind one that runs.
    fn full(waiting: u64) -> Usage {
        Usage {
            idle: seconds(1),
            busy: true,
            waiting,
        }
    }

    #[test]
    fn somebody_beside_our_job_is_seen_whoever_of_both_waits() {
        let now = start();
        let mut seen = LocalUse::new(seconds(20), 1);
        seen.popped(now);
        // Another one of ours waits here, not there.
        seen.popped(now);
        seen.saw(full(0), now + seconds(3));
        assert_eq!(seen.in_use(now + seconds(3)), None);
        seen.saw(full(1), now + seconds(4));
        assert_eq!(seen.in_use(now + seconds(4)), Some(Duration::ZERO));
        let mut seen = LocalUse::new(seconds(20), 2);
        seen.popped(now);
        seen.popped(now);
        seen.saw(full(1), now + seconds(3));
        assert_eq!(seen.in_use(now + seconds(3)), None);
        seen.saw(full(2), now + seconds(4));
        assert!(seen.in_use(now + seconds(4)).is_some());
    }

    #[test]
    fn our_next_job_may_wait_for_the_end_of_our_last() {
        let now = start();
        let mut seen = LocalUse::new(seconds(20), 1);
        seen.popped(now);
        seen.left(true, now + seconds(5));
        seen.popped(now + seconds(5));
        seen.saw(full(1), now + seconds(6));
        assert_eq!(seen.in_use(now + seconds(6)), None);
        // By now the last one has ended there, too.
        seen.saw(full(1), now + seconds(8));
        assert!(seen.in_use(now + seconds(8)).is_some());
    }

    #[test]
    fn what_is_busy_without_us_is_somebody_elses() {
        let now = start();
        let mut seen = LocalUse::new(seconds(20), 1);
        seen.popped(now);
        seen.left(true, now + seconds(5));
        seen.saw(full(0), now + seconds(8));
        assert_eq!(seen.in_use(now + seconds(27)), Some(seconds(19)));
    }

    #[test]
    fn a_job_that_failed_is_neither_local_use_nor_hides_it() {
        let now = start();
        let busy = Usage {
            idle: seconds(1),
            busy: true,
            waiting: 0,
        };
        let mut seen = LocalUse::new(seconds(20), 1);
        seen.popped(now);
        seen.left(false, now + seconds(3));
        // The backend is still stopping what we gave up.
        seen.saw(busy, now + seconds(6));
        assert_eq!(seen.in_use(now + seconds(6)), None);
        // Nothing of ours takes so long to stop.
        seen.saw(busy, now + seconds(14));
        assert_eq!(seen.in_use(now + seconds(14)), Some(Duration::ZERO));
    }

    #[test]
    fn measuring_is_not_local_use_but_what_was_before_it_is() {
        let now = start();
        let busy = Usage {
            idle: seconds(1),
            busy: true,
            waiting: 0,
        };
        let mut seen = LocalUse::new(seconds(20), 1);
        // The engine measures before the supervisor hears of it.
        for second in 0..5 {
            seen.saw(busy, now + seconds(second));
        }
        let ready = now + seconds(5);
        assert!(seen.in_use(ready).is_some());
        seen.measured(now, ready);
        assert_eq!(seen.in_use(ready), None);
        let mut seen = LocalUse::new(seconds(20), 1);
        let earlier = Usage {
            idle: seconds(8),
            ..IDLE
        };
        seen.saw(earlier, now);
        seen.saw(busy, now + seconds(1));
        seen.measured(now, ready);
        assert_eq!(seen.in_use(ready), Some(seconds(13)));
    }
}
