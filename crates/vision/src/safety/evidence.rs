//! From cosines to levels. Pure: knows numbers and thresholds, no network.

use std::collections::BTreeMap;

use serde::Serialize;

use super::lists::{Lists, PhraseGroup, Section};
use super::{Anchor, Group, Level, Style};
use crate::error::{Result, VisionError};

/// What CLIP says of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GroupScore {
    /// The highest cosine of its phrases over all views.
    pub cosine: f32,
    /// The highest distance of a phrase above its threshold; negative below.
    pub above: f32,
    /// What it comes to, contrasts included.
    pub level: Level,
}

/// What CLIP says of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// By group; every group is there.
    pub groups: BTreeMap<Group, GroupScore>,
    /// Declared and recognised styles that lowered thresholds.
    pub styles: Vec<Style>,
}

impl Seen {
    /// The level of a group.
    pub fn level(&self, group: Group) -> Level {
        self.groups.get(&group).map_or(Level::None, |score| score.level)
    }
}

/// Cosines of more than this are no cosines.
const MAX_COSINE: f32 = 1.01;

/// Judges the cosines of a picture's views, each in the order of [`Lists::texts`]. The best view counts for every phrase,
/// and every style that was declared or recognised may lower thresholds.
///
/// # Errors
/// No view, a view of the wrong length, a value that is no cosine.
pub fn see(lists: &Lists, views: &[Vec<f32>], declared: Style) -> Result<Seen> {
    let sections = lists.sections();
    let n_phrases = sections.last().map_or(0, |(_, range)| range.end);
    if views.is_empty() {
        return Err(VisionError::Input("there is no view to judge".into()));
    }
    if let Some(view) = views.iter().find(|view| view.len() != n_phrases) {
        return Err(VisionError::Input(format!(
            "{} similarities for {n_phrases} phrases",
            view.len()
        )));
    }
    // Written so that NaN fails.
    if !views.iter().flatten().all(|cosine| cosine.abs() <= MAX_COSINE) {
        return Err(VisionError::Misfit(
            "CLIP gave similarities that are no numbers between -1 and 1".into(),
        ));
    }
    let of = |view: &[f32], wanted: Section| -> Vec<f32> {
        sections
            .iter()
            .filter(|(section, _)| *section == wanted)
            .flat_map(|(_, range)| view[range.clone()].to_vec())
            .collect()
    };
    let best: Vec<f32> = (0..n_phrases)
        .map(|n| highest(views.iter().map(|view| view[n])))
        .collect();

    let styles: Vec<Style> = lists
        .styles
        .iter()
        .filter(|(style, list)| {
            let cosines = of(&best, Section::Style(**style));
            **style == declared
                || list
                    .phrases
                    .iter()
                    .zip(cosines)
                    .any(|(phrase, cosine)| cosine >= phrase.at)
        })
        .map(|(style, _)| *style)
        .collect();
    let ease = |group: Group| {
        styles
            .iter()
            .filter_map(|style| lists.styles.get(style)?.ease.get(&group))
            .copied()
            .fold(0.0, f32::max)
    };
    let mut groups: BTreeMap<Group, GroupScore> = lists
        .groups
        .iter()
        .map(|(group, list)| (*group, score(list, &of(&best, Section::Group(*group)), ease(*group))))
        .collect();

    let somebody = groups.get(&Group::Person).map_or(Level::None, |score| score.level);
    if somebody >= Level::Weak {
        for contrast in &lists.contrasts {
            let differences = views.iter().filter_map(|view| {
                let own = highest(of(view, Section::Group(contrast.group)));
                let other = highest(of(view, Section::Anchor(contrast.against)));
                (own >= contrast.floor).then_some(own - other)
            });
            let difference = highest(differences);
            // The strongest that a difference without a scale can be is clear.
            let level = Level::of(difference, contrast.at, contrast.margin).min(Level::Clear);
            if let Some(score) = groups.get_mut(&contrast.group) {
                score.level = score.level.max(level);
            }
        }
    }
    Ok(Seen { groups, styles })
}

