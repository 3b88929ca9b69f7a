//! The places where jobs run: who gets the next one that falls free. The only thing the lives of jobs share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::backend::EngineReport;

/// All slots of all devices.
#[derive(Default)]
pub(crate) struct Slots {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    places: Vec<Place>,
    waiting: VecDeque<Waiting>,
}

/// One device's slots.
#[derive(Default)]
struct Place {
    ready: Option<EngineReport>,
    running: usize,
    busy: Meter,
    up: Meter,
}

struct Waiting {
    suits: Box<dyn Fn(&EngineReport) -> bool + Send>,
    give: oneshot::Sender<Slot>,
}

/// The right to run one job on one device; dropping it gives it back.
pub(crate) struct Slot {
    slots: Arc<Slots>,
    pub device: usize,
    pub engine: EngineReport,
}

/// One device as seen from outside.
pub(crate) struct PlaceView {
    pub report: Option<EngineReport>,
    pub running: usize,
    pub busy: Duration,
    pub up: Duration,
}

impl Slots {
    pub fn new(n_devices: usize) -> Arc<Self> {
        let places = (0..n_devices).map(|_| Place::default()).collect();
        Arc::new(Self {
            inner: Mutex::new(Inner {
                places,
                waiting: VecDeque::new(),
            }),
        })
    }

    /// Waits for a slot on a device that suits. First come, first served, among those that suit.
    pub async fn take(self: &Arc<Self>, suits: impl Fn(&EngineReport) -> bool + Send + 'static) -> Slot {
        let (give, given) = oneshot::channel();
        self.lock().waiting.push_back(Waiting {
            suits: Box::new(suits),
            give,
        });
        self.hand_out();
        given
            .await
            .expect("a waiting entry is only removed by giving it a slot")
    }

    /// A device came up (or changed its report), or went away.
    pub fn set(self: &Arc<Self>, device: usize, report: Option<EngineReport>) {
        let now = Instant::now();
        if let Some(place) = self.lock().places.get_mut(device) {
            place.up.set(report.is_some(), now);
            place.ready = report;
        }
        self.hand_out();
    }

    /// Reports of the devices that take jobs.
    pub fn reports(&self) -> Vec<EngineReport> {
        self.lock()
            .places
            .iter()
            .filter_map(|place| place.ready.clone())
            .collect()
    }

    /// Reports of the devices with a free slot, or of all that take jobs where none has one.
    pub fn reports_with_room(&self) -> Vec<EngineReport> {
        let free: Vec<EngineReport> = {
            let inner = self.lock();
            let free = inner.places.iter().filter(|place| place.free() > 0);
            free.filter_map(|place| place.ready.clone()).collect()
        };
        if free.is_empty() { self.reports() } else { free }
    }

    /// Slots without and with a job, on devices that take jobs.
    pub fn count(&self) -> (usize, usize) {
        let inner = self.lock();
        let ready = inner.places.iter().filter(|place| place.ready.is_some());
        ready.fold((0, 0), |(free, busy), place| {
            (free + place.free(), busy + place.running)
        })
    }

    pub fn view(&self) -> Vec<PlaceView> {
        let now = Instant::now();
        let see = |place: &Place| PlaceView {
            report: place.ready.clone(),
            running: place.running,
            busy: place.busy.read(now),
            up: place.up.read(now),
        };
        self.lock().places.iter().map(see).collect()
    }

    fn hand_out(self: &Arc<Self>) {
        while let Some((give, slot)) = self.match_one() {
            // Who waited may be gone; then the slot is dropped here, outside the lock, and goes to the next.
            drop(give.send(slot));
        }
    }

    fn match_one(self: &Arc<Self>) -> Option<(oneshot::Sender<Slot>, Slot)> {
        let mut inner = self.lock();
        let Inner { places, waiting } = &mut *inner;
        waiting.retain(|waiting| !waiting.give.is_closed());
        for at in 0..waiting.len() {
            let free = places.iter_mut().enumerate().filter(|(_, place)| place.free() > 0);
            let suitable =
                free.filter(|(_, place)| place.ready.as_ref().is_some_and(|report| (waiting[at].suits)(report)));
            // The emptiest device first, so that several share the work.
            let Some((device, place)) = suitable.max_by_key(|(at, place)| (place.free(), usize::MAX - at)) else {
                continue;
            };
            let Some(engine) = place.ready.clone() else { continue };
            place.running += 1;
            place.busy.set(true, Instant::now());
            let waiting = waiting.remove(at)?;
            return Some((
                waiting.give,
                Slot {
                    slots: Arc::clone(self),
                    device,
                    engine,
                },
            ));
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(place) = self.slots.lock().places.get_mut(self.device) {
            place.running = place.running.saturating_sub(1);
            if place.running == 0 {
                place.busy.set(false, Instant::now());
            }
        }
        self.slots.hand_out();
    }
}

impl Place {
    fn free(&self) -> usize {
        self.ready
            .as_ref()
            .map_or(0, |report| report.capacity.max(1).saturating_sub(self.running))
    }
}

/// Adds up the time something is on.
#[derive(Default)]
struct Meter {
    total: Duration,
    since: Option<Instant>,
}

impl Meter {
    fn set(&mut self, on: bool, now: Instant) {
        match (self.since, on) {
            (None, true) => self.since = Some(now),
            (Some(since), false) => {
                self.total += now.saturating_duration_since(since);
                self.since = None;
            }
            _ => {}
        }
    }

    fn read(&self, now: Instant) -> Duration {
        self.total
            + self
                .since
                .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn engine(capacity: usize, name: &str) -> EngineReport {
        EngineReport {
            capacity,
            facts: name.into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn first_come_first_served_among_those_that_suit() {
        let slots = Slots::new(2);
        slots.set(0, Some(engine(1, "a")));
        let held = slots.take(|_| true).await;
        let mut only_b = Box::pin(slots.take(|engine| engine.facts == "b"));
        let mut any = Box::pin(slots.take(|_| true));
        assert!(only_b.as_mut().now_or_never().is_none());
        assert!(any.as_mut().now_or_never().is_none());
        drop(held);
        assert_eq!(any.await.device, 0);
        assert!(only_b.as_mut().now_or_never().is_none());
        slots.set(1, Some(engine(1, "b")));
        assert_eq!(only_b.await.device, 1);
        assert_eq!(slots.count(), (2, 0));
        let names = |reports: Vec<EngineReport>| -> Vec<String> {
            reports.iter().map(|report| report.facts.to_string()).collect()
        };
        let held = slots.take(|engine| engine.facts == "a").await;
        assert_eq!(names(slots.reports_with_room()), ["\"b\""]);
        let both = (held, slots.take(|_| true).await);
        assert_eq!(names(slots.reports_with_room()), ["\"a\"", "\"b\""]);
        drop(both);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_given_to_nobody_comes_back() {
        let slots = Slots::new(1);
        let mut gone = Box::pin(slots.take(|_| true));
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        slots.set(0, Some(engine(2, "a")));
        assert_eq!(slots.count(), (2, 0));
        let (one, two) = (slots.take(|_| true).await, slots.take(|_| true).await);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(slots.count(), (0, 2));
        drop((one, two));
        tokio::time::advance(Duration::from_secs(1)).await;
        let view = slots.view();
        assert_eq!(
            (view[0].busy, view[0].up),
            (Duration::from_secs(3), Duration::from_secs(4))
        );
    }
}
