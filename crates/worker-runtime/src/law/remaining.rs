//! How long a running job still needs, by what the engine reports.

use std::time::Duration;

use tokio::time::Instant;

/// Estimates the rest of one run.
#[derive(Clone, Debug)]
pub struct Remaining {
    started: Instant,
    expected: Option<Duration>,
    phase_started: Instant,
    phase_done_at_start: u32,
    phase: String,
    done: u32,
    total: u32,
    last: Instant,
}

impl Remaining {
    /// Starts with the job; `expected` is the estimate for the whole run, where there is one.
    pub fn new(now: Instant, expected: Option<Duration>) -> Self {
        Self {
            started: now,
            expected,
            phase_started: now,
            phase_done_at_start: 0,
            phase: String::new(),
            done: 0,
            total: 0,
            last: now,
        }
    }

    /// A report of the engine.
    pub fn on_progress(&mut self, done: u32, total: u32, phase: &str, now: Instant) {
        if phase != self.phase || done < self.done {
            phase.clone_into(&mut self.phase);
            self.phase_started = now;
            self.phase_done_at_start = done;
        }
        (self.done, self.total, self.last) = (done, total, now);
    }

    /// Steps per second in this phase, once one was made.
    pub fn rate(&self) -> Option<f64> {
        let seconds = self.last.saturating_duration_since(self.phase_started).as_secs_f64();
        let steps = self.done.saturating_sub(self.phase_done_at_start);
        (steps > 0 && seconds > 0.0).then(|| f64::from(steps) / seconds)
    }

    /// What is left, or `None` when nothing is known yet.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        if let Some(rate) = self.rate() {
            let at_last = Duration::from_secs_f64((f64::from(self.total.saturating_sub(self.done)) / rate).min(1e6));
            return Some(at_last.saturating_sub(now.saturating_duration_since(self.last)));
        }
        Some(
            self.expected?
                .saturating_sub(now.saturating_duration_since(self.started)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn steps_decide_once_there_are_some_and_the_estimate_before() {
        let start = Instant::now();
        let mut left = Remaining::new(start, Some(s(30)));
        assert_eq!(left.left(start + s(10)), Some(s(20)));
        left.on_progress(0, 10, "steps", start + s(10));
        left.on_progress(2, 10, "steps", start + s(14));
        assert_eq!(left.left(start + s(14)), Some(s(16)));
        assert_eq!(left.left(start + s(15)), Some(s(15)));
        assert_eq!(left.rate(), Some(0.5));
    }

    #[test]
    fn nothing_known_is_said_and_wild_reports_do_no_harm() {
        let start = Instant::now();
        let mut left = Remaining::new(start, None);
        assert_eq!(left.left(start), None);
        left.on_progress(5, 3, "steps", start + s(1));
        left.on_progress(u32::MAX, 0, "steps", start + s(2));
        assert_eq!(left.left(start + s(2)), Some(Duration::ZERO));
        left.on_progress(0, u32::MAX, "steps", start + s(3));
        left.on_progress(1, u32::MAX, "steps", start + s(1003));
        assert!(left.left(start + s(1003)).is_some());
    }
}
