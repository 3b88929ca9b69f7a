//! What post-processing needs of memory: told from the names a job has and the headers of their networks, before anything
//! is read or made.

use std::path::Path;

use vision::post::{Kind, NAMES, PostFiles, scale_of};
use vision::upscale::{Tiling, Upscaler};
use vision::{Device, Weights};

use crate::room::Need;

/// What a tile of [`SMALLEST_TILE`] holds in the widest of the Horde's upscalers, RRDBNet with 64 features: 880 numbers a
/// pixel, and 3,072 more for the 68 rows that are enlarged at once.
const TILE_BYTES: u64 = (128 * 128 * 880 + 128 * 68 * 3_072) * 4;
/// Face networks work at 512×512 with up to 64 features, where one layer's output is 64 MiB, detectors at up to
/// 1024×1024 with half of that: so much is sixteen layers at once.
const FACE_BYTES: u64 = 1 << 30;
/// Cutting out works at up to 1024×1024 halved with 64 features, and then solves for at most 1.5 million soft pixels,
/// for which `vision` states 450 MB.
const CUT_BYTES: u64 = 1 << 30;
/// For each pixel of a picture whose edge is made soft: its colours as numbers, what is certain of it, its opacity and
/// the colours in front.
const CUT_PIXEL_BYTES: u64 = 48;
/// For each pixel of a finished picture while it is looked at and packed.
const PACK_PIXEL_BYTES: u64 = 12;

/// Longest sides of tiles that are tried after the one that suits the network, the best first.
const TILE_SIDES: [usize; 4] = [536, 384, 256, SMALLEST_TILE];
/// Below it an upscaler sees too little of the picture.
const SMALLEST_TILE: usize = 128;

/// What all of some post-processors together need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PostNeed {
    weights_bytes: u64,
    faces: bool,
    cuts: bool,
    /// How many times the sides grow; 0 without an upscaler.
    scale: u64,
}

impl PostNeed {
    /// Of the post-processors with these names, their weights not counted; unknown names are passed over.
    pub fn of_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all = Self::default();
        for name in names {
            match NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, Kind::Faces)) => all.faces = true,
                Some((_, Kind::Upscale)) => all.scale = all.scale.max(scale_of(name) as u64),
                Some((_, Kind::CutOut)) => all.cuts = true,
                None => {}
            }
        }
        all
    }

    /// Of the post-processors with these names, whose files are `files`: one upscaler, and all others together. A file
    /// that cannot be read counts nothing; using it fails by itself.
    pub fn of_files<'a>(files: &PostFiles, names: impl IntoIterator<Item = &'a str> + Clone) -> Self {
        let mut all = Self::of_names(names.clone());
        let mut upscaler = 0;
        for name in names {
            let Some(path) = files.networks.get(name) else {
                continue;
            };
            let bytes = weights_bytes(path);
            match NAMES.iter().find(|(known, _)| *known == name) {
                Some((_, Kind::Upscale)) => upscaler = bytes.max(upscaler),
                Some(_) => all.weights_bytes += bytes,
                None => {}
            }
        }
        if all.faces {
            let beside = files.detector.iter().chain(&files.parser);
            all.weights_bytes += beside.map(|path| weights_bytes(path)).sum::<u64>();
        }
        all.weights_bytes += upscaler;
        all
    }

    /// Of all that jobs may name.
    pub fn of_all(files: &PostFiles) -> Self {
        Self::of_files(files, files.networks.keys().map(String::as_str))
    }

    /// Whether nothing is named.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// For `batch` pictures of `width`×`height` pixels, enlarged in the smallest tiles.
    pub fn need(&self, (width, height): (u32, u32), batch: u32) -> Need {
        if self.is_nothing() {
            return Need::default();
        }
        let (width, pixels) = (u64::from(width), u64::from(width) * u64::from(height));
        let band = width * self.scale * SMALLEST_TILE as u64 * self.scale * 3 * 4 * 9 / 4;
        let enlarging = match self.scale {
            0 => 0,
            _ => TILE_BYTES + band + pixels * 12,
        };
        self.need_with(pixels, batch, enlarging)
    }

    /// The same where enlarging is known to hold `enlarging` bytes.
    fn need_with(&self, pixels: u64, batch: u32, enlarging: u64) -> Need {
        let result_pixels = pixels * self.scale.max(1).pow(2);
        let faces = if self.faces { FACE_BYTES + pixels * 24 } else { 0 };
        let cutting = if self.cuts {
            CUT_BYTES + result_pixels * CUT_PIXEL_BYTES
        } else {
            0
        };
        let stages = [enlarging, faces, cutting, result_pixels * PACK_PIXEL_BYTES];
        Need {
            weights_bytes: self.weights_bytes,
            work_bytes: u64::from(batch) * result_pixels * 4 + stages.into_iter().max().unwrap_or(0),
        }
    }

    /// For pictures that `upscaler` enlarges: tiles from the largest to the smallest that are worth it, and what is needed
    /// with each. Results that would be too large are refused.
    pub fn tilings(&self, upscaler: &Upscaler, size: (u32, u32), batch: u32) -> vision::Result<Vec<(Tiling, Need)>> {
        let pixels = u64::from(size.0) * u64::from(size.1);
        let with = |tile: usize| {
            let tiling = Tiling {
                tile,
                ..Tiling::default()
            };
            let held = upscaler.plan(size.0, size.1, false, tiling)?.peak_bytes() as u64;
            Ok((tiling, self.need_with(pixels, batch, held)))
        };
        let suits = upscaler.tile();
        let smaller = TILE_SIDES.into_iter().filter(|tile| *tile < suits);
        std::iter::once(suits).chain(smaller).map(with).collect()
    }
}

/// What the numbers of a file hold once read.
pub fn weights_bytes(path: &Path) -> u64 {
    let Ok(weights) = Weights::open(path, &Device::Cpu) else {
        return 0;
    };
    let values = weights.keys().filter_map(|key| weights.shape(key).ok());
    4 * values
        .map(|shape| shape.iter().map(|dim| *dim as u64).product::<u64>())
        .sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_named_needs_nothing_and_every_stage_counts() {
        let of = |names: &[&str], side: u32, batch: u32| {
            let need = PostNeed::of_names(names.iter().copied()).need((side, side), batch);
            need.work_bytes
        };
        assert_eq!(of(&[], 1024, 4), 0);
        assert_eq!(of(&["no such name"], 1024, 4), 0);
        let (twice, four_times) = (of(&["RealESRGAN_x2plus"], 512, 1), of(&["RealESRGAN_x4plus"], 512, 1));
        assert!(twice < four_times, "{twice} {four_times}");
        // Three further enlarged pictures of 2048x2048.
        assert_eq!(
            of(&["NMKD_Siax"], 512, 4) - of(&["NMKD_Siax"], 512, 1),
            3 * 2048 * 2048 * 4
        );
        assert!(of(&["GFPGAN"], 64, 1) >= FACE_BYTES);
        assert!(of(&["NMKD_Siax", "strip_background"], 1024, 1) > CUT_BYTES + 4096 * 4096 * CUT_PIXEL_BYTES);
    }

    #[test]
    fn names_tell_how_much_a_picture_grows() {
        let twice: Vec<_> = NAMES
            .iter()
            .filter(|(name, kind)| *kind == Kind::Upscale && scale_of(name) == 2)
            .collect();
        let names: Vec<_> = twice.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["RealESRGAN_x2plus", "2xModernSpanimationV1"]);
    }
}
