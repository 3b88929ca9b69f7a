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

/// What a form costs: a part that every picture takes, and a part that grows with the picture.
///
/// Most networks look at a picture made small or large first, so a thumbnail takes them about as long as a photograph.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Seconds for any picture.
    pub base_seconds: f64,
    /// Seconds for each tile besides; 0 for what does not grow with the picture.
    pub tile_seconds: f64,
}

/// Tiles in a picture, with fractions: what work is proportional to.
pub fn tiles(width: u32, height: u32) -> f64 {
    f64::from(width) * f64::from(height) / TILE_PIXELS
}

impl Pace {
    /// From two measurements, each seconds and tiles, the smaller picture first. What noise makes shorter for the larger
    /// picture counts as growing with nothing.
    pub fn through((less, few): (f64, f64), (more, many): (f64, f64)) -> Self {
        let tile_seconds = if many > few {
            ((more - less) / (many - few)).max(0.0)
        } else {
            0.0
        };
        Self {
            base_seconds: (less - tile_seconds * few).max(0.0),
            tile_seconds,
        }
    }

    /// Expected seconds for a picture of `tiles`.
    pub fn seconds(&self, tiles: f64) -> f64 {
        self.base_seconds + self.tile_seconds * tiles
    }

    /// Expected time for a picture of `tiles`.
    pub fn takes(&self, tiles: f64) -> Duration {
        Duration::try_from_secs_f64(self.seconds(tiles).max(0.0)).unwrap_or(Duration::MAX)
    }

    /// Whole tiles that can be done within a lease: 0 where not even one can.
    pub fn most_tiles(&self) -> u32 {
        let left = LEASE_SECONDS * USABLE - self.base_seconds;
        if left < 0.0 {
            0
        } else if self.tile_seconds <= 0.0 {
            u32::MAX
        } else {
            (left / self.tile_seconds) as u32
        }
    }

    /// The pace after one more job of `tiles` took `seconds`: both parts follow how much longer or shorter it took than
    /// expected, so pictures of any size teach the same.
    #[must_use]
    pub fn after(self, seconds: f64, tiles: f64) -> Self {
        let expected = self.seconds(tiles);
        if !seconds.is_finite() {
            return self;
        }
        if !(expected.is_finite() && expected > 0.0) {
            return Self {
                base_seconds: seconds,
                tile_seconds: 0.0,
            };
        }
        let change = 1.0 - NEWEST + NEWEST * seconds / expected;
        Self {
            base_seconds: self.base_seconds * change,
            tile_seconds: self.tile_seconds * change,
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
        let is_sound = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
        (is_sound(known.pace.base_seconds) && is_sound(known.pace.tile_seconds)).then_some(known.pace)
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

    fn pace(base_seconds: f64, tile_seconds: f64) -> Pace {
        Pace {
            base_seconds,
            tile_seconds,
        }
    }

    #[test]
    fn the_tiles_that_fit_a_lease_follow_the_pace() {
        // 144 of 180 seconds are for work.
        for (base, tile, most) in [
            (0.0, 10.0, 14),
            (0.0, 144.0, 1),
            (0.0, 150.0, 0),
            (44.0, 10.0, 10),
            (140.0, 10.0, 0),
            (0.0, f64::MIN_POSITIVE, u32::MAX),
            (100.0, 0.0, u32::MAX),
            (150.0, 0.0, 0),
        ] {
            assert_eq!(pace(base, tile).most_tiles(), most, "{base} {tile}");
        }
        assert_eq!(pace(3.0, 8.0).takes(tiles(1024, 512)), Duration::from_secs(19));
        assert_eq!(pace(8.0, 0.0).takes(256.0), Duration::from_secs(8));
        assert_eq!(pace(0.0, f64::MAX).takes(f64::MAX), Duration::MAX);
    }

    #[test]
    fn two_pictures_tell_what_every_picture_takes_and_what_grows() {
        let apart =
            |a: Pace, b: Pace| (a.base_seconds - b.base_seconds).abs() + (a.tile_seconds - b.tile_seconds).abs();
        assert!(apart(Pace::through((1.1, 0.1), (1.5, 0.5)), pace(1.0, 1.0)) < 1e-9);
        // A larger picture that was quicker, and a small one slower than any line allows.
        assert_eq!(Pace::through((1.2, 0.1), (1.1, 0.5)), pace(1.2, 0.0));
        assert_eq!(Pace::through((0.0, 0.1), (8.0, 0.5)).base_seconds, 0.0);
    }

    #[test]
    fn jobs_correct_the_pace() {
        let mut now = pace(1.0, 1.0);
        for _ in 0..40 {
            now = now.after(25.0, 4.0);
        }
        assert!((now.seconds(4.0) - 25.0).abs() < 0.01, "{now:?}");
        assert!((now.base_seconds - now.tile_seconds).abs() < 1e-9, "{now:?}");
    }

    #[test]
    fn a_row_of_thumbnails_does_not_make_large_pictures_look_slow() {
        let mut now = pace(1.0, 0.5);
        for _ in 0..40 {
            now = now.after(1.0, tiles(32, 32));
        }
        assert!(now.seconds(16.0) < 9.1, "{now:?}");
        assert_eq!(now.after(f64::NAN, 1.0), now);
        assert_eq!(pace(0.0, 0.0).after(3.0, 1.0), pace(3.0, 0.0));
    }

    #[test]
    fn a_pace_is_remembered_for_the_same_files_on_the_same_device_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state/pace.json");
        Paces::open(&file).set("GFPGAN", "cpu abc", pace(2.5, 1.5));
        let paces = Paces::open(&file);
        assert_eq!(paces.get("GFPGAN", "cpu abc"), Some(pace(2.5, 1.5)));
        assert_eq!(paces.get("GFPGAN", "cuda:0 abc"), None);
        assert_eq!(paces.get("nsfw", "cpu abc"), None);
        for broken in [
            "{\"GFPGAN\":3}",
            // As an earlier version wrote it.
            "{\"GFPGAN\":{\"of\":\"cpu abc\",\"seconds\":1.0,\"per_tile\":true}}",
            "{\"GFPGAN\":{\"of\":\"cpu abc\",\"base_seconds\":-1.0,\"tile_seconds\":1.0}}",
        ] {
            std::fs::write(&file, broken).unwrap();
            assert_eq!(Paces::open(&file).get("GFPGAN", "cpu abc"), None, "{broken}");
        }
    }
}
