//! Puts the state together for those who look at it.

use std::time::Duration;

use horde_client::error::plain;
use horde_client::kind::JobKind;
use tokio::time::Instant;

use crate::backend::Backend;
use crate::device::DeviceState;
use crate::law::owner::Wish;
use crate::run::Worker;
use crate::status::{DeviceStatus, RestStatus, State, Status};

/// At most four times a second, and at least every five seconds, so that a reader can tell a live worker from a dead one; every
/// second while it holds jobs, whose ages and times left move although nothing happens.
const SHORTEST: Duration = Duration::from_millis(250);
const WITH_JOBS: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(5);
const HOUR_S: f64 = 3600.0;
/// Kudos per hour are not scaled up from less than this.
const SHORTEST_WINDOW_S: f64 = 300.0;

impl<B: Backend> Worker<B> {
    /// Publishes when something changed and the last time is long enough ago; says when to come back.
    pub fn publish(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let (is_dirty, holds_jobs) = {
            let board = self.shop.board.look();
            (board.is_dirty, !board.tiles.is_empty())
        };
        let longest = if holds_jobs { WITH_JOBS } else { LONGEST };
        let due = self
            .published
            .map_or(now, |last| last + if is_dirty { SHORTEST } else { longest });
        if due > now {
            return Some(due);
        }
        self.published = Some(now);
        self.tell(self.status(now));
        Some(now + longest)
    }

    fn status(&self, now: Instant) -> Status {
        let devices = self.devices();
        let views = self.shop.slots.view();
        let (busy, up) = views.iter().fold((0.0, 0.0), |(busy, up), view| {
            (busy + view.busy.as_secs_f64(), up + view.up.as_secs_f64())
        });
        let mut board = self.shop.board.look();
        board.is_dirty = false;
        let uptime_s = now.saturating_duration_since(self.started).as_secs_f64();
        let earned: f64 = board.earned.iter().map(|(_, kudos)| kudos).sum();
        let rest = board.breaker.rest(now).map(|(until, why)| RestStatus {
            why: format!("{why:?}"),
            left_s: (until - now).as_secs_f64(),
            faults_last_hour: board.breaker.faults_last_hour(now),
        });
        let unix_ms = self.shop.settings.clock.unix_ms();
        let in_unix_ms = |moment: Instant| unix_ms + (moment - now).as_millis().min(i64::MAX as u128 / 4) as i64;
        Status {
            kind: B::Kind::NAME.to_owned(),
            state: self.state(&devices),
            paused_until_unix_ms: match self.wish {
                Wish::Pause { until: Some(until), .. } => Some(in_unix_ms(until)),
                _ => None,
            },
            idle: self.idle.as_deref().map(|idle| plain(idle, 300)),
            jobs: board.tiles.values().map(|tile| tile.status(now)).collect(),
            outbox: board.outbox,
            devices,
            poll: crate::status::PollStatus {
                next_in_s: self.next_pop_in(now),
                ..self.poll.clone()
            },
            totals: board.totals,
            // A sum over nothing is -0; adding 0 makes it 0.
            kudos_per_hour: earned * HOUR_S / uptime_s.clamp(SHORTEST_WINDOW_S, HOUR_S) + 0.0,
            busy_fraction: if up > 0.0 { busy / up } else { 0.0 },
            rest,
            events: board.events.clone(),
            messages: board.messages.clone(),
            uptime_s,
            updated_unix_ms: unix_ms,
        }
    }

    fn state(&self, devices: &[DeviceStatus]) -> State {
        match self.wish {
            Wish::Run if devices.iter().all(|device| device.state != "ready") => State::Starting,
            Wish::Run => State::Running,
            Wish::Pause { .. } => State::Paused,
            Wish::Finish => State::Finishing,
            Wish::Stop(_) => State::Stopping,
        }
    }

    fn devices(&self) -> Vec<DeviceStatus> {
        let each = self
            .shop
            .devices
            .iter()
            .zip(self.shop.slots.view())
            .map(|(device, view)| {
                let (state, reason) = match &*device.state().borrow() {
                    DeviceState::Stopped => ("stopped", None),
                    DeviceState::Loading => ("loading", None),
                    DeviceState::Ready(_) => ("ready", None),
                    DeviceState::Failed(reason) => ("failed", Some(plain(reason, 300))),
                    DeviceState::Refused(error) => ("refused", Some(plain(&error.message, 300))),
                };
                let up_s = view.up.as_secs_f64();
                DeviceStatus {
                    name: device.name().to_owned(),
                    state: state.to_owned(),
                    reason,
                    capacity: view.report.as_ref().map_or(0, |report| report.capacity.max(1)),
                    running: view.running,
                    busy_fraction: if up_s > 0.0 {
                        view.busy.as_secs_f64() / up_s
                    } else {
                        0.0
                    },
                    facts: view.report.map(|report| report.facts).unwrap_or_default(),
                }
            });
        each.collect()
    }
}
