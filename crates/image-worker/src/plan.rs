//! Which models are served and what is offered for all of them together: decided from headers before any is read.

use std::fmt;

use diffusion::Outline;
use diffusion::model::Family;

use crate::models::Served;
use crate::post::PostNeed;
use crate::room::{Offer, Room, Shortage};

/// Which models are served and what is offered for all of them together.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Names of the models that are served.
    pub served: Vec<String>,
    /// What each of them can do.
    pub offer: Offer,
    /// Models that are not, and why.
    pub left_out: Vec<(String, WhyNot)>,
}

/// Why a model is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// There is not enough memory for any picture.
    Memory(Shortage),
    /// Memory suffices for pictures of so many pixels only, which is less than its own size, and others can do more.
    SmallPictures(u64),
    /// Its files cannot be used.
    Files(String),
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(shortage) => write!(f, "{shortage}"),
            Self::SmallPictures(pixels) => write!(
                f,
                "memory suffices for pictures of {pixels} pixels only, less than its own size"
            ),
            Self::Files(why) => f.write_str(why),
        }
    }
}

/// No model can be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPlan {
    /// None was named.
    NoModel,
    /// Why the first cannot.
    Model(String, WhyNot),
}

impl fmt::Display for NoPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoModel => f.write_str("there is no model to serve"),
            Self::Model(name, why) => write!(f, "`{name}`: {why}"),
        }
    }
}

/// Looks at all models' headers. A model that cannot make pictures of its own size (or of the ceiling, where that is less)
/// is left out if others can, so that it does not lower what they are offered for. Jobs may name all of `post`; `held`
/// bytes are held for networks now.
///
/// # Errors
/// No model can be served; why the first cannot.
pub fn plan(room: &Room, models: &[Served], ceiling: Offer, post: &PostNeed, held: u64) -> Result<Plan, NoPlan> {
    let mut able: Vec<(String, Offer, bool)> = Vec::new();
    let mut left_out = Vec::new();
    for model in models {
        let opened = Outline::open(&model.files(), &[]).map_err(|error| WhyNot::Files(error.to_string()));
        let offer = opened.and_then(|outline| {
            let offer = room.offer(&outline, ceiling, post, held).map_err(WhyNot::Memory)?;
            let is_whole = offer.pixels >= native_pixels(outline.family()).min(ceiling.pixels);
            Ok((offer, is_whole))
        });
        match offer {
            Ok((offer, is_whole)) => able.push((model.name.clone(), offer, is_whole)),
            Err(why) => left_out.push((model.name.clone(), why)),
        }
    }
    if able.iter().any(|(_, _, is_whole)| *is_whole) {
        let (kept, small): (Vec<_>, Vec<_>) = able.into_iter().partition(|(_, _, is_whole)| *is_whole);
        able = kept;
        let small = small.into_iter();
        left_out.extend(small.map(|(name, offer, _)| (name, WhyNot::SmallPictures(offer.pixels))));
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
            .into_iter()
            .next()
            .map_or(NoPlan::NoModel, |(name, why)| NoPlan::Model(name, why))),
    }
}

/// Pixels of the pictures that a family was trained on.
fn native_pixels(family: Family) -> u64 {
    match family {
        Family::Sd1 | Family::Sd2 => 512 * 512,
        Family::Sdxl => 1024 * 1024,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vision::Device;

    use super::*;
    use crate::room::SMALLEST_PIXELS;

    fn room(limit_mb: u64, check_mb: u64) -> Room {
        Room {
            device: Device::Cpu,
            free_bytes: diffusion::memory::free_bytes,
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

    fn offered(limit_mb: u64, check_mb: u64) -> Result<Offer, NoPlan> {
        let none = PostNeed::default();
        plan(&room(limit_mb, check_mb), &[tiny("tiny")], CEILING, &none, 0).map(|plan| plan.offer)
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
                    assert!(matches!(&why, NoPlan::Model(name, WhyNot::Memory(_)) if name == "tiny"));
                    let said = why.to_string();
                    assert!(
                        said.contains("`tiny`: it needs") && said.contains("are there"),
                        "{said}"
                    );
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
    }

    #[test]
    fn what_jobs_may_do_to_their_pictures_counts() {
        let of = |limit_mb: u64, post: &PostNeed| {
            plan(&room(limit_mb, 0), &[tiny("tiny")], CEILING, post, 0).map(|plan| plan.offer)
        };
        let all = PostNeed::of_names(["RealESRGAN_x4plus", "strip_background"]);
        assert_eq!(of(8_000, &all), Ok(CEILING));
        assert_eq!(of(2_000, &PostNeed::default()), Ok(CEILING));
        // A picture of 4096x4096 is cut out in 1.8 GB.
        assert!(of(2_000, &all).is_ok_and(|offer| offer.pixels < CEILING.pixels));
    }

    #[test]
    fn a_model_that_cannot_make_its_own_size_does_not_lower_the_others() {
        let broken = Served {
            checkpoint: "/nowhere/m.safetensors".into(),
            ..tiny("broken")
        };
        let none = PostNeed::default();
        let roomy = room(8_000, 0);
        let made = plan(&roomy, &[broken.clone(), tiny("tiny")], CEILING, &none, 0).unwrap();
        assert_eq!((made.served, made.offer), (vec!["tiny".to_owned()], CEILING));
        let (name, why) = &made.left_out[0];
        assert!(name == "broken" && matches!(why, WhyNot::Files(why) if why.contains("/nowhere/m.safetensors")));
        assert_eq!(plan(&roomy, &[], CEILING, &none, 0), Err(NoPlan::NoModel));
        let refused = plan(&roomy, &[broken], CEILING, &none, 0);
        assert!(matches!(refused, Err(NoPlan::Model(_, WhyNot::Files(_)))));
    }
}
