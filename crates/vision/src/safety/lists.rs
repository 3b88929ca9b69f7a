//! The phrases that a picture is compared with, and their thresholds: parsed once, checked once, written by the calibration.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Style;
use crate::error::{Result, VisionError};

/// Phrases of one meaning, judged by thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Somebody is there.
    Person,
    /// Nudity or sexual acts.
    Explicit,
    /// Underwear, poses: not safe for work only together with other evidence.
    Suggestive,
    /// Somebody looks under age.
    UnderAge,
    /// Both at once in one phrase.
    Danger,
}

impl Group {
    /// All groups in the order of their phrases.
    pub const ALL: [Self; 5] = [
        Self::Person,
        Self::Explicit,
        Self::Suggestive,
        Self::UnderAge,
        Self::Danger,
    ];

    /// As it is written in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Explicit => "explicit",
            Self::Suggestive => "suggestive",
            Self::UnderAge => "under_age",
            Self::Danger => "danger",
        }
    }

    /// The group of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|group| group.name() == name)
    }
}

/// Phrases of the opposite meaning. They can only add evidence, by being far below a group; never take it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anchor {
    /// Grown-up people.
    GrownUp,
    /// Dressed people.
    Dressed,
}

/// One phrase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phrase {
    /// As CLIP reads it.
    pub text: String,
    /// Cosine from which it counts, in -1..=1.
    pub at: f32,
    /// Phrases of the same root count once where several are needed; default the phrase itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

impl Phrase {
    /// What the phrase counts as where several are needed.
    pub fn root(&self) -> &str {
        self.root.as_deref().unwrap_or(&self.text)
    }
}

/// Phrases that are judged together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhraseGroup {
    /// Evidence is weak down to `at - margin` and strong from `at + margin`; 0..=0.5.
    pub margin: f32,
    /// So many different roots at one level are worth one level more; at least 2.
    pub several: usize,
    /// At least one.
    pub phrases: Vec<Phrase>,
}

/// A group's best phrase against the best of an anchor: evidence without an absolute scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// The group that gains.
    pub group: Group,
    /// What it is compared with.
    pub against: Anchor,
    /// Difference of cosines from which it is clear evidence, in -2..=2.
    pub at: f32,
    /// It is weak evidence down to `at - margin`; 0..=0.5.
    pub margin: f32,
    /// The group's best cosine must reach this, in -1..=1, or the difference is noise.
    pub floor: f32,
}

/// How a style is told, and what it changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StyleList {
    /// Phrases that tell the style.
    pub phrases: Vec<Phrase>,
    /// So much lower are the thresholds of a group, 0..=0.5. There is no way to make them higher.
    pub ease: BTreeMap<Group, f32>,
}

/// Phrase lists with thresholds for one CLIP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lists {
    /// The CLIP that the thresholds are for, in words.
    pub made_for: String,
    /// Width of its common space; other weights are refused.
    pub dimension: usize,
    /// Whether the thresholds were tuned on labelled pictures.
    pub calibrated: bool,
    /// Every group must be there.
    pub groups: BTreeMap<Group, PhraseGroup>,
    /// Every anchor must be there.
    pub anchors: BTreeMap<Anchor, Vec<String>>,
    /// May be empty.
    pub contrasts: Vec<Contrast>,
    /// May be empty.
    pub styles: BTreeMap<Style, StyleList>,
}

/// What a range of [`Lists::texts`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    Group(Group),
    Anchor(Anchor),
    Style(Style),
}

/// Most phrases that are believed.
const MAX_PHRASES: usize = 4096;
/// Largest file that is believed.
const MAX_BYTES: u64 = 4 << 20;

impl Lists {
    /// The lists of this build, for OpenAI's ViT-L/14.
    pub fn builtin() -> Result<Self> {
        Self::from_json(include_str!("phrases.json"))
    }

    /// Reads a file.
    pub fn open(path: &Path) -> Result<Self> {
        let broken = |reason: String| VisionError::Side {
            what: format!("phrase lists `{}`", path.display()),
            reason,
        };
        let n_bytes = std::fs::metadata(path).map_err(|e| broken(e.to_string()))?.len();
        if n_bytes > MAX_BYTES {
            return Err(broken(format!("it has {n_bytes} bytes, at most {MAX_BYTES} are read")));
        }
        let json = std::fs::read_to_string(path).map_err(|e| broken(e.to_string()))?;
        Self::parse(&json).map_err(broken)
    }

    /// Parses and checks.
    pub fn from_json(json: &str) -> Result<Self> {
        Self::parse(json).map_err(|reason| VisionError::Side {
            what: "phrase lists".into(),
            reason,
        })
    }

