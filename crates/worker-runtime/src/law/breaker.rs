//! When to stop popping because jobs fail: a worker that keeps failing hurts its requesters and, after 20 drops in an
//! hour, is put into maintenance by the server.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
/// Faults of ours in a row that open the breaker.
const IN_A_ROW: u32 = 3;
/// Faults of ours within an hour that open the breaker.
const PER_HOUR: usize = 6;
const FIRST_OPEN: Duration = Duration::from_secs(60);
const LONGEST_OPEN: Duration = Duration::from_secs(30 * 60);
/// Faults in a row double the pause this often.
const DOUBLINGS: u32 = 4;

/// What became of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// It was made and handed in.
    Done,
    /// It was handed back; `ours` when it speaks against this worker.
    Faulted { ours: bool },
}

/// Why popping rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// One job was just handed back.
    AfterFault,
    /// Too many faults of ours.
    Breaker,
    /// The hour's budget of hand-backs is spent.
    Budget,
}

/// Counts faults and says when to pop again.
#[derive(Clone, Debug)]
pub struct Breaker {
    budget_per_hour: usize,
    first_pause: Duration,
    faults: VecDeque<Instant>,
    faults_of_ours: VecDeque<Instant>,
    n_ours_in_a_row: u32,
    n_any_in_a_row: u32,
    n_opened: u32,
    open_until: Option<Instant>,
    pause_until: Option<Instant>,
}

impl Breaker {
    /// A closed breaker that lets `budget_per_hour` generations (at least 1) be handed back in any hour, and pauses for
    /// `first_pause` after a fault.
    pub fn new(budget_per_hour: usize, first_pause: Duration) -> Self {
        Self {
            budget_per_hour: budget_per_hour.max(1),
            first_pause,
            faults: VecDeque::new(),
            faults_of_ours: VecDeque::new(),
            n_ours_in_a_row: 0,
            n_any_in_a_row: 0,
            n_opened: 0,
            open_until: None,
            pause_until: None,
        }
    }

    /// Takes note of one generation's end.
    pub fn on(&mut self, end: JobEnd, now: Instant) {
        self.forget_before(now);
        match end {
            JobEnd::Done => {
                self.n_ours_in_a_row = 0;
                self.n_any_in_a_row = 0;
                if self.faults_of_ours.is_empty() {
                    self.n_opened = 0;
                }
            }
            JobEnd::Faulted { ours } => {
                self.faults.push_back(now);
                let pause = self.first_pause.saturating_mul(1 << self.n_any_in_a_row.min(DOUBLINGS));
                self.n_any_in_a_row = self.n_any_in_a_row.saturating_add(1);
                self.pause_until = Some(now + pause);
                if ours {
                    self.faults_of_ours.push_back(now);
                    self.n_ours_in_a_row += 1;
                }
                let already_open = self.open_until.is_some_and(|until| now < until);
                if ours && !already_open && (self.n_ours_in_a_row >= IN_A_ROW || self.faults_of_ours.len() >= PER_HOUR)
                {
                    let open = FIRST_OPEN.saturating_mul(1 << self.n_opened.min(5)).min(LONGEST_OPEN);
                    self.n_opened = self.n_opened.saturating_add(1);
                    self.open_until = Some(now + open);
                }
            }
        }
    }

    /// Until when popping rests, and why; `None` when it may go on.
    pub fn rest(&mut self, now: Instant) -> Option<(Instant, Rest)> {
        self.forget_before(now);
        let budget =
            (self.faults.len() >= self.budget_per_hour).then(|| self.faults.front().map(|first| *first + HOUR));
        [
            (budget.flatten(), Rest::Budget),
            (self.open_until, Rest::Breaker),
            (self.pause_until, Rest::AfterFault),
        ]
        .into_iter()
        .filter_map(|(until, why)| until.filter(|until| now < *until).map(|until| (until, why)))
        .max_by_key(|(until, _)| *until)
    }

    /// Whether the last generation was handed back: until one is done again, one job at a time is enough to fail.
    pub fn is_in_doubt(&self) -> bool {
        self.n_any_in_a_row > 0
    }

    /// Generations handed back within the last hour.
    pub fn faults_last_hour(&mut self, now: Instant) -> usize {
        self.forget_before(now);
        self.faults.len()
    }

    fn forget_before(&mut self, now: Instant) {
        for faults in [&mut self.faults, &mut self.faults_of_ours] {
            while faults
                .front()
                .is_some_and(|at| now.saturating_duration_since(*at) >= HOUR)
            {
                faults.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);
    const OURS: JobEnd = JobEnd::Faulted { ours: true };

    #[test]
    fn f054_three_faults_of_ours_in_a_row_open_it_for_longer_each_time() {
        let (mut breaker, mut now) = (Breaker::new(1000, PAUSE), Instant::now());
        let mut opened = vec![];
        for _ in 0..3 {
            breaker.on(OURS, now);
        }
        for _ in 0..7 {
            let (until, why) = breaker.rest(now).expect("open");
            assert_eq!(why, Rest::Breaker);
            opened.push((until - now).as_secs() / 60);
            now = until;
            breaker.on(OURS, now);
        }
        assert_eq!(opened, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn f054_no_pattern_of_faults_spends_more_than_the_hours_budget() {
        for seed in 0..200u64 {
            let mut chance = crate::law::chance::Chance::new(seed);
            let (mut breaker, mut now, mut faulted) = (Breaker::new(10, PAUSE), Instant::now(), VecDeque::new());
            for _ in 0..2_000 {
                now += Duration::from_secs_f64(chance.unit() * 5.0);
                if let Some((until, _)) = breaker.rest(now) {
                    now = until;
                }
                if breaker.rest(now).is_none() {
                    let end = if chance.unit() < 0.7 {
                        JobEnd::Faulted {
                            ours: chance.unit() < 0.5,
                        }
                    } else {
                        JobEnd::Done
                    };
                    breaker.on(end, now);
                    if end != JobEnd::Done {
                        faulted.push_back(now);
                    }
                }
                while faulted.front().is_some_and(|at| now - *at >= HOUR) {
                    faulted.pop_front();
                }
                assert!(faulted.len() <= 10, "seed {seed}");
            }
        }
    }

    #[test]
    fn faults_of_the_job_only_pause_and_a_done_job_forgives_the_row() {
        let (mut breaker, now) = (Breaker::new(1000, PAUSE), Instant::now());
        breaker.on(JobEnd::Faulted { ours: false }, now);
        assert_eq!(breaker.rest(now), Some((now + PAUSE, Rest::AfterFault)));
        assert_eq!(breaker.rest(now + PAUSE), None);
        breaker.on(OURS, now);
        breaker.on(OURS, now);
        breaker.on(JobEnd::Done, now);
        breaker.on(OURS, now);
        assert_eq!(breaker.rest(now).map(|(_, why)| why), Some(Rest::AfterFault));
    }

    #[test]
    fn faults_in_a_row_double_the_pause_four_times() {
        let (mut breaker, mut now) = (Breaker::new(50, Duration::from_secs(2)), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..6 {
            breaker.on(JobEnd::Faulted { ours: false }, now);
            let (until, _) = breaker.rest(now).expect("a pause");
            pauses.push((until - now).as_secs());
            now = until;
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 32]);
    }
}
