//! Whether the other program is there, asked again and again from a thread of the supervisor.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use textgen::{EngineFacts, TextEngine};

/// What the other program said last.
#[derive(Clone)]
pub struct Health(Arc<Mutex<Result<EngineFacts, String>>>);

/// How often it is asked.
const EVERY: Duration = Duration::from_secs(10);

impl Health {
    /// Asks `engine` now, and every ten seconds until the last copy of this is dropped.
    pub fn of(engine: impl TextEngine + 'static) -> Self {
        let health = Self(Arc::new(Mutex::new(Err("the backend was not asked yet".into()))));
        let told = Arc::downgrade(&health.0);
        let spawned = std::thread::Builder::new()
            .name("backend-health".into())
            .spawn(move || ask(&engine, &told));
        if let Err(error) = spawned {
            *health.0.lock().unwrap_or_else(PoisonError::into_inner) = Err(error.to_string());
        }
        health
    }

    /// What it serves, or in words for the owner why nothing.
    pub fn now(&self) -> Result<EngineFacts, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn ask(engine: &impl TextEngine, told: &Weak<Mutex<Result<EngineFacts, String>>>) {
    loop {
        let answer = engine.facts().map_err(|error| error.to_string());
        let Some(place) = told.upgrade() else {
            return;
        };
        let before = std::mem::replace(
            &mut *place.lock().unwrap_or_else(PoisonError::into_inner),
            answer.clone(),
        );
        match (before, answer) {
            (Ok(_), Err(why)) => tracing::warn!(why, "nothing is popped while the backend is down"),
            (Err(_), Ok(facts)) => tracing::info!(model = facts.model, "the backend is there"),
            _ => {}
        }
        drop(place);
        std::thread::sleep(EVERY);
    }
}
