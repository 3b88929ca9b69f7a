//! What the engine tells of itself, and how long a job will take by it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use worker_runtime::backend::EngineReport;

use crate::room::Offer;
use crate::work::Work;

/// Measured speeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Megapixel-steps per second of each model that was used.
    speeds: BTreeMap<String, f64>,
    /// Seconds to read a model.
    load_seconds: f64,
}

impl Pace {
    /// A model was read.
    pub fn loaded(&mut self, seconds: f64) {
        self.load_seconds = self.load_seconds.max(rounded(seconds));
    }

    /// A run at `speed` megapixel-steps per second; new ones count half.
    pub fn learn(&mut self, model: &str, speed: f64) {
        if speed.is_finite() && speed > 0.0 {
            let known = self.speeds.entry(model.to_owned()).or_insert(speed);
            *known = rounded(f64::midpoint(*known, speed));
        }
    }
}

/// Two digits are enough, and the report is sent anew only when it changes.
fn rounded(value: f64) -> f64 {
    format!("{value:.1e}").parse().unwrap_or(value)
}

/// The report's facts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// All models, by the Horde's names.
    pub models: Vec<String>,
    /// Those in memory.
    pub in_memory: Vec<String>,
    /// What memory suffices for.
    pub offer: Offer,
    pace: Pace,
}

/// The Horde's leases give two seconds per step of 512×512, and thirty besides.
const LEASE_SPEED: f64 = 0.512 * 0.512 / 2.0;

impl Facts {
    /// All of it.
    pub fn new(models: Vec<String>, in_memory: Vec<String>, offer: Offer, pace: Pace) -> Self {
        Self {
            models,
            in_memory,
            offer,
            pace,
        }
    }

    /// As the runtime passes it on: one job at a time.
    pub fn report(&self) -> EngineReport {
        EngineReport {
            capacity: 1,
            facts: serde_json::to_value(self).unwrap_or_default(),
        }
    }

    /// Out of a report.
    pub fn of(report: &EngineReport) -> Option<Self> {
        serde_json::from_value(report.facts.clone()).ok()
    }

    /// The slowest speed that was measured, in megapixel-steps per second.
    pub fn slowest(&self) -> Option<f64> {
        self.pace.speeds.values().copied().min_by(f64::total_cmp)
    }

    /// How many times faster than leases ask for.
    pub fn slack(&self) -> Option<f64> {
        Some(self.slowest()? / LEASE_SPEED)
    }

    /// Time on the device. A model that was never used is taken for as slow as the slowest.
    pub fn estimate(&self, work: &Work) -> Option<Duration> {
        let speed = self.pace.speeds.get(&work.model).copied().or(self.slowest())?;
        let load = if self.in_memory.contains(&work.model) {
            0.0
        } else {
            self.pace.load_seconds
        };
        // Both ways through the VAE and the text encoders take about as long as three steps.
        let order = &work.order;
        let besides = order.pixels() / 1e6 * f64::from(order.batch) * 3.0;
        Duration::try_from_secs_f64(load + (order.megapixel_steps() + besides) / speed).ok()
    }

    /// The most pixels whose pictures are ready within the shortest lease on a device too slow for the usual ones;
    /// `None` where any size is ready in its own lease.
    pub fn pixels_in_time(&self, is_extra_slow: bool) -> Option<u64> {
        let leases = if is_extra_slow { 3.0 } else { 1.0 };
        let speed = self.slowest()?;
        if speed >= 1.25 * LEASE_SPEED / leases {
            return None;
        }
        // A picture of 30 steps and its VAE in 120 of the 150 seconds.
        Some((120.0 * leases * speed / 33.0 * 1e6) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(speed: f64) -> Facts {
        let mut pace = Pace::default();
        pace.learn("m", speed);
        pace.loaded(4.0);
        let offer = Offer {
            pixels: 512 * 512,
            batch: 4,
        };
        Facts::new(vec!["m".into(), "n".into()], vec!["m".into()], offer, pace)
    }

    #[test]
    fn a_slow_device_is_offered_only_what_it_ends_in_time() {
        assert_eq!(facts(1.0).pixels_in_time(false), None);
        let pixels = facts(0.1).pixels_in_time(false).unwrap();
        assert!((pixels as f64 / 1e6 * 33.0 / 0.1) <= 121.0, "{pixels}");
        assert_eq!(facts(0.1).pixels_in_time(true), None);
    }

    #[test]
    fn facts_pass_through_a_report() {
        let facts = facts(1.0);
        assert_eq!(Facts::of(&facts.report()), Some(facts));
        assert_eq!(Facts::of(&EngineReport::default()), None);
    }

    #[test]
    fn a_speed_is_learnt_and_nonsense_is_not() {
        let mut pace = Pace::default();
        pace.learn("m", f64::NAN);
        pace.learn("m", 0.0);
        assert!(pace.speeds.is_empty());
        pace.learn("m", 4.0);
        pace.learn("m", 2.0);
        assert_eq!(pace.speeds["m"], 3.0);
    }
}
