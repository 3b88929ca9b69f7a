//! The networks behind the check.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use imaging::Picture;
use serde::{Deserialize, Serialize};

use super::evidence::see;
use super::lists::Lists;
use super::places::{Places, cache_file, has_length_one, places, sha256_of_file};
use super::rate::{Evidence, rate};
use super::self_test::{dot, red_circle, self_test};
use super::{Context, Level, Scores, Verdict, read, views};
use crate::clip::{Clip, ClipConfig, ClipTokenizer, ClipVision};
use crate::error::{Result, VisionError};
use crate::nsfw::{OpenNsfw, SdSafetyChecker};
use crate::weights::Weights;

/// open_nsfw's makers: below 0.2 is very likely safe, above 0.8 very likely not.
const OPEN_NSFW: [(f32, Level); 3] = [(0.8, Level::Strong), (0.5, Level::Clear), (0.2, Level::Weak)];

/// What a checker is read from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckerFiles {
    /// CLIP ViT-L/14 with both halves, as safetensors in either published layout. A `config.json` beside it tells the
    /// numbers of heads where they are unusual.
    pub clip: PathBuf,
    /// Folder where places of phrases are kept; it is made when it is needed.
    pub cache: PathBuf,
    /// Phrase lists from the calibration; default are those of this build.
    pub lists: Option<PathBuf>,
    /// Stable Diffusion's safety checker as further evidence.
    pub sd_checker: Option<PathBuf>,
    /// open_nsfw as further evidence.
    pub open_nsfw: Option<PathBuf>,
}

/// Judges finished pictures. There is no way to get a rating out of one that could not be read or does not see.
pub struct SafetyChecker {
    eyes: ClipVision,
    lists: Lists,
    places: Places,
    sd_checker: Option<SdSafetyChecker>,
    open_nsfw: Option<OpenNsfw>,
}

impl SafetyChecker {
    /// Reads CLIP ViT-L/14 and computes the places of the phrases of this build, or finds them in `cache`.
    ///
    /// # Errors
    /// As [`Self::open_files`].
    pub fn open(weights: &Path, cache: &Path, device: &Device) -> Result<Self> {
        let files = CheckerFiles {
            clip: weights.to_owned(),
            cache: cache.to_owned(),
            ..CheckerFiles::default()
        };
        Self::open_files(&files, device)
    }

    /// The same with other lists and further networks.
    ///
    /// # Errors
    /// A file is missing or broken; the weights are of another width than the lists are for; CLIP does not tell a red
    /// circle from a blue square; a network that was named cannot be read or gives no numbers.
    pub fn open_files(files: &CheckerFiles, device: &Device) -> Result<Self> {
        let lists = match &files.lists {
            Some(path) => Lists::open(path)?,
            None => Lists::builtin()?,
        };
        let clip = open_clip(&files.clip, device)?;
        let tokenizer = ClipTokenizer::openai()?;
        let texts = lists.texts();
        let (first, _) = texts
            .split_first()
            .ok_or_else(|| VisionError::Input("the phrase lists are empty".into()))?;
        let ids = tokenizer.encode(first, clip.text.context_len())?;
        let width = clip.text.embed(&[ids])?.dim(1)?;
        if width != lists.dimension {
            return Err(VisionError::Input(format!(
                "CLIP has a space of {width} dimensions, but the phrase lists are for {} with {}",
                lists.made_for, lists.dimension
            )));
        }
        self_test(&clip, &tokenizer)?;
        let sum = sha256_of_file(&files.clip)?;
        let places = places(&clip, &tokenizer, &texts, &cache_file(&files.cache, &sum, &texts))?;
        if places.iter().any(|place| place.len() != width) {
            return Err(VisionError::Input(
                "places of phrases have another width than CLIP".into(),
            ));
        }
        let sd_checker = match &files.sd_checker {
            Some(path) => Some(SdSafetyChecker::load(
                &Weights::open(path, device)?,
                &ClipConfig::default(),
            )?),
            None => None,
        };
        let open_nsfw = match &files.open_nsfw {
            Some(path) => Some(OpenNsfw::load(&Weights::open(path, device)?)?),
            None => None,
        };
        // One that gives no numbers would cost every job, and only after it was done.
        if let Some(net) = &sd_checker {
            net.check(&red_circle())?;
        }
        if let Some(net) = &open_nsfw {
            net.score(&red_circle())?;
        }
        Ok(Self {
            // The half that reads has done its part.
            eyes: clip.vision,
            lists,
            places,
            sd_checker,
            open_nsfw,
        })
    }

