//! How long forms take on one engine: measured once, remembered, and corrected by every job.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use worker_app::state::write_atomically;

/// Seconds the server leaves between pop and submit.
pub const LEASE_SECONDS: f64 = 180.0;
/// The part of the lease that work may take; fetching the source and handing in take the rest.
const USABLE: f64 = 0.8;
/// Pixels of a tile, as the server counts: 512×512.
const TILE_PIXELS: f64 = 512.0 * 512.0;
/// How much of the newest job goes into the average: a change of load is followed within a few jobs.
const NEWEST: f64 = 0.3;

/// What a form costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Seconds for one tile, or for any picture.
    pub seconds: f64,
    /// Whether it grows with the picture.
    pub per_tile: bool,
}

/// Tiles in a picture, with fractions: what work is proportional to.
pub fn tiles(width: u32, height: u32) -> f64 {
    f64::from(width) * f64::from(height) / TILE_PIXELS
}

impl Pace {
    /// Expected time for a picture of `tiles`.
    pub fn takes(&self, tiles: f64) -> Duration {
        let seconds = if self.per_tile {
            self.seconds * tiles
        } else {
            self.seconds
        };
        Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
    }

    /// Whole tiles that can be done within a lease: 0 where not even one can.
    pub fn most_tiles(&self) -> u32 {
        let usable = LEASE_SECONDS * USABLE;
        if self.per_tile {
            (usable / self.seconds.max(1e-6)) as u32
        } else if self.seconds <= usable {
            u32::MAX
        } else {
            0
        }
    }

    /// The pace after one more job of `tiles` took `seconds`.
    #[must_use]
    pub fn after(self, seconds: f64, tiles: f64) -> Self {
        let now = if self.per_tile {
            seconds / tiles.max(1e-3)
        } else {
            seconds
        };
        Self {
            seconds: self.seconds * (1.0 - NEWEST) + now * NEWEST,
            ..self
        }
    }
}

/// Paces by form, in a file.
#[derive(Debug)]
pub struct Paces {
    file: PathBuf,
    known: BTreeMap<String, Known>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    /// What was measured: sums of the form's files and the device.
    of: String,
    #[serde(flatten)]
    pace: Pace,
}

impl Paces {
    /// What `file` remembers; nothing where it is not there or cannot be understood.
    pub fn open(file: impl Into<PathBuf>) -> Self {
        let file = file.into();
        let text = std::fs::read(&file).unwrap_or_default();
        Self {
            known: serde_json::from_slice(&text).unwrap_or_default(),
            file,
        }
    }

    /// The pace of `form`, if it was measured of the same files on the same device.
    pub fn get(&self, form: &str, of: &str) -> Option<Pace> {
        let known = self.known.get(form).filter(|known| known.of == of)?;
        (known.pace.seconds.is_finite() && known.pace.seconds >= 0.0).then_some(known.pace)
    }

    /// Remembers a pace, also on disk. A file that cannot be written costs a measurement at the next start.
    pub fn set(&mut self, form: &str, of: &str, pace: Pace) {
        let known = Known {
            of: of.to_owned(),
            pace,
        };
        self.known.insert(form.to_owned(), known);
        let write = || -> std::io::Result<()> {
            if let Some(folder) = self.file.parent() {
                std::fs::create_dir_all(folder)?;
            }
            write_atomically(&self.file, &serde_json::to_vec_pretty(&self.known)?)
        };
        if let Err(error) = write() {
            tracing::debug!(path = %self.file.display(), %error, "measured times were not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiles_that_fit_a_lease_follow_the_pace() {
        let per_tile = |seconds| Pace {
            seconds,
            per_tile: true,
        };
        // 144 of 180 seconds are for work.
        assert_eq!(per_tile(10.0).most_tiles(), 14);
        assert_eq!(per_tile(144.0).most_tiles(), 1);
        assert_eq!(per_tile(150.0).most_tiles(), 0);
        assert_eq!(per_tile(0.0).most_tiles(), 144_000_000);
        let fixed = |seconds| Pace {
            seconds,
            per_tile: false,
        };
        assert_eq!((fixed(100.0).most_tiles(), fixed(150.0).most_tiles()), (u32::MAX, 0));
        assert_eq!(per_tile(8.0).takes(tiles(1024, 512)), Duration::from_secs(16));
        assert_eq!(fixed(8.0).takes(256.0), Duration::from_secs(8));
        assert_eq!(per_tile(f64::MAX).takes(f64::MAX), Duration::MAX);
    }

    #[test]
    fn jobs_correct_the_pace() {
        let mut pace = Pace {
            seconds: 1.0,
            per_tile: true,
        };
        for _ in 0..20 {
            pace = pace.after(20.0, 4.0);
        }
        assert!((pace.seconds - 5.0).abs() < 0.01, "{pace:?}");
    }

    #[test]
    fn a_pace_is_remembered_for_the_same_files_on_the_same_device_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/pace.json");
        let pace = Pace {
            seconds: 2.5,
            per_tile: true,
        };
        Paces::open(&file).set("GFPGAN", "cpu abc", pace);
        let paces = Paces::open(&file);
        assert_eq!(paces.get("GFPGAN", "cpu abc"), Some(pace));
        assert_eq!(paces.get("GFPGAN", "cuda:0 abc"), None);
        assert_eq!(paces.get("nsfw", "cpu abc"), None);
        std::fs::write(&file, b"{\"GFPGAN\":3}").unwrap();
        assert_eq!(Paces::open(&file).get("GFPGAN", "cpu abc"), None);
    }
}
