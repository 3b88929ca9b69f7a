//! Whether memory suffices: what a device has, what models and jobs need, and what may be offered so that no job that
//! comes has to be handed back.

use std::fmt;

use diffusion::memory::{free_bytes, own_bytes};
use diffusion::model::Family;
use diffusion::pipeline::WHOLE_PIXELS;
use diffusion::{MemoryPlan, Outline, Request, Source};
use imaging::Picture;
use serde::{Deserialize, Serialize};
use vision::Device;

use crate::models::Served;

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

impl Room {
    /// Most bytes that the engine can hold as things are now, of which it holds `held` for models; `None` where nobody
    /// tells.
    fn most_bytes(&self, held: u64) -> Option<u64> {
        let free = free_bytes(&self.device);
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

    /// Whether `plan` can be carried out beside other models of `others` bytes, where `held` are held for models now.
    ///
    /// # Errors
    /// It cannot, and by how much.
    pub fn check(&self, plan: &MemoryPlan, others: u64, held: u64) -> Result<(), Shortage> {
        let weights_bytes = plan.weights_bytes.saturating_add(others);
        let Some(has_bytes) = self.most_bytes(held) else {
            return Ok(());
        };
        let work = plan.peak_bytes().saturating_sub(plan.weights_bytes);
        let work_bytes = work.saturating_mul(SPARE.0) / SPARE.1;
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

    /// What a model of this outline may be asked for when no other is in memory, at most `ceiling`.
    ///
    /// # Errors
    /// Not even a small picture fits.
    pub fn offer(&self, outline: &Outline, ceiling: Offer, held: u64) -> Result<Offer, Shortage> {
        let fits = |pixels: u64, batch: u32| {
            let plan = outline.plan(&largest(pixels, batch), self.device.is_cpu(), WHOLE_PIXELS);
            self.check(&plan, 0, held)
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

/// Which models are served and what is offered for all of them together.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Names of the models that are served.
    pub served: Vec<String>,
    /// What each of them can do.
    pub offer: Offer,
    /// Models that are not, and why.
    pub left_out: Vec<(String, String)>,
}

/// Looks at all models' headers. A model that cannot make pictures of its own size (or of the ceiling, where that is less)
/// is left out if others can, so that it does not lower what they are offered for. `held` bytes are held for models now.
///
/// # Errors
/// No model can be served; why the first cannot.
pub fn plan(room: &Room, models: &[Served], ceiling: Offer, held: u64) -> Result<Plan, String> {
    let mut able: Vec<(String, Offer, bool)> = Vec::new();
    let mut left_out = Vec::new();
    for model in models {
        let opened = Outline::open(&model.files(), &[]).map_err(|error| error.to_string());
        let offer = opened.and_then(|outline| {
            let offer = room
                .offer(&outline, ceiling, held)
                .map_err(|shortage| shortage.to_string())?;
            Ok((
                offer,
                offer.pixels >= native_pixels(outline.family()).min(ceiling.pixels),
            ))
        });
        match offer {
            Ok((offer, is_whole)) => able.push((model.name.clone(), offer, is_whole)),
            Err(why) => left_out.push((model.name.clone(), why)),
        }
    }
    if able.iter().any(|(_, _, is_whole)| *is_whole) {
        let (kept, small): (Vec<_>, Vec<_>) = able.into_iter().partition(|(_, _, is_whole)| *is_whole);
        able = kept;
        left_out.extend(small.into_iter().map(|(name, offer, _)| {
            let why = format!(
                "memory suffices for pictures of {} pixels only, less than its own size",
                offer.pixels
            );
            (name, why)
        }));
    }
    let pixels = able.iter().map(|(_, offer, _)| offer.pixels).min();
    let batch = able.iter().map(|(_, offer, _)| offer.batch).min();
    match (pixels, batch) {
        (Some(pixels), Some(batch)) => Ok(Plan {
            served: able.into_iter().map(|(name, _, _)| name).collect(),
            offer: Offer { pixels, batch },
            left_out,
        }),
        _ => Err(left_out
            .first()
            .map_or("there is no model to serve".to_owned(), |(name, why)| {
                format!("`{name}`: {why}")
            })),
    }
}

/// Pixels of the pictures that a family was trained on.
fn native_pixels(family: Family) -> u64 {
    match family {
        Family::Sd1 | Family::Sd2 => 512 * 512,
        Family::Sdxl => 1024 * 1024,
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
    use std::path::Path;

    use super::*;

    fn room(limit_mb: u64, check_mb: u64) -> Room {
        Room {
            device: Device::Cpu,
            limit_bytes: Some(limit_mb << 20),
            check_bytes: check_mb << 20,
        }
    }

    fn tiny(name: &str) -> Served {
        Served {
            name: name.into(),
            checkpoint: Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../tests/models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors"),
            unet: None,
            vae: None,
            baseline: None,
            nsfw: false,
            style: String::new(),
        }
    }

    const CEILING: Offer = Offer {
        pixels: 1024 * 1024,
        batch: 8,
    };

    fn offered(limit_mb: u64, check_mb: u64) -> Result<Offer, String> {
        plan(&room(limit_mb, check_mb), &[tiny("tiny")], CEILING, 0).map(|plan| plan.offer)
    }

    #[test]
    fn less_memory_lowers_the_offer_down_to_a_refusal_with_its_reason() {
        assert_eq!(offered(8_000, 0), Ok(CEILING));
        let mut before = CEILING;
        let mut was_lowered = false;
        for limit in (40..2_000).rev().step_by(40) {
            match offered(limit, 0) {
                Ok(offer) => {
                    assert!(offer.pixels <= before.pixels, "{limit}: {offer:?} after {before:?}");
                    assert!(offer.pixels >= SMALLEST_PIXELS && (1..=8).contains(&offer.batch));
                    was_lowered |= offer.pixels < CEILING.pixels;
                    before = offer;
                }
                Err(why) => {
                    assert!(why.contains("`tiny`: it needs") && why.contains("are there"), "{why}");
                    assert!(was_lowered, "it was refused before it was lowered");
                    return;
                }
            }
        }
        panic!("40 MB are too few for a model of 27 MB and its work");
    }

    #[test]
    fn the_content_check_counts() {
        let with = offered(1_300, 1_200);
        assert!(with.is_err() || with.is_ok_and(|offer| offer.pixels < 512 * 512));
        assert!(offered(1_300, 0).is_ok_and(|offer| offer.pixels >= 512 * 512));
        let shortage = room(1_000, 1_200).check_alone().unwrap_err();
        assert_eq!((shortage.check_bytes, shortage.has_bytes), (1_200 << 20, 1_000 << 20));
        assert!(room(1_300, 1_200).check_alone().is_ok());
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

    #[test]
    fn a_model_that_cannot_make_its_own_size_does_not_lower_the_others() {
        let broken = Served {
            checkpoint: "/nowhere/m.safetensors".into(),
            ..tiny("broken")
        };
        let made = plan(&room(8_000, 0), &[broken, tiny("tiny")], CEILING, 0).unwrap();
        assert_eq!((made.served, made.offer), (vec!["tiny".to_owned()], CEILING));
        assert!(made.left_out[0].0 == "broken" && made.left_out[0].1.contains("/nowhere/m.safetensors"));
        assert!(plan(&room(8_000, 0), &[], CEILING, 0).is_err());
    }
}
