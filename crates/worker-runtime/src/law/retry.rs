//! How often to try again: a back-off between a floor and a ceiling with full jitter, and a budget of tokens per host so
//! that many jobs together do not hammer a server that is down.

use std::time::Duration;

use tokio::time::Instant;

/// Waits that double from a floor to a ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    floor: Duration,
    ceiling: Duration,
}

impl Backoff {
    /// For submits and uploads of a result whose time runs: 0.5..15 s.
    pub const DELIVERY: Self = Self {
        floor: Duration::from_millis(500),
        ceiling: Duration::from_secs(15),
    };
    /// For an engine that died: 1..60 s.
    pub const ENGINE: Self = Self {
        floor: Duration::from_secs(1),
        ceiling: Duration::from_secs(60),
    };

    /// `None` when the floor is zero or above the ceiling.
    pub fn new(floor: Duration, ceiling: Duration) -> Option<Self> {
        (!floor.is_zero() && floor <= ceiling).then_some(Self { floor, ceiling })
    }

    /// The wait after failure number `n_failed` (from 1): never below the floor nor above the ceiling.
    pub fn wait(self, n_failed: u32, chance: f64) -> Duration {
        let doubled = self.floor.saturating_mul(1u32 << n_failed.clamp(1, 20));
        doubled
            .min(self.ceiling)
            .mul_f64(chance.clamp(0.0, 1.0))
            .max(self.floor)
    }
}

/// Retries one host may be asked for, shared by all jobs.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    tokens: f64,
    filled_at: Instant,
}

/// What a retry costs after a failure.
pub const RETRY_COST: f64 = 5.0;
/// What a retry costs after the server asked for a pause.
pub const THROTTLED_COST: f64 = 2.0;
const CAPACITY: f64 = 60.0;
const REFILL_PER_SECOND: f64 = 0.5;
const LARGEST_DEBT: f64 = 7.5;

impl TokenBucket {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self {
            tokens: CAPACITY,
            filled_at: now,
        }
    }

    /// Takes `cost` tokens. Where they are not there yet they are owed, and the answer is how long to wait for them.
    pub fn take(&mut self, cost: f64, now: Instant) -> Duration {
        let filled = self.tokens + now.saturating_duration_since(self.filled_at).as_secs_f64() * REFILL_PER_SECOND;
        // Debts are bounded: a finished result is tried at least each 15 s while its time runs.
        self.tokens = (filled.min(CAPACITY) - cost).max(-LARGEST_DEBT);
        self.filled_at = now;
        Duration::from_secs_f64((-self.tokens / REFILL_PER_SECOND).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_between_floor_and_ceiling_for_every_count_and_chance() {
        for n in [0, 1, 2, 7, u32::MAX] {
            for chance in [0.0, 0.5, 1.0] {
                let wait = Backoff::DELIVERY.wait(n, chance);
                assert!(
                    wait >= Duration::from_millis(500) && wait <= Duration::from_secs(15),
                    "{wait:?}"
                );
            }
        }
        assert!(Backoff::DELIVERY.wait(1, 1.0) < Backoff::DELIVERY.wait(4, 1.0));
    }

    #[test]
    fn impossible_backoffs_are_refused() {
        assert_eq!(Backoff::new(Duration::ZERO, Duration::from_secs(1)), None);
        assert_eq!(Backoff::new(Duration::from_secs(2), Duration::from_secs(1)), None);
    }

    #[test]
    fn twelve_retries_are_free_and_then_one_each_ten_seconds() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(now);
        assert!((0..12).all(|_| bucket.take(RETRY_COST, now).is_zero()));
        assert_eq!(bucket.take(RETRY_COST, now), Duration::from_secs(10));
        let later = now + Duration::from_secs(3600);
        assert!(bucket.take(RETRY_COST, later).is_zero());
        for _ in 0..1000 {
            assert!(bucket.take(RETRY_COST, later) <= Duration::from_secs(15));
        }
    }
}
