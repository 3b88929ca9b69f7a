//! Whether the machine was suspended: the monotonic clock stands still meanwhile, and every lease ran on without us.

use std::time::Duration;

use tokio::time::Instant;

/// Shorter sleeps are within what leases bear.
const LONG: Duration = Duration::from_secs(60);

/// Compares a clock that counts suspension with one that does not.
#[derive(Clone, Debug, Default)]
pub struct SleepWatch {
    last: Option<(Duration, Instant)>,
}

impl SleepWatch {
    /// Time since boot, suspension counted, and now. True when the machine slept for long since the last call.
    pub fn on(&mut self, since_boot: Duration, now: Instant) -> bool {
        let last = self.last.replace((since_boot, now));
        last.is_some_and(|(boot_before, before)| {
            let awake = now.saturating_duration_since(before);
            since_boot.saturating_sub(boot_before).saturating_sub(awake) >= LONG
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f023_only_a_long_sleep_counts_and_only_once() {
        let (mut watch, now) = (SleepWatch::default(), Instant::now());
        let s = Duration::from_secs;
        assert!(!watch.on(s(1_000_000), now));
        assert!(!watch.on(s(1_000_005), now + s(5)));
        assert!(!watch.on(s(1_000_040), now + s(10)));
        assert!(watch.on(s(1_028_845), now + s(15)));
        assert!(!watch.on(s(1_028_850), now + s(20)));
        assert!(!watch.on(s(0), now + s(25)));
    }
}