/// One group's phrases, thresholds lowered by `ease`.
fn score(list: &PhraseGroup, cosines: &[f32], ease: f32) -> GroupScore {
    let mut level = Level::None;
    let mut roots: BTreeMap<&str, Level> = BTreeMap::new();
    for (phrase, cosine) in list.phrases.iter().zip(cosines) {
        let one = Level::of(*cosine, phrase.at - ease, list.margin);
        level = level.max(one);
        let root = roots.entry(phrase.root()).or_default();
        *root = one.max(*root);
    }
    for reached in [Level::Weak, Level::Clear] {
        if roots.values().filter(|one| **one >= reached).count() >= list.several {
            level = level.max(reached.raised());
        }
    }
    let above = list
        .phrases
        .iter()
        .zip(cosines)
        .map(|(p, cosine)| cosine - (p.at - ease));
    GroupScore {
        cosine: highest(cosines.iter().copied()),
        above: highest(above),
        level,
    }
}

fn highest(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The anchor that a group is compared with, for the calibration.
pub(super) fn contrast_values(lists: &Lists, view: &[f32], group: Group, against: Anchor) -> f32 {
    let of = |wanted: Section| {
        let ranges = lists
            .sections()
            .into_iter()
            .filter(move |(section, _)| *section == wanted);
        highest(ranges.flat_map(|(_, range)| view[range].to_vec()))
    };
    of(Section::Group(group)) - of(Section::Anchor(against))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::safety::lists::{Contrast, Phrase, StyleList};

    /// Two phrases of different roots per group at 0.2 ± 0.02, two needed; one anchor phrase each; one style.
    fn lists() -> Lists {
        let phrase = |text: String| Phrase {
            text,
            at: 0.2,
            root: None,
        };
        let group = |g: Group| PhraseGroup {
            margin: 0.02,
            several: 2,
            phrases: vec![phrase(format!("{} one", g.name())), phrase(format!("{} two", g.name()))],
        };
        Lists {
            made_for: "a test".into(),
            dimension: 4,
            calibrated: true,
            groups: Group::ALL.into_iter().map(|g| (g, group(g))).collect(),
            anchors: BTreeMap::from([
                (Anchor::GrownUp, vec!["grown".into()]),
                (Anchor::Dressed, vec!["dressed".into()]),
            ]),
            contrasts: vec![Contrast {
                group: Group::UnderAge,
                against: Anchor::GrownUp,
                at: 0.05,
                margin: 0.02,
                floor: 0.1,
            }],
            styles: BTreeMap::from([(
                Style::Anime,
                StyleList {
                    phrases: vec![phrase("drawn".into())],
                    ease: BTreeMap::from([(Group::Explicit, 0.03)]),
                },
            )]),
        }
    }

    /// Cosines with 0.1 everywhere but where named.
    fn view(set: &[(&str, f32)]) -> Vec<f32> {
        let lists = lists();
        let value = |text: &str| set.iter().find(|(name, _)| *name == text).map_or(0.1, |(_, v)| *v);
        lists.texts().into_iter().map(value).collect()
    }

    fn level(set: &[(&str, f32)], group: Group) -> Level {
        see(&lists(), &[view(set)], Style::General).unwrap().level(group)
    }

    #[test]
    fn one_phrase_has_the_level_of_its_cosine() {
        assert_eq!(level(&[], Group::Explicit), Level::None);
        assert_eq!(level(&[("explicit one", 0.185)], Group::Explicit), Level::Weak);
        assert_eq!(level(&[("explicit one", 0.205)], Group::Explicit), Level::Clear);
        assert_eq!(level(&[("explicit one", 0.225)], Group::Explicit), Level::Strong);
    }

    #[test]
    fn two_roots_are_worth_a_level_more_but_two_phrases_of_one_root_are_not() {
        let both = [("explicit one", 0.185), ("explicit two", 0.185)];
        assert_eq!(level(&both, Group::Explicit), Level::Clear);
        let mut one_root = lists();
        for phrase in &mut one_root.groups.get_mut(&Group::Explicit).unwrap().phrases {
            phrase.root = Some("same".into());
        }
        let seen = see(&one_root, &[view(&both)], Style::General).unwrap();
        assert_eq!(seen.level(Group::Explicit), Level::Weak);
    }

    #[test]
    fn a_style_lowers_thresholds_whether_declared_or_recognised() {
        let set = [("explicit one", 0.175)];
        let seen = |declared, set: &[(&str, f32)]| see(&lists(), &[view(set)], declared).unwrap();
        assert_eq!(seen(Style::General, &set).level(Group::Explicit), Level::None);
        assert_eq!(seen(Style::Anime, &set).level(Group::Explicit), Level::Clear);
        let drawn = [("explicit one", 0.175), ("drawn", 0.3)];
        assert_eq!(seen(Style::Realistic, &drawn).level(Group::Explicit), Level::Clear);
        assert_eq!(seen(Style::Realistic, &drawn).styles, [Style::Anime]);
    }

    #[test]
    fn a_contrast_counts_only_where_somebody_is_and_never_takes_away() {
        let young = [("under_age one", 0.17), ("grown", 0.1), ("person one", 0.25)];
        assert_eq!(level(&young, Group::UnderAge), Level::Clear);
        assert_eq!(level(&young[..2], Group::UnderAge), Level::None);
        let old = [("under_age one", 0.21), ("grown", 0.9), ("person one", 0.25)];
        assert_eq!(level(&old, Group::UnderAge), Level::Clear);
        let noise = [
            ("under_age one", 0.09),
            ("under_age two", 0.09),
            ("grown", -0.5),
            ("person one", 0.25),
        ];
        assert_eq!(level(&noise, Group::UnderAge), Level::None);
    }

    #[test]
    fn the_best_view_counts() {
        let views = [view(&[]), view(&[("danger two", 0.3)]), view(&[])];
        let seen = see(&lists(), &views, Style::General).unwrap();
        assert_eq!(seen.level(Group::Danger), Level::Strong);
        assert!((seen.groups[&Group::Danger].above - 0.1).abs() < 1e-6);
    }

    #[test]
    fn what_is_no_similarity_is_an_error() {
        for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1.5, -2.0] {
            for name in ["person one", "dressed", "drawn"] {
                assert!(see(&lists(), &[view(&[]), view(&[(name, broken)])], Style::General).is_err());
            }
        }
        assert!(see(&lists(), &[], Style::General).is_err());
        assert!(see(&lists(), &[vec![0.1; 3]], Style::General).is_err());
    }

    proptest! {
        #[test]
        fn more_similarity_and_more_views_never_lower_a_level(
            before in proptest::collection::vec(0.1f32..0.3, 13),
            more in proptest::collection::vec(0.0f32..0.1, 13),
            anchors in proptest::collection::vec(0.1f32..0.3, 2),
        ) {
            let lists = lists();
            let anchored = |values: &[f32]| -> Vec<f32> {
                let mut values = values.to_vec();
                values[10..12].copy_from_slice(&anchors);
                values
            };
            let raised: Vec<f32> = before.iter().zip(&more).map(|(a, b)| a + b).collect();
            let (low, high) = (anchored(&before), anchored(&raised));
            let first = see(&lists, std::slice::from_ref(&low), Style::General).unwrap();
            let second = see(&lists, std::slice::from_ref(&high), Style::General).unwrap();
            let both = see(&lists, &[low, high], Style::Anime).unwrap();
            for group in Group::ALL {
                prop_assert!(first.level(group) <= second.level(group));
                prop_assert!(second.level(group) <= both.level(group));
            }
        }
    }
}
