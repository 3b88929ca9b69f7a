//! When to ask for work again: quick after a hit, slower while the Horde has nothing, by a law of its own for each kind
//! of refusal.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// After a hit, empty pops are followed by the next one at this pace for [`QUICK_FOR`]; no two attempts are closer.
const FLOOR: Duration = Duration::from_secs(1);
const QUICK_FOR: Duration = Duration::from_secs(10);
/// Growth and ceiling of the waits between empty pops (reliability law: `min(5, 1.35^(k-1))` s times U(0.5, 1.5)).
const GROWTH: f64 = 1.35;
const CEILING_S: f64 = 5.0;
/// Ceiling of the waits after errors.
const ERROR_CEILING_S: f64 = 60.0;
/// The server calls a worker offline after 300 s without a pop.
const LONGEST_LIVE_WAIT: Duration = Duration::from_secs(240);
const PERMANENT_WAIT: Duration = Duration::from_secs(300);

/// Skip reasons that waiting cannot cure: only another setting, account or model list can.
const HOPELESS: [&str; 6] = [
    "models",
    "nsfw",
    "untrusted",
    "worker_id",
    "bridge_version",
    "performance",
];

/// How a pop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PopEnd {
    /// It brought a job.
    Hit,
    /// Nothing to do; `hopeless` when every request was passed over for a reason that waiting cannot cure.
    Empty { hopeless: bool },
    /// The server asked for a pause (429, `Retry-After`).
    Asked(Duration),
    /// The worker is in maintenance: its own account's jobs are still served.
    Maintenance,
    /// Refused for a reason that lasts (account, address).
    Permanent,
    /// No usable answer.
    Failed,
}

/// The law's memory.
#[derive(Clone, Debug, Default)]
pub struct PollLaw {
    last_hit: Option<Instant>,
    n_empty: u32,
    n_failed: u32,
}

impl PollLaw {
    /// How long to wait after a pop that ended like this; zero after a hit. `chance` in `0..1`.
    pub fn on(&mut self, end: PopEnd, now: Instant, chance: f64) -> Duration {
        let between = |low: f64, high: f64| low + (high - low) * chance.clamp(0.0, 1.0);
        if end != PopEnd::Failed {
            self.n_failed = 0;
        }
        match end {
            PopEnd::Hit => {
                self.last_hit = Some(now);
                self.n_empty = 0;
                Duration::ZERO
            }
            PopEnd::Empty { hopeless } => {
                let quick = self
                    .last_hit
                    .is_some_and(|hit| now.saturating_duration_since(hit) < QUICK_FOR);
                if quick {
                    return FLOOR;
                }
                self.n_empty = self.n_empty.saturating_add(1);
                let grown = GROWTH.powi(self.n_empty.min(30) as i32 - 1).min(CEILING_S);
                let slower = if hopeless { 2.0 } else { 1.0 };
                Duration::from_secs_f64(grown * slower * between(0.5, 1.5)).max(FLOOR)
            }
            PopEnd::Asked(wait) => wait.mul_f64(between(1.0, 1.1)).clamp(FLOOR, LONGEST_LIVE_WAIT),
            PopEnd::Maintenance => Duration::from_secs_f64(between(30.0, 60.0)),
            PopEnd::Permanent => PERMANENT_WAIT,
            PopEnd::Failed => {
                self.n_failed = self.n_failed.saturating_add(1);
                let ceiling = 2f64.powi(self.n_failed.min(10) as i32).min(ERROR_CEILING_S);
                Duration::from_secs_f64(between(0.0, ceiling)).max(FLOOR)
            }
        }
    }
}

