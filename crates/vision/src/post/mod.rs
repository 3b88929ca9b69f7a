//! Several post-processors one after another: faces first, then the upscaler, the cut-out last.
//!
//! The order is that of the Horde's reference engine (7.12) and not the requester's: faces are repaired at the size they
//! were drawn at, and only the last step may add alpha. [`PostFiles`] says which file serves a name; reading it is the caller's.

mod files;

use std::sync::Arc;

use imaging::Picture;

use crate::background::{BackgroundRemover, MattingSettings};
use crate::error::{Result, VisionError};
use crate::face::{FaceDetector, FaceRestorer, RestoreSettings, restore_faces};
use crate::upscale::{Tiling, Upscaler};

pub use files::PostFiles;

/// What a post-processor does. The order of the variants is the order of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Repairs faces, size unchanged.
    Faces,
    /// Enlarges.
    Upscale,
    /// Makes the background transparent, size unchanged.
    CutOut,
}

/// The Horde's sixteen names, spelled as on the wire.
pub const NAMES: [(&str, Kind); 16] = [
    ("GFPGAN", Kind::Faces),
    ("GFPGANv1.3", Kind::Faces),
    ("CodeFormers", Kind::Faces),
    ("RestoreFormer", Kind::Faces),
    ("RealESRGAN_x4plus", Kind::Upscale),
    ("RealESRGAN_x2plus", Kind::Upscale),
    ("RealESRGAN_x4plus_anime_6B", Kind::Upscale),
    ("NMKD_Siax", Kind::Upscale),
    ("4x_AnimeSharp", Kind::Upscale),
    ("4xNomos8kSC", Kind::Upscale),
    ("4xLSDIRplus", Kind::Upscale),
    ("4xNomosWebPhoto_RealPLKSR", Kind::Upscale),
    ("4xNomos2_realplksr_dysample", Kind::Upscale),
    ("4xNomos2_hq_dat2", Kind::Upscale),
    ("2xModernSpanimationV1", Kind::Upscale),
    ("strip_background", Kind::CutOut),
];

/// How many times larger a post-processor makes each side, told by its name alone; 1 for a name that is unknown.
pub fn scale_of(name: &str) -> usize {
    match NAMES.iter().find(|(known, _)| *known == name) {
        Some((name, Kind::Upscale)) if name.starts_with("2x") || name.ends_with("x2plus") => 2,
        Some((_, Kind::Upscale)) => 4,
        _ => 1,
    }
}

/// Gives loaded networks by the Horde's name. Errors are passed on by [`chain`] as they are.
pub trait Networks {
    /// The detector and the restorer of a name of [`Kind::Faces`].
    fn faces(&self, name: &str) -> Result<(Arc<FaceDetector>, Arc<FaceRestorer>)>;
    /// The network of a name of [`Kind::Upscale`].
    fn upscaler(&self, name: &str) -> Result<Arc<Upscaler>>;
    /// The network of `strip_background`.
    fn remover(&self) -> Result<Arc<BackgroundRemover>>;
    /// How pictures are cut for upscalers.
    fn tiling(&self) -> Tiling {
        Tiling::default()
    }
}

/// The names in the order of work, each once; those of one kind keep the requester's order. A name that is unknown and a
/// second upscaler are refused, so the work is bounded by the number of face fixers, whatever the list's length.
pub fn plan<S: AsRef<str>>(names: &[S]) -> Result<Vec<(&'static str, Kind)>> {
    let mut steps: Vec<(&'static str, Kind)> = Vec::new();
    for name in names {
        let name = name.as_ref();
        let step = NAMES.iter().find(|(known, _)| *known == name).ok_or_else(|| {
            let start: String = name.chars().take(60).collect();
            VisionError::Input(format!("unknown post-processor `{}`", start.escape_debug()))
        })?;
        if steps.contains(step) {
            continue;
        }
        if let (Kind::Upscale, Some((first, _))) = (step.1, steps.iter().find(|(_, kind)| *kind == Kind::Upscale)) {
            return Err(VisionError::Input(format!(
                "at most one upscaler is possible, but both `{first}` and `{name}` were asked for"
            )));
        }
        steps.push(*step);
    }
    steps.sort_by_key(|(_, kind)| *kind);
    Ok(steps)
}

enum Step {
    Faces(Arc<FaceDetector>, Arc<FaceRestorer>),
    Upscale(Arc<Upscaler>),
    CutOut(Arc<BackgroundRemover>),
}

/// Parts of one step on one picture that `progress` counts.
const PARTS: usize = 100;

/// Sends every picture through all named post-processors in the order of [`plan`]. `strength` is the Horde's
/// `facefixer_strength` in 0..=1 (others are clamped, no number is 1). Names, networks, result sizes and the memory
/// of enlargements are checked before the first pixel is computed. `progress(done, total)` is asked again and again whether to go on; `false` ends in
/// [`VisionError::Cancelled`].
pub fn chain<S: AsRef<str>>(
    names: &[S],
    mut pictures: Vec<Picture>,
    networks: &dyn Networks,
    strength: f32,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<Picture>> {
    let mut steps = Vec::new();
    for (name, kind) in plan(names)? {
        steps.push(match kind {
            Kind::Faces => {
                let (detector, restorer) = networks.faces(name)?;
                Step::Faces(detector, restorer)
            }
            Kind::Upscale => {
                let upscaler = networks.upscaler(name)?;
                for picture in &pictures {
                    upscaler.plan(
                        picture.width(),
                        picture.height(),
                        picture.has_alpha(),
                        networks.tiling(),
                    )?;
                }
                Step::Upscale(upscaler)
            }
            Kind::CutOut => Step::CutOut(networks.remover()?),
        });
    }
    let total = steps.len().saturating_mul(pictures.len()).saturating_mul(PARTS);
    let mut begun = 0;
    for picture in &mut pictures {
        for step in &steps {
            let mut inner = |done: usize, of: usize| {
                let part = done.min(of).saturating_mul(PARTS) / of.max(1);
                progress(begun + part, total)
            };
            *picture = match step {
                Step::Faces(detector, restorer) => {
                    let settings = RestoreSettings {
                        strength,
                        ..RestoreSettings::default()
                    };
                    restore_faces(picture, detector, restorer, &settings, &mut inner)?
                }
                Step::Upscale(upscaler) => upscaler.upscale(picture, networks.tiling(), &mut inner)?,
                Step::CutOut(remover) => remover.cut_out(picture, &MattingSettings::default())?,
            };
            begun += PARTS;
            if !progress(begun, total) {
                return Err(VisionError::Cancelled);
            }
        }
    }
    Ok(pictures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faces_come_first_and_the_cut_out_last_whatever_the_requester_says() {
        let steps = plan(&["strip_background", "NMKD_Siax", "CodeFormers", "GFPGAN"]).unwrap_or_default();
        let names: Vec<_> = steps.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["CodeFormers", "GFPGAN", "NMKD_Siax", "strip_background"]);
    }

    #[test]
    fn ten_thousand_repetitions_are_one_step() {
        let steps = plan(&vec!["RealESRGAN_x4plus"; 10_000]).unwrap_or_default();
        assert_eq!(steps, [("RealESRGAN_x4plus", Kind::Upscale)]);
    }

    #[test]
    fn a_second_upscaler_and_an_unknown_name_are_refused() {
        let reason = |names: &[&str]| plan(names).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(reason(&["NMKD_Siax", "4x_AnimeSharp"]).contains("at most one upscaler"));
        assert!(reason(&["gfpgan"]).contains("unknown post-processor `gfpgan`"));
        assert!(reason(&[&"x".repeat(100_000)]).len() < 200);
    }
}
