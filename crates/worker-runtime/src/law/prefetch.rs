//! When the next job is needed: just before a slot falls free. The server counts lease and measured speed from the pop,
//! so a job popped early waits at the volunteer's cost.

use std::collections::VecDeque;
use std::time::Duration;

/// How far to look ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// Jobs held ready per slot while it is busy: 0 (none), 1 or 2; more is cut to 2.
    pub depth: u8,
    /// Pop as soon as there is room instead of just in time.
    pub eager: bool,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self { depth: 1, eager: false }
    }
}

/// What the devices look like now.
#[derive(Clone, Debug, Default)]
pub struct Outlook {
    /// Slots without a job.
    pub free: usize,
    /// Time left in each busy slot; `None` when unknown.
    pub busy: Vec<Option<Duration>>,
    /// Jobs popped or being popped that have no slot yet.
    pub coming: usize,
    /// What a job typically takes on a slot; `None` when unknown.
    pub typical: Option<Duration>,
    /// 95th percentile of the time from sending a pop to a job ready to run.
    pub lead: Duration,
}

/// Slack of lease and speed above which popping early costs nothing that matters.
pub const EAGER_SLACK: f64 = 4.0;
const MARGIN: Duration = Duration::from_millis(500);
/// The margin grows with what is left, as estimates err in proportion.
const MARGIN_SHARE: f64 = 0.05;

/// How long until the next pop should be sent: `Some(0)` now, `None` when there is no room for another job.
pub fn wait_until_pop(prefetch: Prefetch, outlook: &Outlook) -> Option<Duration> {
    let n_slots = outlook.free + outlook.busy.len();
    if n_slots == 0 {
        return None;
    }
    if outlook.coming < outlook.free {
        return Some(Duration::ZERO);
    }
    let depth = usize::from(prefetch.depth.min(2));
    if outlook.coming >= outlook.free + depth * n_slots || depth == 0 {
        return None;
    }
    if prefetch.eager {
        return Some(Duration::ZERO);
    }
    // Slots in the order they fall free; each job that is coming takes the next one.
    let mut left: Vec<Option<Duration>> = vec![Some(Duration::ZERO); outlook.free];
    left.extend(outlook.busy.iter().copied());
    // Unknown ends are taken as near: without knowledge one job ahead beats an idle device.
    left.sort_by_key(|left| left.unwrap_or_default());
    let (round, slot) = (outlook.coming / n_slots, outlook.coming % n_slots);
    if round > 0 && outlook.typical.is_none() {
        // How long the jobs that are coming will take nobody knows before the first has run.
        return None;
    }
    let left = left[slot].unwrap_or_default() + outlook.typical.unwrap_or_default().saturating_mul(round.min(8) as u32);
    let lead = outlook.lead + MARGIN + left.mul_f64(MARGIN_SHARE);
    Some(left.saturating_sub(lead))
}

/// The last times from pop to ready, for their 95th percentile.
#[derive(Clone, Debug, Default)]
pub struct Lead {
    window: VecDeque<Duration>,
}

impl Lead {
    const KEPT: usize = 64;
    /// Assumed before anything was measured: a slow pop.
    const FIRST: Duration = Duration::from_secs(1);

    /// Takes note of one measured time.
    pub fn on(&mut self, took: Duration) {
        if self.window.len() == Self::KEPT {
            self.window.pop_front();
        }
        self.window.push_back(took);
    }

    /// The 95th percentile of the last 64.
    pub fn p95(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.window.iter().copied().collect();
        sorted.sort();
        sorted
            .get((sorted.len() * 95 / 100).min(sorted.len().saturating_sub(1)))
            .copied()
            .unwrap_or(Self::FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn outlook(free: usize, busy: &[u64], coming: usize) -> Outlook {
        Outlook {
            free,
            busy: busy.iter().map(|left| Some(s(*left))).collect(),
            coming,
            typical: Some(s(6)),
            lead: s(1),
        }
    }

    #[test]
    fn a_free_slot_wants_a_job_now_and_a_busy_one_just_in_time() {
        let one = Prefetch { depth: 1, eager: false };
        assert_eq!(wait_until_pop(one, &outlook(1, &[], 0)), Some(Duration::ZERO));
        assert_eq!(
            wait_until_pop(one, &outlook(0, &[20], 0)),
            Some(Duration::from_millis(17_500))
        );
        assert_eq!(wait_until_pop(one, &outlook(0, &[1], 0)), Some(Duration::ZERO));
        assert_eq!(wait_until_pop(one, &outlook(0, &[1], 1)), None);
    }

    #[test]
    fn depth_zero_holds_nothing_and_depth_two_looks_one_job_further() {
        assert_eq!(
            wait_until_pop(Prefetch { depth: 0, eager: true }, &outlook(0, &[0], 0)),
            None
        );
        let two = Prefetch { depth: 2, eager: false };
        let wait = wait_until_pop(two, &outlook(0, &[0], 1)).expect("room");
        assert_eq!(wait, Duration::from_millis(4_200));
        assert_eq!(wait_until_pop(two, &outlook(0, &[0], 2)), None);
        assert!(
            wait_until_pop(
                Prefetch {
                    depth: 200,
                    eager: true
                },
                &outlook(0, &[0], 2)
            )
            .is_none()
        );
    }

    #[test]
    fn each_coming_job_takes_the_next_slot_that_falls_free() {
        let one = Prefetch::default();
        let wait = wait_until_pop(one, &outlook(0, &[100, 2, 50], 1)).expect("room");
        assert_eq!(wait, Duration::from_millis(46_000));
        assert_eq!(wait_until_pop(one, &outlook(2, &[100], 1)), Some(Duration::ZERO));
    }

    #[test]
    fn before_the_first_job_ran_nothing_is_popped_on_top_of_one_that_is_coming() {
        let first = Outlook {
            free: 1,
            coming: 1,
            ..Outlook::default()
        };
        assert_eq!(wait_until_pop(Prefetch::default(), &first), None);
    }

    #[test]
    fn no_device_wants_no_job_and_an_unknown_end_is_taken_as_near() {
        assert_eq!(wait_until_pop(Prefetch::default(), &Outlook::default()), None);
        let unknown = Outlook {
            busy: vec![None],
            ..Outlook::default()
        };
        assert_eq!(wait_until_pop(Prefetch::default(), &unknown), Some(Duration::ZERO));
    }

    #[test]
    fn the_lead_is_the_slow_end_of_what_was_measured() {
        let mut lead = Lead::default();
        assert_eq!(lead.p95(), s(1));
        for ms in 1..=1000 {
            lead.on(Duration::from_millis(ms));
        }
        assert!(lead.p95() >= Duration::from_millis(990));
    }
}