/// Whether every reason in an empty answer is one that waiting cannot cure. Unknown reasons count as no signal.
pub fn only_hopeless(skipped: &BTreeMap<String, i64>) -> bool {
    let mut told = skipped.iter().filter(|(_, count)| **count > 0).peekable();
    told.peek().is_some() && told.all(|(reason, _)| HOPELESS.contains(&reason.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(law: &mut PollLaw, end: PopEnd, now: Instant) -> f64 {
        law.on(end, now, 0.5).as_secs_f64()
    }
    const EMPTY: PopEnd = PopEnd::Empty { hopeless: false };

    #[test]
    fn a_hit_is_followed_at_once_and_then_each_second_for_ten_seconds() {
        let (mut law, start) = (PollLaw::default(), Instant::now());
        assert_eq!(seconds(&mut law, PopEnd::Hit, start), 0.0);
        for s in 1..10 {
            assert_eq!(seconds(&mut law, EMPTY, start + Duration::from_secs(s)), 1.0);
        }
        let later: Vec<f64> = (11..25)
            .map(|s| seconds(&mut law, EMPTY, start + Duration::from_secs(s)))
            .collect();
        assert!(later.windows(2).all(|pair| pair[0] <= pair[1]), "{later:?}");
        assert_eq!(later.last(), Some(&5.0));
    }

    #[test]
    fn no_wait_after_an_empty_pop_is_below_a_second_whatever_chance_says() {
        let now = Instant::now();
        for chance in [0.0, 0.3, 0.999_999, f64::NAN] {
            let mut law = PollLaw::default();
            for _ in 0..50 {
                let wait = law.on(EMPTY, now, if chance.is_nan() { 0.0 } else { chance });
                assert!(wait >= FLOOR && wait <= Duration::from_secs_f64(7.5), "{wait:?}");
            }
        }
    }

    #[test]
    fn reasons_that_waiting_cannot_cure_double_the_wait_and_unknown_ones_do_not() {
        let skips = |pairs: &[(&str, i64)]| only_hopeless(&pairs.iter().map(|(k, v)| ((*k).into(), *v)).collect());
        assert!(skips(&[("models", 3), ("nsfw", 1)]));
        assert!(!skips(&[("models", 3), ("max_pixels", 1)]));
        assert!(!skips(&[("something_new", i64::MAX)]));
        assert!(!skips(&[("models", -4)]));
        assert!(!skips(&[]));
        let mut law = PollLaw::default();
        assert_eq!(seconds(&mut law, PopEnd::Empty { hopeless: true }, Instant::now()), 2.0);
    }

    #[test]
    fn f038_maintenance_is_polled_each_half_to_whole_minute() {
        for chance in [0.0, 0.5, 1.0] {
            let wait = PollLaw::default()
                .on(PopEnd::Maintenance, Instant::now(), chance)
                .as_secs_f64();
            assert!((30.0..=60.0).contains(&wait));
        }
    }

    #[test]
    fn errors_grow_to_a_minute_with_full_jitter_and_start_over_after_an_answer() {
        let (mut law, now) = (PollLaw::default(), Instant::now());
        let waits: Vec<f64> = (0..8).map(|_| law.on(PopEnd::Failed, now, 1.0).as_secs_f64()).collect();
        assert_eq!(waits, [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]);
        assert_eq!(law.on(PopEnd::Failed, now, 0.0), FLOOR);
        law.on(EMPTY, now, 0.5);
        assert_eq!(law.on(PopEnd::Failed, now, 1.0).as_secs_f64(), 2.0);
    }

    #[test]
    fn an_asked_pause_is_kept_but_never_makes_the_worker_look_dead() {
        let (mut law, now) = (PollLaw::default(), Instant::now());
        let wait = law.on(PopEnd::Asked(Duration::from_secs(20)), now, 0.0);
        assert_eq!(wait, Duration::from_secs(20));
        assert_eq!(
            law.on(PopEnd::Asked(Duration::from_secs(1_000_000_000)), now, 1.0),
            LONGEST_LIVE_WAIT
        );
        assert_eq!(law.on(PopEnd::Permanent, now, 1.0), Duration::from_secs(300));
    }
}
