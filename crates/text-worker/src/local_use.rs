//! Whether somebody else uses the other program: what it says of its last request, less what were our own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use textgen::bridge::Usage;

/// Sees local use through a counter that does not tell local requests from ours. Without clock and I/O.
#[derive(Debug)]
pub(crate) struct LocalUse {
    /// How long after local use nothing is offered.
    yields: Duration,
    /// When each job that may still run there was popped, the oldest first.
    open: VecDeque<Instant>,
    /// When we last used it ourselves.
    own: Option<Instant>,
    /// When somebody else was last seen to use it.
    local: Option<Instant>,
}

/// The other program's clock and its answer's way make our own requests look this much later than they were.
const BLUR: Duration = Duration::from_secs(2);
/// A job that was handed back is not heard of again; behind its lease it does not run any more.
const LONGEST_JOB: Duration = Duration::from_secs(180);

impl LocalUse {
    pub(crate) fn new(yields: Duration) -> Self {
        Self {
            yields,
            open: VecDeque::new(),
            own: None,
            local: None,
        }
    }

    /// One of our jobs will run there from now on.
    pub(crate) fn popped(&mut self, now: Instant) {
        self.open.push_back(now);
        self.own = Some(now);
    }

    /// One of our jobs has ended.
    pub(crate) fn finished(&mut self, now: Instant) {
        self.open.pop_front();
        self.own = Some(now);
    }

    /// We used it for something else, such as measuring its speed.
    pub(crate) fn touched(&mut self, now: Instant) {
        self.own = Some(now);
    }

    /// Takes what the program says at `now`.
    pub(crate) fn saw(&mut self, usage: Usage, now: Instant) {
        while self
            .open
            .front()
            .is_some_and(|since| now.duration_since(*since) > LONGEST_JOB)
        {
            self.open.pop_front();
        }
        let last = now.checked_sub(usage.idle);
        let unexplained = match (last, self.own) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(last), Some(own)) => last > own + BLUR,
        };
        if self.open.is_empty() {
            if usage.busy || usage.waiting > 0 {
                self.local = Some(now);
            } else if unexplained {
                self.local = self.local.max(last);
            }
        } else if usage.waiting > self.open.len() as u64 {
            self.local = Some(now);
        }
    }

    /// How long ago somebody else used it, where that is not long enough.
    pub(crate) fn in_use(&self, now: Instant) -> Option<Duration> {
        let since = now.saturating_duration_since(self.local?);
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
        let mut seen = LocalUse::new(seconds(20));
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
        let mut seen = LocalUse::new(seconds(20));
        seen.popped(now);
        seen.saw(
            Usage {
                idle: seconds(4),
                busy: true,
                waiting: 0,
            },
            now + seconds(5),
        );
        seen.finished(now + seconds(9));
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

    #[test]
    fn somebody_who_waits_behind_our_job_is_seen() {
        let now = start();
        let mut seen = LocalUse::new(seconds(20));
        seen.popped(now);
        seen.saw(
            Usage {
                idle: seconds(1),
                busy: true,
                waiting: 2,
            },
            now + seconds(3),
        );
        assert_eq!(seen.in_use(now + seconds(3)), Some(Duration::ZERO));
        let mut seen = LocalUse::new(seconds(20));
        seen.popped(now);
        seen.finished(now + seconds(5));
        // Nothing of ours runs, and yet it is busy.
        seen.saw(
            Usage {
                idle: seconds(3),
                busy: true,
                waiting: 0,
            },
            now + seconds(6),
        );
        assert_eq!(seen.in_use(now + seconds(25)), Some(seconds(19)));
    }

    #[test]
    fn a_job_that_was_handed_back_is_forgotten_after_its_lease() {
        let now = start();
        let mut seen = LocalUse::new(seconds(20));
        seen.popped(now);
        let later = now + seconds(200);
        seen.saw(Usage { busy: true, ..IDLE }, later);
        assert_eq!(seen.in_use(later), Some(Duration::ZERO));
    }
}
