//! What an engine does before a form is offered: the words of an interrogation find their places, and the form's time is
//! measured on a made-up picture. Both are done once per file and device and remembered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use imaging::{Picture, Planar};
use worker_runtime::backend::{Fault, JobContext};

use super::Shared;
use super::perform::{Source, perform};
use crate::forms::Task;
use crate::pace::{self, Pace};
use crate::work::Options;

/// Sides of the made-up pictures: an upscaler's whole tile takes minutes on a processor.
const TINY: u32 = 32;
const SMALL: u32 = 128;
const MIDDLE: u32 = 256;
/// No measurement goes on for longer; what it found until then is the least the form takes.
const LONGEST: Duration = Duration::from_secs(30);
/// The owner hears of the words' progress this often.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Opens one form after the other, the quick ones first; ends early when the engine goes.
pub(super) fn open_all(shared: &Shared) {
    let mut tasks: Vec<(&String, &Task)> = shared.tasks.iter().collect();
    // Words may take minutes: last.
    tasks.sort_by_key(|(_, task)| matches!(task, Task::Interrogate { .. }));
    for (form, task) in tasks {
        if shared.is_leaving.load(Ordering::Relaxed) {
            return;
        }
        let held = shared.networks.held();
        match open(shared, form, task) {
            Ok(pace) if pace.most_tiles() == 0 && !shared.settings.is_named => tracing::warn!(
                "{form} is not offered: it takes {:.0} s here and the Horde gives {:.0} s; name it in `alchemist.forms` \
                 to serve it for small pictures",
                pace.seconds(1.0),
                pace::LEASE_SECONDS
            ),
            Ok(pace) => {
                let of = if task.is_per_tile() { "tile" } else { "picture" };
                tracing::info!(
                    "{form} is offered: {:.1} s for a {of}, sources of up to {} tiles",
                    pace.seconds(1.0),
                    pace.most_tiles().clamp(1, shared.settings.max_tiles)
                );
                shared.open().insert(form.clone(), pace);
            }
            Err(fault) if shared.is_leaving.load(Ordering::Relaxed) => drop(fault),
            Err(fault) => tracing::warn!(
                "{form} is not offered: {fault}; `alchemist doctor` tells the files apart and what to do"
            ),
        }
        // Memory is for jobs, not for what was only measured.
        shared.networks.keep_only(&held);
        vision::allocator::give_back();
    }
}

/// The pace of a form, remembered or measured.
fn open(shared: &Shared, form: &str, task: &Task) -> Result<Pace, Fault> {
    if let Task::Interrogate { clip, words } = task
        && !shared.networks.has_places(clip, words)
    {
        tracing::info!("interrogation is offered once all words have their places, which is computed once and kept");
        let mut told = Instant::now();
        let mut progress = |done: usize, total: usize| {
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tracing::info!("interrogation: {done} of {total} words have their places");
            }
            !shared.is_leaving.load(Ordering::Relaxed)
        };
        shared.networks.interrogator(clip, words, &mut progress)?;
    }
    let of = shared.measured_of(task);
    if let Some(pace) = shared.paces().get(form, &of) {
        return Ok(pace);
    }
    let pace = measure(shared, task)?;
    shared.paces().set(form, &of, pace);
    Ok(pace)
}

/// Of a tiny picture, and of a larger one where that takes longer.
fn measure(shared: &Shared, task: &Task) -> Result<Pace, Fault> {
    let timed = |side: u32| -> Result<Timed, Fault> {
        let picture = made_up(side);
        let source = Source {
            picture: &picture,
            format: "PNG",
        };
        let until = Until::new(&shared.is_leaving);
        let done = perform(task, &shared.networks, &source, &Options::default(), &until);
        let seconds = until.since.elapsed().as_secs_f64();
        match done {
            Err(fault) if !until.is_over() => Err(fault),
            done => Ok(Timed {
                seconds,
                tiles: pace::tiles(side, side),
                is_whole: done.is_ok(),
            }),
        }
    };
    // Reading weights is no part of a form's pace: the first picture has them read.
    timed(TINY)?;
    let tiny = timed(TINY)?;
    let mut pace = if !task.is_per_tile() {
        Pace {
            base_seconds: tiny.seconds,
            tile_seconds: 0.0,
        }
    } else if tiny.is_whole {
        let larger = timed(if matches!(task, Task::Upscale(_)) {
            SMALL
        } else {
            MIDDLE
        })?;
        Pace::through((tiny.seconds, tiny.tiles), (larger.seconds, larger.tiles))
    } else {
        // Not even that was done in time: at least so long for each such piece.
        Pace {
            base_seconds: 0.0,
            tile_seconds: tiny.seconds / tiny.tiles,
        }
    };
    if let Task::Faces { restorer, parser, .. } = task {
        // The made-up picture has no face. A picture is taken to have one, and one more every second tile.
        let restorer = shared.networks.restorer(restorer, parser.as_deref())?;
        let side = restorer.side() as u32;
        let face = Planar::new(3, side, side, vec![0.1; (side * side * 3) as usize]);
        let started = Instant::now();
        if let Ok(face) = face {
            // Made-up weights may give no numbers; the time is the same.
            let _ = restorer.repair(&face);
        }
        let seconds = started.elapsed().as_secs_f64();
        pace.base_seconds += seconds;
        pace.tile_seconds += seconds / 2.0;
    }
    Ok(pace)
}

/// One measurement.
struct Timed {
    seconds: f64,
    tiles: f64,
    /// Whether the picture was done, and not given up after [`LONGEST`].
    is_whole: bool,
}

/// Slopes, stripes and grain: no form finds it trivial.
fn made_up(side: u32) -> Picture {
    let mut picture = Picture::filled(side, side, [0, 0, 0]);
    let mut grain = 1u32;
    for (at, pixel) in picture.data_mut().chunks_exact_mut(3).enumerate() {
        let (x, y) = (at as u32 % side, at as u32 / side);
        grain = grain.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = (grain >> 28) as u8;
        let stripe = if (x / 16 + y / 24) % 2 == 0 { 60 } else { 0 };
        let slope = |value: u32| (value * 180 / side) as u8;
        pixel.copy_from_slice(&[
            slope(x) + stripe + noise,
            slope(y) + noise,
            slope(side - 1 - x) + stripe / 2 + noise,
        ]);
    }
    picture
}

/// Ends a measurement that takes too long, or whose engine goes.
struct Until<'a> {
    since: Instant,
    is_leaving: &'a AtomicBool,
}

impl<'a> Until<'a> {
    fn new(is_leaving: &'a AtomicBool) -> Self {
        Self {
            since: Instant::now(),
            is_leaving,
        }
    }

    fn is_over(&self) -> bool {
        self.since.elapsed() >= LONGEST
    }
}

impl JobContext for Until<'_> {
    fn progress(&self, _done: u32, _total: u32, _phase: &str) {}
    fn is_cancelled(&self) -> bool {
        self.is_over() || self.is_leaving.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_made_up_picture_has_many_colours() {
        let picture = made_up(SMALL);
        let colours: std::collections::BTreeSet<&[u8]> = picture.data().chunks_exact(3).collect();
        assert!(colours.len() > 1000, "{}", colours.len());
    }
}
