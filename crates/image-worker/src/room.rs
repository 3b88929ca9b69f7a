//! Whether memory suffices: what a device has, what models and jobs need, and what may be offered so that no job that
//! comes has to be handed back.

use std::fmt;

use diffusion::memory::own_bytes;
use diffusion::pipeline::WHOLE_PIXELS;
use diffusion::{MemoryPlan, Outline, Request, Source};
use imaging::Picture;
use serde::{Deserialize, Serialize};
use vision::Device;

use crate::post::PostNeed;

/// Smallest offer that is worth a pop: requests below 256×256 are rare.
pub const SMALLEST_PIXELS: u64 = 256 * 256;
/// Offers are counted in squares of this many pixels.
const UNIT_PIXELS: u64 = 64 * 64;
/// What is needed to work in may be a third more than planned; the plan's own tests hold it to that.
const SPARE: (u64, u64) = (4, 3);

/// The memory of one engine.
#[derive(Clone, Debug)]
pub struct Room {
    /// Where pictures are made.
    pub device: Device,
    /// Tells what is free there: [`diffusion::memory::free_bytes`], but for tests.
    pub free_bytes: fn(&Device) -> Option<u64>,
    /// The owner's bound for all that the engine holds.
    pub limit_bytes: Option<u64>,
    /// What the content check holds on the device.
    pub check_bytes: u64,
}

/// What jobs may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Pixels of one picture.
    pub pixels: u64,
    /// Pictures of one job.
    pub batch: u32,
}

impl Offer {
    /// Whether this is so much more than `before` that it is worth telling: what is free changes all the time.
    pub fn is_clearly_more_than(self, before: Self, ceiling: Self) -> bool {
        let is_larger =
            self.pixels > before.pixels && (self.pixels >= ceiling.pixels || self.pixels / 9 * 8 >= before.pixels);
        is_larger || (self.pixels == before.pixels && self.batch > before.batch)
    }
}

/// What one part of a job needs, the content check apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Weights of its networks.
    pub weights_bytes: u64,
    /// To work in.
    pub work_bytes: u64,
}

/// A job or a model for which there is not enough memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// Weights of this and of other models in memory.
    pub weights_bytes: u64,
    /// To work in.
    pub work_bytes: u64,
    /// The content check.
    pub check_bytes: u64,
    /// What there is for all of it.
    pub has_bytes: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.weights_bytes + self.work_bytes + self.check_bytes;
        write!(
            f,
            "it needs {} of memory ({} for weights, {} to work in, {} for the content check) and {} are there",
            amount(all),
            amount(self.weights_bytes),
            amount(self.work_bytes),
            amount(self.check_bytes),
            amount(self.has_bytes)
        )
    }
}

/// For people.
fn amount(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{} MB", bytes.div_ceil(1 << 20)),
        _ => format!("{:.1} GB", bytes as f64 / f64::from(1 << 30)),
    }
}

impl From<&MemoryPlan> for Need {
    fn from(plan: &MemoryPlan) -> Self {
        Self {
            weights_bytes: plan.weights_bytes,
            work_bytes: plan.peak_bytes().saturating_sub(plan.weights_bytes),
        }
    }
}

impl Room {
    /// Most bytes that the engine can hold as things are now, of which it holds `held` for networks; `None` where nobody
    /// tells.
    pub fn most_bytes(&self, held: u64) -> Option<u64> {
        let free = (self.free_bytes)(&self.device);
        let now = match (&self.device, free) {
            (Device::Cpu, Some(free)) => Some(free.saturating_add(own_bytes().unwrap_or(0))),
            (_, Some(free)) => Some(free.saturating_add(held).saturating_add(self.check_bytes)),
            (_, None) => None,
        };
        match (now, self.limit_bytes) {
            (Some(now), Some(limit)) => Some(now.min(limit)),
            (now, limit) => now.or(limit),
        }
    }

    /// Whether there is room for `need` beside other networks of `others` bytes, where `held` are held for networks now.
    ///
    /// # Errors
    /// There is none, and how much is missing.
    pub fn check(&self, need: Need, others: u64, held: u64) -> Result<(), Shortage> {
        let weights_bytes = need.weights_bytes.saturating_add(others);
        let Some(has_bytes) = self.most_bytes(held) else {
            return Ok(());
        };
        let work_bytes = need.work_bytes.saturating_mul(SPARE.0) / SPARE.1;
        let needs = weights_bytes
            .saturating_add(work_bytes)
            .saturating_add(self.check_bytes);
        let shortage = Shortage {
            weights_bytes,
            work_bytes,
            check_bytes: self.check_bytes,
            has_bytes,
        };
        if needs <= has_bytes { Ok(()) } else { Err(shortage) }
    }