    /// As [`Self::from_json`] reads it.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self).map_err(|e| VisionError::Side {
            what: "phrase lists".into(),
            reason: e.to_string(),
        })
    }

    fn parse(json: &str) -> std::result::Result<Self, String> {
        let lists: Self = serde_json::from_str(json).map_err(|e| e.to_string())?;
        lists.check()?;
        Ok(lists)
    }

    /// What a hand-written file may get wrong. Every number is compared so that NaN fails.
    fn check(&self) -> std::result::Result<(), String> {
        let within = |value: f32, low: f32, high: f32, what: &str| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!("{what} is {value}, but must be in {low}..={high}"))
            }
        };
        if self.dimension == 0 {
            return Err("`dimension` is 0".into());
        }
        for group in Group::ALL {
            let name = group.name();
            let list = self
                .groups
                .get(&group)
                .ok_or_else(|| format!("group `{name}` is missing"))?;
            within(list.margin, 0.0, 0.5, &format!("margin of `{name}`"))?;
            if list.several < 2 {
                return Err(format!("`several` of `{name}` must be at least 2"));
            }
            if list.phrases.is_empty() {
                return Err(format!("group `{name}` has no phrase"));
            }
        }
        for anchor in [Anchor::GrownUp, Anchor::Dressed] {
            if self.anchors.get(&anchor).is_none_or(Vec::is_empty) {
                return Err(format!("anchor `{anchor:?}` has no phrase"));
            }
        }
        let phrases = self.groups.values().flat_map(|g| &g.phrases);
        for phrase in phrases.chain(self.styles.values().flat_map(|s| &s.phrases)) {
            within(phrase.at, -1.0, 1.0, &format!("threshold of `{}`", phrase.text))?;
        }
        for contrast in &self.contrasts {
            within(contrast.at, -2.0, 2.0, "`at` of a contrast")?;
            within(contrast.margin, 0.0, 0.5, "`margin` of a contrast")?;
            within(contrast.floor, -1.0, 1.0, "`floor` of a contrast")?;
        }
        for ease in self.styles.values().flat_map(|s| s.ease.values()) {
            within(*ease, 0.0, 0.5, "`ease` of a style")?;
        }
        let texts = self.texts();
        if texts.len() > MAX_PHRASES {
            return Err(format!("{} phrases, at most {MAX_PHRASES} are read", texts.len()));
        }
        if texts.iter().any(|text| text.trim().is_empty()) {
            return Err("a phrase is empty".into());
        }
        Ok(())
    }

    /// All phrases in the order in which cosines are given to [`super::see`].
    pub fn texts(&self) -> Vec<&str> {
        let groups = self.groups.values().flat_map(|g| &g.phrases).map(|p| p.text.as_str());
        let anchors = self.anchors.values().flatten().map(String::as_str);
        let styles = self.styles.values().flat_map(|s| &s.phrases).map(|p| p.text.as_str());
        groups.chain(anchors).chain(styles).collect()
    }

    /// Which range of [`Self::texts`] is what.
    pub(super) fn sections(&self) -> Vec<(Section, Range<usize>)> {
        let groups = self.groups.iter().map(|(g, l)| (Section::Group(*g), l.phrases.len()));
        let anchors = self.anchors.iter().map(|(a, l)| (Section::Anchor(*a), l.len()));
        let styles = self.styles.iter().map(|(s, l)| (Section::Style(*s), l.phrases.len()));
        let mut begin = 0;
        groups
            .chain(anchors)
            .chain(styles)
            .map(|(section, len)| {
                let range = begin..begin + len;
                begin = range.end;
                (section, range)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_of_this_build_are_whole_and_say_that_they_are_untuned() {
        let lists = Lists::builtin().unwrap();
        assert_eq!(lists.dimension, 768);
        assert!(!lists.calibrated);
        let texts = lists.texts();
        assert_eq!(lists.sections().last().map(|(_, range)| range.end), Some(texts.len()));
        let mut once: Vec<&str> = texts.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), texts.len(), "a phrase stands there twice");
        assert_eq!(Lists::from_json(&lists.to_json().unwrap()).unwrap(), lists);
    }

    #[test]
    fn a_file_with_a_hole_or_an_impossible_number_is_refused() {
        let check = |change: &dyn Fn(&mut Lists), expected: &str| {
            let mut lists = Lists::builtin().unwrap();
            change(&mut lists);
            let reason = lists.check().unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        };
        check(&|l| drop(l.groups.remove(&Group::Danger)), "`danger` is missing");
        check(&|l| l.dimension = 0, "`dimension` is 0");
        check(&|l| l.anchors.clear(), "has no phrase");
        check(&|l| l.contrasts[0].at = f32::NAN, "NaN");
        let person = |l: &mut Lists, change: &dyn Fn(&mut PhraseGroup)| {
            change(l.groups.get_mut(&Group::Person).unwrap());
        };
        check(&|l| person(l, &|g| g.phrases.clear()), "has no phrase");
        check(&|l| person(l, &|g| g.margin = -0.1), "margin of `person`");
        check(&|l| person(l, &|g| g.several = 1), "at least 2");
        check(&|l| person(l, &|g| g.phrases[0].at = f32::INFINITY), "threshold of");
        check(&|l| person(l, &|g| g.phrases[0].text = " ".into()), "is empty");
        let raise = |l: &mut Lists| *l.styles.values_mut().find_map(|s| s.ease.values_mut().next()).unwrap() = -0.01;
        check(&raise, "`ease` of a style");
        assert!(Lists::from_json("{}").is_err());
        assert!(Lists::open(Path::new("/nowhere/lists.json")).is_err());
    }
}
