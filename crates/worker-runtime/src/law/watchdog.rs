//! When a running job counts as hung: no progress for much longer than a step takes, or its lease is over.

use std::time::Duration;

use tokio::time::Instant;

/// How long an engine may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Shortest silence that counts as a hang between steps. Default 20 s.
    pub silence: Duration,
    /// Silence allowed before the first step of a phase, where models are loaded. Default 90 s.
    pub first_step: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(20),
            first_step: Duration::from_secs(90),
        }
    }
}

/// Watches one job on a device.
#[derive(Clone, Debug)]
pub struct Watchdog {
    patience: Patience,
    lease_end: Instant,
    expected: Duration,
    last_rise: Instant,
    done: u32,
    phase: String,
    slowest_step: Option<Duration>,
}

impl Watchdog {
    /// Starts with the job. `expected` is the estimate of the whole run, zero when unknown.
    pub fn new(patience: Patience, now: Instant, lease_end: Instant, expected: Duration) -> Self {
        Self {
            patience,
            lease_end,
            expected,
            last_rise: now,
            done: 0,
            phase: String::new(),
            slowest_step: None,
        }
    }

    /// A report of the engine. Only a rising counter or a new phase is progress; a beat alone is not.
    pub fn on_progress(&mut self, done: u32, phase: &str, now: Instant) {
        if phase != self.phase {
            phase.clone_into(&mut self.phase);
            self.done = done;
            self.slowest_step = None;
            self.last_rise = now;
        } else if done > self.done {
            let steps = done - self.done;
            let step = now.saturating_duration_since(self.last_rise) / steps;
            self.slowest_step = Some(self.slowest_step.map_or(step, |slowest| slowest.max(step)));
            self.done = done;
            self.last_rise = now;
        }
    }

    /// When the job must be given up unless progress comes before.
    pub fn bites_at(&self) -> Instant {
        let silence = match self.slowest_step {
            Some(step) => self.patience.silence.max(step.saturating_mul(10)),
            // An engine that reports nothing is given three times what the job should take.
            None => self.patience.first_step.max(self.expected.saturating_mul(3)),
        };
        self.last_rise
            .checked_add(silence)
            .map_or(self.lease_end, |at| at.min(self.lease_end))
    }

    /// Why it bites, in words.
    pub fn reason(&self, now: Instant) -> &'static str {
        if now >= self.lease_end {
            "its time ran out on the device"
        } else {
            "the engine made no progress"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn f071_a_hang_between_steps_is_seen_after_twenty_seconds_or_ten_steps() {
        let start = Instant::now();
        let mut dog = Watchdog::new(Patience::default(), start, start + s(600), s(10));
        assert_eq!(dog.bites_at(), start + s(90));
        dog.on_progress(0, "steps", start + s(5));
        dog.on_progress(1, "steps", start + s(6));
        assert_eq!(dog.bites_at(), start + s(26));
        dog.on_progress(2, "steps", start + s(11));
        assert_eq!(dog.bites_at(), start + s(11 + 50));
    }

    #[test]
    fn f072_beats_without_progress_do_not_keep_a_job_alive() {
        let start = Instant::now();
        let mut dog = Watchdog::new(Patience::default(), start, start + s(600), s(10));
        dog.on_progress(0, "steps", start);
        dog.on_progress(1, "steps", start + s(1));
        for beat in 2..100 {
            dog.on_progress(1, "steps", start + s(beat));
            dog.on_progress(0, "steps", start + s(beat));
        }
        assert_eq!(dog.bites_at(), start + s(21));
    }

    #[test]
    fn f044_progress_does_not_outlive_the_lease() {
        let start = Instant::now();
        let mut dog = Watchdog::new(Patience::default(), start, start + s(30), s(10));
        dog.on_progress(1, "steps", start + s(29));
        assert_eq!(dog.bites_at(), start + s(30));
        assert_eq!(dog.reason(start + s(30)), "its time ran out on the device");
    }
}