    /// Whether the content check alone fits, before it is read.
    ///
    /// # Errors
    /// It does not.
    pub fn check_alone(&self) -> Result<(), Shortage> {
        // What is there before anything is held is free.
        let Some(has_bytes) = self.most_bytes(0).filter(|has| *has < self.check_bytes) else {
            return Ok(());
        };
        Err(Shortage {
            weights_bytes: 0,
            work_bytes: 0,
            check_bytes: self.check_bytes,
            has_bytes,
        })
    }

    /// What a model of this outline may be asked for when no other is in memory, at most `ceiling`. Its pictures may go
    /// through all of `post`, for which the model can leave.
    ///
    /// # Errors
    /// Not even a small picture fits.
    pub fn offer(&self, outline: &Outline, ceiling: Offer, post: &PostNeed, held: u64) -> Result<Offer, Shortage> {
        let fits = |pixels: u64, batch: u32| {
            let request = largest(pixels, batch);
            let plan = outline.plan(&request, self.device.is_cpu(), WHOLE_PIXELS);
            self.check(Need::from(&plan), 0, held)?;
            self.check(post.need((request.width, request.height), batch), 0, held)
        };
        let pixels = if fits(ceiling.pixels, 1).is_ok() {
            ceiling.pixels
        } else {
            fits(SMALLEST_PIXELS.min(ceiling.pixels), 1)?;
            let (mut fitting, mut too_large) = (
                SMALLEST_PIXELS.min(ceiling.pixels) / UNIT_PIXELS,
                ceiling.pixels.div_ceil(UNIT_PIXELS),
            );
            while too_large > fitting + 1 {
                let middle = fitting.midpoint(too_large);
                if fits(middle * UNIT_PIXELS, 1).is_ok() {
                    fitting = middle;
                } else {
                    too_large = middle;
                }
            }
            fitting * UNIT_PIXELS
        };
        let all_fit = |most: &u32| {
            let sizes = (2..=*most).map(|batch| (batch, largest_in_batch(pixels, *most, batch)));
            sizes.into_iter().all(|(batch, pixels)| fits(pixels, batch).is_ok())
        };
        let batch = (2..=ceiling.batch).rev().find(all_fit).unwrap_or(1);
        Ok(Offer { pixels, batch })
    }
}

/// The largest pictures that come in a batch when `most` are offered at `pixels`: the Horde gives fewer of larger ones.
fn largest_in_batch(pixels: u64, most: u32, batch: u32) -> u64 {
    // AI-Horde 5.1.5 gives round(pixels / 3.5 * most / size).
    let size = pixels as f64 / 3.5 * f64::from(most) / (f64::from(batch) - 0.5);
    (size.ceil() as u64).min(pixels)
}

/// The neediest request of so many pixels: with a source, and sides that cover them.
fn largest(pixels: u64, batch: u32) -> Request {
    let width = ((pixels as f64).sqrt() / 64.0).ceil().max(1.0) as u64 * 64;
    let height = pixels.div_ceil(width).next_multiple_of(8);
    let side = |pixels: u64| u32::try_from(pixels).unwrap_or(u32::MAX);
    Request {
        batch: batch as usize,
        source: Some(Source {
            picture: Picture::filled(8, 8, [0; 3]),
            mask: None,
            inpaint: false,
            denoise: 1.0,
        }),
        ..Request::new("", side(width), side(height))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_check_counts_before_anything_is_read() {
        let room = |limit_mb: u64| Room {
            device: Device::Cpu,
            free_bytes: diffusion::memory::free_bytes,
            limit_bytes: Some(limit_mb << 20),
            check_bytes: 1_200 << 20,
        };
        let shortage = room(1_000).check_alone().unwrap_err();
        assert_eq!((shortage.check_bytes, shortage.has_bytes), (1_200 << 20, 1_000 << 20));
        assert!(room(1_300).check_alone().is_ok());
        assert!(
            shortage.to_string().contains("1.2 GB for the content check"),
            "{shortage}"
        );
    }

    #[test]
    fn every_size_that_comes_in_a_batch_is_planned_for() {
        // As the Horde counts, for all sizes up to the offer: what is given is never larger than what was planned for.
        let (pixels, most) = (1024u64 * 1024, 4u32);
        for side in 1..=16u64 {
            let size = side * 64 * side * 64;
            let given = (pixels as f64 / 3.5 * f64::from(most) / size as f64).round() as u32;
            let given = given.clamp(1, most);
            if given > 1 {
                assert!(size <= largest_in_batch(pixels, most, given), "{side} {given}");
            }
        }
        for pixels in [1, 4096, 512 * 512, 1024 * 1024 - 1, 3072 * 3072] {
            let asked = largest(pixels, 1);
            assert!(u64::from(asked.width) * u64::from(asked.height) >= pixels);
        }
    }
}
