//! Pause, resume and cancel from outside, and the two brakes inside: the bandwidth cap and the back-off.

use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// What the owner wants of the downloads right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Go on.
    Run,
    /// Close the connections, keep what is there, wait.
    Pause,
    /// Stop and keep what is there for the next time.
    Stop,
}

/// Handle to pause, resume or stop downloads; clones steer the same downloads.
#[derive(Clone, Debug)]
pub struct Control(watch::Sender<Wanted>);

impl Default for Control {
    fn default() -> Self {
        Self(watch::Sender::new(Wanted::Run))
    }
}

impl Control {
    /// Asks for a pause: connections are closed, part files stay.
    pub fn pause(&self) {
        self.change(Wanted::Pause);
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.change(Wanted::Run);
    }

    /// Ends the downloads; what has arrived is kept and the next start resumes.
    pub fn stop(&self) {
        self.0.send_replace(Wanted::Stop);
    }

    /// What is wanted now.
    pub fn wanted(&self) -> Wanted {
        *self.0.borrow()
    }

    /// Ends when what is wanted is no longer `Run`.
    pub(crate) async fn interrupted(&self) {
        let mut receiver = self.0.subscribe();
        let _ = receiver.wait_for(|wanted| *wanted != Wanted::Run).await;
    }

    /// Waits out a pause; `false` means stop.
    pub(crate) async fn may_run(&self) -> bool {
        let mut receiver = self.0.subscribe();
        match receiver.wait_for(|wanted| *wanted != Wanted::Pause).await {
            Ok(wanted) => *wanted == Wanted::Run,
            Err(_) => false,
        }
    }

    fn change(&self, to: Wanted) {
        self.0.send_if_modified(|now| {
            let changed = *now != Wanted::Stop && *now != to;
            if changed {
                *now = to;
            }
            changed
        });
    }
}

/// Shares one bandwidth cap between all connections: each asks before it reads on.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: Option<u64>,
    free_at: Mutex<Option<Instant>>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self {
            bytes_per_second: bytes_per_second.filter(|rate| *rate > 0),
            free_at: Mutex::new(None),
        }
    }

    /// Waits until `bytes` fit under the cap.
    pub(crate) async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let until = {
            let mut free_at = self.free_at.lock().expect("no holder of this lock panics");
            let now = Instant::now();
            let start = free_at.map_or(now, |at| at.max(now));
            *free_at = Some(start + cost);
            start + cost
        };
        tokio::time::sleep_until(until).await;
    }
}

/// How long to wait before trying again: doubled from floor to ceiling, jittered by up to a quarter.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// First wait.
    pub floor: Duration,
    /// Longest wait.
    pub ceiling: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            floor: Duration::from_millis(500),
            ceiling: Duration::from_secs(30),
        }
    }
}

impl Backoff {
    /// The wait after the `failures`-th failure in a row (1 and up).
    pub fn wait(&self, failures: u32) -> Duration {
        let doubled = self.floor.saturating_mul(1u32 << failures.saturating_sub(1).min(16));
        let wait = doubled.min(self.ceiling.max(self.floor));
        wait.mul_f64(0.75 + 0.25 * jitter())
    }
}

/// 0..1, from the hasher's random keys: enough to keep a fleet from knocking in step.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let bits = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_ceiling_and_never_below_three_quarters_of_the_floor() {
        let backoff = Backoff::default();
        for failures in 1..40 {
            let wait = backoff.wait(failures);
            assert!(
                wait >= backoff.floor.mul_f64(0.75) && wait <= backoff.ceiling,
                "{failures}: {wait:?}"
            );
        }
        assert!(backoff.wait(30) > Duration::from_secs(20));
    }

    #[tokio::test]
    async fn the_cap_holds_over_many_small_takes() {
        let throttle = Throttle::new(Some(100_000));
        let start = Instant::now();
        for _ in 0..50 {
            throttle.take(100).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn a_stop_is_final() {
        let control = Control::default();
        control.pause();
        assert_eq!(control.wanted(), Wanted::Pause);
        control.stop();
        control.resume();
        assert_eq!(control.wanted(), Wanted::Stop);
    }
}
