//! Whether a generated picture may be handed out: CLIP's view of it against phrase lists of our own, together with what the
//! prompt says. Every kind of evidence can raise the rating and none can lower it; whatever goes wrong is an error, so the
//! caller fails closed.
//!
//! The way of a check: [`SafetyChecker`] cuts the picture into views and asks CLIP; [`see`] turns cosines into [`Level`]s by
//! the thresholds of [`Lists`]; [`read`] does the same with the words of the prompt; [`rate`] puts both together. All but
//! the first are pure functions over numbers and words. `docs/SAFETY.md` says what is proven and what is not.

mod ages;
pub mod calibrate;
mod checker;
mod emphasis;
mod evidence;
mod finder;
mod fold;
mod font;
mod lists;
mod places;
mod prompt;
mod rate;
mod replacement;
mod self_test;
mod spelling;
mod views;
mod words;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use checker::{CheckerFiles, SafetyChecker};
pub use evidence::{GroupScore, Seen, see};
pub use lists::{Anchor, Contrast, Group, Lists, Phrase, PhraseGroup, StyleList};
pub use prompt::{Read, mentions, read};
pub use rate::{Evidence, Reason, rate};
pub use replacement::{Notice, replacement};
pub use views::views;

/// What a picture may be used for. A later one is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rating {
    /// For everybody.
    Ok,
    /// Not safe for work.
    Nsfw,
    /// Sexual, and somebody in it looks or is said to be under age: must never be handed out.
    Csam,
}

/// How clear evidence is. A later one is clearer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There is none.
    #[default]
    None,
    /// Below the threshold by less than its margin: counts only together with other evidence.
    Weak,
    /// At or above the threshold.
    Clear,
    /// Above the threshold by at least its margin.
    Strong,
}

impl Level {
    /// All levels, weakest first.
    pub const ALL: [Self; 4] = [Self::None, Self::Weak, Self::Clear, Self::Strong];

    /// The level above; `None` stays, because there is nothing to strengthen.
    pub fn raised(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::Weak => Self::Clear,
            Self::Clear | Self::Strong => Self::Strong,
        }
    }

    /// The level below.
    pub fn lowered(self) -> Self {
        match self {
            Self::None | Self::Weak => Self::None,
            Self::Clear => Self::Weak,
            Self::Strong => Self::Clear,
        }
    }

    /// The level of a value against a threshold with a margin on both sides.
    pub(crate) fn of(value: f32, at: f32, margin: f32) -> Self {
        if value >= at + margin {
            Self::Strong
        } else if value >= at {
            Self::Clear
        } else if value >= at - margin {
            Self::Weak
        } else {
            Self::None
        }
    }
}

/// What a model draws. Drawn pictures need other thresholds than photographs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Style {
    /// Anything, or not known.
    #[default]
    General,
    /// Photographs and what looks like them.
    Realistic,
    /// Anime, manga, cartoons.
    Anime,
    /// Human-like animals.
    Furry,
}

impl Style {
    /// From the `style` of the Horde's model reference; what is not known is [`Self::General`].
    pub fn from_reference(style: &str) -> Self {
        match style.trim().to_ascii_lowercase().as_str() {
            "realistic" | "photorealistic" => Self::Realistic,
            "anime" | "cartoon" | "manga" => Self::Anime,
            "furry" => Self::Furry,
            _ => Self::General,
        }
    }
}

/// What is known of a picture besides its pixels. `Debug` shows no word of either prompt.
#[derive(Clone, Copy, Default)]
pub struct Context<'a> {
    /// The prompt; what follows `###` counts as negative.
    pub prompt: &'a str,
    /// The negative prompt, where it is kept apart.
    pub negative: &'a str,
    /// The model is made for pictures that are not safe for work.
    pub nsfw_model: bool,
    /// What the model draws.
    pub style: Style,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("prompt", &"****")
            .field("negative", &"****")
            .field("nsfw_model", &self.nsfw_model)
            .field("style", &self.style)
            .finish()
    }
}

/// The rating with the numbers behind it. Holds no word of the prompt and nothing of the picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// What the picture may be used for.
    pub rating: Rating,
    /// Why.
    pub scores: Scores,
}

/// Numbers behind a [`Verdict`]. As levels of the prompt tell something of it, they do not belong beside a user or a job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Every rule that applied, the decisive one among them.
    pub reasons: Vec<Reason>,
    /// What CLIP sees, by group.
    pub groups: BTreeMap<Group, GroupScore>,
    /// Styles whose thresholds were used besides the plain ones.
    pub styles: Vec<Style>,
    /// How clearly the words of the prompt speak.
    pub prompt: Read,
    /// The twenty concepts of Stable Diffusion's checker, where it is installed.
    pub sd_checker: Option<bool>,
    /// open_nsfw's probability in 0..=1, where it is installed.
    pub open_nsfw: Option<f32>,
    /// Views of the picture that were looked at.
    pub n_views: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_word_of_a_prompt() {
        let context = Context {
            prompt: "mango",
            negative: "papaya",
            ..Context::default()
        };
        let shown = format!("{context:?}");
        assert!(!shown.contains("mango") && !shown.contains("papaya"), "{shown}");
    }

    #[test]
    fn levels_lie_around_the_threshold() {
        let levels = [0.17, 0.185, 0.2, 0.25].map(|value| Level::of(value, 0.2, 0.02));
        assert_eq!(levels, Level::ALL);
        assert_eq!(Level::None.raised(), Level::None);
        assert_eq!(Level::Strong.raised(), Level::Strong);
        assert_eq!(Level::Clear.lowered(), Level::Weak);
    }

    #[test]
    fn an_unknown_style_is_general() {
        assert_eq!(Style::from_reference("Anime"), Style::Anime);
        assert_eq!(Style::from_reference("artistic"), Style::General);
        assert_eq!(Style::from_reference(""), Style::General);
    }
}
