//! Seeded trouble on the way to a Horde in memory: what a network and a busy server do to calls.

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Chances of each trouble, 0..=1, and the time a call takes.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    /// Seed of the dice.
    pub seed: u64,
    /// Shortest and longest time of a call, there and back.
    pub latency: (Duration, Duration),
    /// The call never arrives.
    pub lost_request: f64,
    /// The call is acted on and its answer never comes back.
    pub lost_answer: f64,
    /// The call hangs until its deadline without arriving.
    pub black_hole: f64,
    /// 500, 502, 503 or 520 with a page, not acted on.
    pub gateway: f64,
    /// 429, not acted on.
    pub limited: f64,
    /// The call is acted on and its answer is cut somewhere.
    pub truncated: f64,
    /// An upload to the object store is refused with 503 and not stored.
    pub refused_upload: f64,
    /// Troubles stop after this time, so that everything can end. `None`: never.
    pub clears_after: Option<Duration>,
}

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    /// None.
    Fair,
    /// See [`Weather`].
    LostRequest,
    /// See [`Weather`].
    LostAnswer,
    /// See [`Weather`].
    BlackHole,
    /// Status of the page.
    Gateway(u16),
    /// See [`Weather`].
    Limited,
    /// Share of the body that arrives.
    Truncated(f64),
}

/// Dice over a weather.
pub struct Dice {
    weather: Weather,
    rng: ChaCha8Rng,
    started: tokio::time::Instant,
}

impl Dice {
    /// Fresh dice.
    pub fn new(weather: Weather) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(weather.seed),
            weather,
            started: tokio::time::Instant::now(),
        }
    }

    /// Throws for one call: its time and its trouble. Only uploads are refused as uploads.
    pub fn throw(&mut self, upload: bool) -> (Duration, Trouble) {
        let (least, most) = self.weather.latency;
        let latency = if most > least {
            least + (most - least).mul_f64(self.rng.random::<f64>())
        } else {
            least
        };
        let weather = &self.weather;
        let troubles = [
            (weather.lost_request, Trouble::LostRequest),
            (weather.lost_answer, Trouble::LostAnswer),
            (weather.black_hole, Trouble::BlackHole),
            (
                weather.gateway,
                Trouble::Gateway([500, 502, 503, 520][self.rng.random_range(0..4)]),
            ),
            (weather.limited, Trouble::Limited),
            (weather.truncated, Trouble::Truncated(self.rng.random())),
            (if upload { weather.refused_upload } else { 0.0 }, Trouble::Gateway(503)),
        ];
        let mut die: f64 = self.rng.random();
        if weather
            .clears_after
            .is_some_and(|after| self.started.elapsed() >= after)
        {
            return (latency, Trouble::Fair);
        }
        for (chance, trouble) in troubles {
            if die < chance {
                return (latency, trouble);
            }
            die -= chance;
        }
        (latency, Trouble::Fair)
    }
}
