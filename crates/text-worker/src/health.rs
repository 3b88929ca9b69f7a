//! Whether the other program is there and free for us, asked again and again from a thread of the supervisor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use textgen::bridge::BridgeEngine;
use textgen::{EngineFacts, TextEngine};

use crate::engine::Facts;
use crate::local_use::LocalUse;

/// What the other program said last.
#[derive(Clone)]
pub struct Health(Arc<Mutex<Known>>);

struct Known {
    answer: Result<EngineFacts, String>,
    /// `None` where nobody is yielded to.
    local_use: Option<LocalUse>,
}

/// How often it is asked what it serves, and how often whether somebody uses it.
const EVERY: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_secs(1);

impl Health {
    /// Asks `engine` now and every ten seconds until the last copy of this is dropped; whether somebody uses it, every
    /// second. After local use nothing is served for `yields`; zero never yields.
    pub fn of(engine: BridgeEngine, yields: Duration) -> Self {
        let health = Self(Arc::new(Mutex::new(Known {
            answer: Err("the backend was not asked yet".into()),
            local_use: (!yields.is_zero()).then(|| LocalUse::new(yields, engine.parallel())),
        })));
        let told = Arc::downgrade(&health.0);
        let spawned = std::thread::Builder::new()
            .name("backend-health".into())
            .spawn(move || ask(&engine, &told, yields));
        if let Err(error) = spawned {
            health.known().answer = Err(error.to_string());
        }
        health
    }

    /// What it serves, or in words for the owner why nothing. `engines` of ours are loaded.
    ///
    /// # Errors
    /// While it is down, and while somebody else uses it.
    pub fn now(&self, engines: &[Facts]) -> Result<EngineFacts, String> {
        let now = Instant::now();
        let mut known = self.known();
        if let Some(local_use) = &mut known.local_use {
            for (from, to) in engines.iter().filter_map(|facts| measured(facts, now)) {
                local_use.measured(from, to);
            }
            if let Some(since) = local_use.in_use(now) {
                return Err(format!(
                    "the backend was used locally {} s ago; scribe yields for `scribe.bridge.idle_seconds`",
                    since.as_secs()
                ));
            }
        }
        known.answer.clone()
    }

    /// One of our jobs is about to use it.
    pub(crate) fn popped(&self) {
        if let Some(local_use) = &mut self.known().local_use {
            local_use.popped(Instant::now());
        }
    }

    /// One of our jobs is through, made or not.
    pub(crate) fn left(&self, is_made: bool) {
        if let Some(local_use) = &mut self.known().local_use {
            local_use.left(is_made, Instant::now());
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From when to when `facts` were measured, on our clock.
fn measured(facts: &Facts, now: Instant) -> Option<(Instant, Instant)> {
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(facts.measured_unix_ms))?;
    let to = now.checked_sub(SystemTime::now().duration_since(end).unwrap_or_default())?;
    Some((to.checked_sub(Duration::from_millis(facts.measured_for_ms))?, to))
}

fn ask(engine: &BridgeEngine, told: &Weak<Mutex<Known>>, yields: Duration) {
    loop {
        // First whether it is free: what is offered must not be known before.
        let usage = if yields.is_zero() { Ok(None) } else { engine.usage() };
        let answer = engine.facts().map_err(|error| error.to_string());
        let Some(place) = told.upgrade() else {
            return;
        };
        let mut known = place.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(local_use), Ok(Some(usage))) = (&mut known.local_use, usage) {
            local_use.saw(usage, Instant::now());
        }
        match (std::mem::replace(&mut known.answer, answer.clone()), answer) {
            (Ok(_), Err(why)) => tracing::warn!(why, "nothing is popped while the backend is down"),
            (Err(_), Ok(facts)) => tracing::info!(model = facts.model, "the backend is there"),
            _ => {}
        }
        drop(known);
        drop(place);
        std::thread::sleep(if yields.is_zero() { EVERY } else { GLANCE });
    }
}
