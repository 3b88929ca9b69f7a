//! Thresholds for a wanted rate, group by group.

use std::collections::BTreeMap;

use serde::Serialize;

use super::measure::{Point, above_nth, auc, descending, point, threshold_at_fpr};
use super::set::LabelledSet;
use crate::error::{Result, VisionError};
use crate::safety::evidence::contrast_values;
use crate::safety::lists::Section;
use crate::safety::self_test::dot;
use crate::safety::{Group, Lists};

/// What the thresholds shall reach.
#[derive(Clone, Debug, PartialEq)]
pub struct Want {
    /// Highest share of wrong pictures that a group's phrases find together, above 0 and below 1.
    pub fpr: f64,
    /// For these groups the lowest share of right ones instead, above 0 and at most 1: rather too much than too little.
    pub recall: BTreeMap<Group, f64>,
}

/// A phrase on its own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhraseReport {
    /// The phrase, or the two ends of a contrast.
    pub text: String,
    /// Area under its curve, where there are examples of both kinds.
    pub auc: Option<f64>,
    /// With the threshold it has.
    pub now: Point,
    /// With the proposed one, where there is one.
    pub proposed: Option<Point>,
}

/// A group: found when one of its phrases reaches its threshold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupReport {
    /// Which.
    pub group: Group,
    /// Labelled pictures that show it.
    pub n_positive: usize,
    /// Labelled pictures that do not.
    pub n_negative: usize,
    /// Area under the curve of the highest distance above the thresholds.
    pub auc: Option<f64>,
    /// With the thresholds it has (`at` is 0: distances are compared).
    pub now: Point,
    /// With the proposed ones, where there are any.
    pub proposed: Option<Point>,
    /// Points of the curve at false-positive rates of 0.1 % to 20 %, as shifts of all thresholds together.
    pub curve: Vec<Point>,
    /// Its phrases, then its contrasts.
    pub phrases: Vec<PhraseReport>,
}

/// All groups.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Labelled pictures.
    pub n_pictures: usize,
    /// One entry each.
    pub groups: Vec<GroupReport>,
    /// Why the proposed thresholds do not count as calibrated; empty when they do.
    pub doubts: Vec<String>,
}

/// Fewer examples of either kind than this say nothing about rates of a few percent.
const MIN_EXAMPLES: usize = 200;
/// Groups that no verdict can do without. `danger` has no examples and can have none.
const NEEDED: [Group; 3] = [Group::Person, Group::Explicit, Group::UnderAge];
const CURVE: [f64; 6] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.2];

/// Measures the lists on a set, without a change.
pub fn report(lists: &Lists, places: &[Vec<f32>], set: &LabelledSet, want: &Want) -> Result<Report> {
    Ok(tune(lists, places, set, want)?.1)
}

/// The lists with the proposed thresholds, and the report. `places` are those of [`Lists::texts`]. Margins and styles stay.
pub fn tune(lists: &Lists, places: &[Vec<f32>], set: &LabelledSet, want: &Want) -> Result<(Lists, Report)> {
    check(lists, places, set, want)?;
    let cosines: Vec<Vec<f32>> = set
        .rows()
        .iter()
        .map(|row| places.iter().map(|place| dot(place, row)).collect())
        .collect();
    let mut tuned = lists.clone();
    let mut doubts = Vec::new();
    let mut groups = Vec::new();
    for (section, range) in lists.sections() {
        let Section::Group(group) = section else {
            continue;
        };
        let split = |wanted: bool| -> Vec<&Vec<f32>> {
            let labelled = cosines.iter().zip(set.labels(group));
            labelled
                .filter(|(_, label)| *label == Some(wanted))
                .map(|(view, _)| view)
                .collect()
        };
        let examples = Examples {
            positive: split(true),
            negative: split(false),
        };
        let now: Vec<f32> = lists.groups[&group].phrases.iter().map(|phrase| phrase.at).collect();
        let proposed = examples.propose(&range, want, group);
        if let Some(proposed) = &proposed {
            let phrases = tuned.groups.get_mut(&group).map(|list| &mut list.phrases);
            for (phrase, at) in phrases.into_iter().flatten().zip(proposed) {
                phrase.at = *at;
            }
        }
        let mut phrases: Vec<PhraseReport> = lists.groups[&group]
            .phrases
            .iter()
            .enumerate()
            .map(|(n, phrase)| {
                let of = |views: &[&Vec<f32>]| -> Vec<f32> { views.iter().map(|view| view[range.start + n]).collect() };
                let (positive, negative) = (of(&examples.positive), of(&examples.negative));
                PhraseReport {
                    text: phrase.text.clone(),
                    auc: auc(&positive, &negative),
                    now: point(&positive, &negative, phrase.at),
                    proposed: proposed.as_ref().map(|at| point(&positive, &negative, at[n])),
                }
            })
            .collect();
        for (contrast, tuned) in lists.contrasts.iter().zip(&mut tuned.contrasts) {
            if contrast.group != group {
                continue;
            }
            let of = |views: &[&Vec<f32>]| -> Vec<f32> {
                let value = |view: &&Vec<f32>| {
                    let own = view[range.clone()].iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    if own >= contrast.floor {
                        contrast_values(lists, view, group, contrast.against)
                    } else {
                        // Below the floor it never counts; no difference of cosines is as low as this.
                        -2.0
                    }
                };
                views.iter().map(value).collect()
            };
            let (positive, negative) = (of(&examples.positive), of(&examples.negative));
            let at = threshold_at_fpr(&negative, want.fpr).map(|at| at.clamp(-2.0, 2.0));
            if let Some(at) = at {
                tuned.at = at;
            }
            phrases.push(PhraseReport {
                text: format!("{} against {:?}", group.name(), contrast.against),
                auc: auc(&positive, &negative),
                now: point(&positive, &negative, contrast.at),
                proposed: at.map(|at| point(&positive, &negative, at)),
            });
        }
        let (n_positive, n_negative) = (examples.positive.len(), examples.negative.len());
        if NEEDED.contains(&group) && n_positive.min(n_negative) < MIN_EXAMPLES {
            doubts.push(format!(
                "`{}` has {n_positive} positive and {n_negative} negative examples; {MIN_EXAMPLES} of each are needed",
                group.name()
            ));
        }
        let (positive, negative) = examples.distances(&range, &now);
        groups.push(GroupReport {
            group,
            n_positive,
            n_negative,
            auc: auc(&positive, &negative),
            now: point(&positive, &negative, 0.0),
            proposed: proposed.as_ref().map(|at| {
                let (positive, negative) = examples.distances(&range, at);
                point(&positive, &negative, 0.0)
            }),
            curve: CURVE
                .iter()
                .filter_map(|fpr| Some(point(&positive, &negative, threshold_at_fpr(&negative, *fpr)?)))
                .collect(),
            phrases,
        });
    }
    for group in &groups {
        let wanted = want.recall.get(&group.group);
        if let (Some(wanted), Some(reached)) = (wanted, group.proposed.filter(|_| group.n_positive > 0))
            && reached.recall < *wanted
        {
            doubts.push(format!(
                "`{}` reaches a recall of {:.3}, not {wanted:.3}",
                group.group.name(),
                reached.recall
            ));
        }
    }
    tuned.calibrated = doubts.is_empty();
    let report = Report {
        n_pictures: set.len(),
        groups,
        doubts,
    };
    Ok((tuned, report))
}