    /// Whether the thresholds were tuned on labelled pictures.
    pub fn is_calibrated(&self) -> bool {
        self.lists.calibrated
    }

    /// Judges a picture.
    ///
    /// # Errors
    /// A network failed or gave a number that is none. The picture must not be handed out then.
    pub fn check(&self, picture: &Picture, context: &Context<'_>) -> Result<Verdict> {
        let views = views(picture);
        let pixels = views
            .iter()
            .map(|view| self.eyes.pixels(view))
            .collect::<Result<Vec<_>>>()?;
        let seen = self.eyes.embed_pixels(&Tensor::cat(&pixels, 0)?)?; // (views, dimension)
        let seen = seen.to_vec2::<f32>()?;
        if !seen.iter().all(|place| has_length_one(place)) {
            return Err(VisionError::Misfit(
                "CLIP gave no direction for the picture: its weights are broken".into(),
            ));
        }
        let cosines: Vec<Vec<f32>> = seen
            .iter()
            .map(|view| self.places.iter().map(|place| dot(place, view)).collect())
            .collect();
        let seen = see(&self.lists, &cosines, context.style)?;

        let mut sd_checker = None;
        let mut open_nsfw: Option<f32> = None;
        for view in &views {
            if let Some(net) = &self.sd_checker {
                let flagged = net.check(view)?.flagged;
                sd_checker = Some(sd_checker.unwrap_or(false) || flagged);
            }
            if let Some(net) = &self.open_nsfw {
                let score = net.score(view)?;
                open_nsfw = Some(open_nsfw.map_or(score, |highest| highest.max(score)));
            }
        }

        let prompt = read(context.prompt, context.negative);
        let evidence = Evidence::new(&seen, networks(sd_checker, open_nsfw)?, prompt, context.nsfw_model);
        let (rating, reasons) = rate(&evidence);
        Ok(Verdict {
            rating,
            scores: Scores {
                reasons,
                groups: seen.groups,
                styles: seen.styles,
                prompt,
                sd_checker,
                open_nsfw,
                n_views: views.len(),
            },
        })
    }
}

/// Reads both halves of CLIP, with the numbers of heads from a `config.json` beside the weights.
pub(super) fn open_clip(path: &Path, device: &Device) -> Result<Clip> {
    let config = path.with_file_name("config.json");
    let config = if config.is_file() {
        let json = std::fs::read_to_string(&config).map_err(|e| VisionError::Unreadable {
            path: config.display().to_string(),
            reason: e.to_string(),
        })?;
        ClipConfig::from_json(&json)?
    } else {
        ClipConfig::default()
    };
    Clip::load(&Weights::open(path, device)?, &config)
}

fn networks(sd_checker: Option<bool>, open_nsfw: Option<f32>) -> Result<Level> {
    let flagged = if sd_checker == Some(true) {
        Level::Clear
    } else {
        Level::None
    };
    let Some(score) = open_nsfw else {
        return Ok(flagged);
    };
    if !(0.0..=1.0).contains(&score) {
        return Err(VisionError::Misfit("the nsfw network gave no probability".into()));
    }
    let reached = OPEN_NSFW.iter().find(|(from, _)| score >= *from);
    Ok(reached.map_or(Level::None, |(_, level)| *level).max(flagged))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_networks_only_add() {
        let check = |sd, open, expected| assert_eq!(networks(sd, open).unwrap(), expected, "{sd:?} {open:?}");
        check(None, None, Level::None);
        check(Some(false), Some(0.1), Level::None);
        check(Some(true), Some(0.1), Level::Clear);
        check(Some(true), Some(0.9), Level::Strong);
        check(None, Some(0.3), Level::Weak);
        assert!(networks(None, Some(f32::NAN)).is_err());
        assert!(networks(Some(true), Some(1.5)).is_err());
    }
}