/// Cosines of the examples of one group.
struct Examples<'a> {
    positive: Vec<&'a Vec<f32>>,
    negative: Vec<&'a Vec<f32>>,
}

impl Examples<'_> {
    /// Highest distance above the thresholds, for both kinds.
    fn distances(&self, range: &std::ops::Range<usize>, at: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let of = |views: &[&Vec<f32>]| -> Vec<f32> {
            let distance = |view: &&Vec<f32>| {
                let above = view[range.clone()].iter().zip(at).map(|(cosine, at)| cosine - at);
                above.fold(f32::NEG_INFINITY, f32::max)
            };
            views.iter().map(distance).collect()
        };
        (of(&self.positive), of(&self.negative))
    }

    /// Thresholds that let equally many negatives through at every phrase: as many as the wish for the whole group allows,
    /// or as few as its recall needs. `None` without negatives.
    fn propose(&self, range: &std::ops::Range<usize>, want: &Want, group: Group) -> Option<Vec<f32>> {
        let sorted: Vec<Vec<f32>> = range
            .clone()
            .map(|n| descending(&self.negative.iter().map(|view| view[n]).collect::<Vec<_>>()))
            .collect();
        let thresholds = |n: usize| -> Option<Vec<f32>> {
            let at = sorted
                .iter()
                .map(|values| above_nth(values, n).map(|at| at.clamp(-1.0, 1.0)));
            at.collect()
        };
        let measured = |n: usize| {
            thresholds(n).map(|at| {
                let (positive, negative) = self.distances(range, &at);
                point(&positive, &negative, 0.0)
            })
        };
        thresholds(0)?;
        // Both rates only grow with `n`.
        let first = |is_reached: &dyn Fn(Point) -> bool| -> usize {
            let (mut low, mut high) = (0, self.negative.len());
            while low < high {
                let middle = low.midpoint(high);
                if measured(middle).is_some_and(is_reached) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
            low
        };
        match want.recall.get(&group).filter(|_| !self.positive.is_empty()) {
            Some(recall) => thresholds(first(&|point: Point| point.recall >= *recall)),
            None => thresholds(first(&|point: Point| point.fpr > want.fpr).saturating_sub(1)),
        }
    }
}

fn check(lists: &Lists, places: &[Vec<f32>], set: &LabelledSet, want: &Want) -> Result<()> {
    let wrong = |what: String| Err(VisionError::Input(what));
    if set.is_empty() {
        return wrong("the labelled set is empty".into());
    }
    if set.dimension() != lists.dimension {
        return wrong(format!(
            "the set has vectors of {} dimensions, the phrase lists are for {}",
            set.dimension(),
            lists.dimension
        ));
    }
    if places.len() != lists.texts().len() || places.iter().any(|place| place.len() != lists.dimension) {
        return wrong("the places of the phrases do not fit the lists".into());
    }
    if !(want.fpr > 0.0 && want.fpr < 1.0) {
        return wrong(format!("a false-positive rate of {} is not between 0 and 1", want.fpr));
    }
    if let Some(recall) = want.recall.values().find(|recall| !(**recall > 0.0 && **recall <= 1.0)) {
        return wrong(format!("a recall of {recall} is not above 0 and at most 1"));
    }
    Ok(())
}
