//! Thresholds for a wanted rate, group by group.

use std::collections::BTreeMap;

use serde::Serialize;

use super::measure::{Point, above_nth, auc, descending, point, threshold_at_fpr, wilson_95};
use super::set::LabelledSet;
use super::verdicts::{VerdictReport, verdicts};
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
    /// With the proposed ones, where there are any, on the very pictures they were made from: too good.
    pub proposed: Option<Point>,
    /// What thresholds proposed in the same way do to pictures they were not made from: each fifth with those from the rest.
    pub unseen: Option<Point>,
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
    /// What the whole check makes of pictures of each label, with the thresholds it has.
    pub verdicts_now: Vec<VerdictReport>,
    /// The same with the proposed ones.
    pub verdicts_proposed: Vec<VerdictReport>,
    /// Why the proposed thresholds do not count as calibrated; empty when they do.
    pub doubts: Vec<String>,
}

/// Fewer examples of either kind than this say nothing about rates of a few percent.
const MIN_EXAMPLES: usize = 200;
/// Groups that no verdict can do without. `danger` has no examples and can have none.
const NEEDED: [Group; 3] = [Group::Person, Group::Explicit, Group::UnderAge];
/// A recall that is sure only to so much less than was wanted is too uncertain.
const MOST_BELOW: f64 = 0.02;
/// With more false alarms than this a group's phrases hardly tell anything apart.
const MOST_FALSE: f64 = 0.1;
/// A needed group that finds less than this is as good as blind.
const LEAST_RECALL: f64 = 0.8;
/// Parts of a set that take turns in being measured with thresholds from the others.
const N_FOLDS: usize = 5;
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
            unseen: examples.unseen(&range, want, group),
            curve: CURVE
                .iter()
                .filter_map(|fpr| Some(point(&positive, &negative, threshold_at_fpr(&negative, *fpr)?)))
                .collect(),
            phrases,
        });
    }
    doubts.extend(groups.iter().filter_map(|group| doubt_of(group, want)));
    match set.n_repeated() {
        0 => {}
        n => doubts.push(format!(
            "{n} vectors stand there more than once, which makes all rates look surer than they are"
        )),
    }
    if set.is_made_up {
        doubts.push("the vectors are made up and say nothing about pictures".into());
    }
    let of = |lists: &Lists| verdicts(lists, &cosines, set);
    let (verdicts_now, verdicts_proposed) = (of(lists)?, of(&tuned)?);
    let n_false: usize = verdicts_proposed.iter().map(|verdict| verdict.n_csam).sum();
    let sure = wilson_95(n_false, set.len())[0];
    if sure > want.fpr {
        doubts.push(format!(
            "{n_false} of {} pictures would count as `csam`, which none of them is: more than {:.3} wanted",
            set.len(),
            want.fpr
        ));
    }
    tuned.calibrated = doubts.is_empty();
    let report = Report {
        n_pictures: set.len(),
        groups,
        verdicts_now,
        verdicts_proposed,
        doubts,
    };
    Ok((tuned, report))
}

/// Why the rates of a group on unseen pictures do not suffice.
fn doubt_of(group: &GroupReport, want: &Want) -> Option<String> {
    let reached = group.unseen.filter(|_| group.n_positive > 0)?;
    let (name, recall, sure) = (group.group.name(), reached.recall, reached.recall_95[0]);
    match want.recall.get(&group.group) {
        Some(wanted) if sure < wanted - MOST_BELOW => Some(format!(
            "`{name}` reaches a recall of {recall:.3} on unseen pictures, which is sure only to {sure:.3}; {wanted:.3} was wanted"
        )),
        Some(_) if reached.fpr > MOST_FALSE => Some(format!(
            "`{name}` reaches its recall only by a false-positive rate of {:.3} on unseen pictures: its phrases do not tell this set apart",
            reached.fpr
        )),
        None if NEEDED.contains(&group.group) && recall < LEAST_RECALL => Some(format!(
            "`{name}` finds only {recall:.3} of unseen pictures at this false-positive rate; a higher `--fpr` or `--recall {name}=0.9` finds more"
        )),
        _ => None,
    }
}

/// Cosines of the examples of one group.
struct Examples<'a> {
    positive: Vec<&'a Vec<f32>>,
    negative: Vec<&'a Vec<f32>>,
}

impl<'a> Examples<'a> {
    /// Thresholds from four fifths of each kind, measured on the last, for every fifth in turn. Neighbours, which are often
    /// alike, come into different fifths, so that this too is rather too good. `None` where a fifth gives no thresholds.
    fn unseen(&self, range: &std::ops::Range<usize>, want: &Want, group: Group) -> Option<Point> {
        let part = |all: &[&'a Vec<f32>], fold: usize, is_measured: bool| -> Vec<&'a Vec<f32>> {
            let chosen = all
                .iter()
                .enumerate()
                .filter(|(n, _)| (n % N_FOLDS == fold) == is_measured);
            chosen.map(|(_, view)| *view).collect()
        };
        let mut counts = [0; 2];
        for fold in 0..N_FOLDS {
            let of = |is_measured: bool| Examples {
                positive: part(&self.positive, fold, is_measured),
                negative: part(&self.negative, fold, is_measured),
            };
            let at = of(false).propose(range, want, group)?;
            let (positive, negative) = of(true).distances(range, &at);
            for (count, distances) in counts.iter_mut().zip([positive, negative]) {
                *count += distances.iter().filter(|distance| **distance >= 0.0).count();
            }
        }
        let [hits, false_hits] = counts;
        Some(Point::of_counts(
            0.0,
            hits,
            self.positive.len(),
            false_hits,
            self.negative.len(),
        ))
    }

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
            Some(recall) => {
                let at = thresholds(first(&|point: Point| point.recall >= *recall))?;
                // Just above what is wrong it would be where weak evidence begins: where there is a gap, its middle is better.
                let found = descending(&self.distances(range, &at).0);
                let n_wanted = ((*recall * found.len() as f64).ceil() as usize).clamp(1, found.len());
                let gap = found[n_wanted - 1].max(0.0);
                Some(at.into_iter().map(|at| (at + gap / 2.0).min(1.0)).collect())
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safety::calibrate::set::labels_of;
    use crate::safety::{Anchor, Phrase, PhraseGroup};

    /// One phrase for each group and anchor, each on an axis of its own, and an axis for the rest.
    fn lists() -> Lists {
        let group = |group: Group| PhraseGroup {
            margin: 0.01,
            several: 2,
            phrases: vec![Phrase {
                text: group.name().into(),
                at: 0.9,
                root: None,
            }],
        };
        Lists {
            made_for: "a test".into(),
            dimension: 8,
            calibrated: false,
            groups: Group::ALL.into_iter().map(|one| (one, group(one))).collect(),
            anchors: [(Anchor::GrownUp, "grown"), (Anchor::Dressed, "dressed")]
                .map(|(anchor, text)| (anchor, vec![text.to_owned()]))
                .into(),
            contrasts: Vec::new(),
            styles: BTreeMap::new(),
        }
    }

    /// A picture of a label: near 0.5 to its groups and 0.1 to the others, but for what is set otherwise.
    fn add(set: &mut LabelledSet, label: &str, n: usize, otherwise: &[(Group, f32)]) {
        let labels = labels_of(label).unwrap();
        for at in 0..n {
            let mut row: Vec<f32> = Group::ALL
                .iter()
                .map(|group| {
                    let own = if labels[group] == Some(true) { 0.5 } else { 0.1 };
                    let set = otherwise.iter().find(|(other, _)| other == group);
                    set.map_or(own, |(_, cosine)| *cosine) + (at * 37 % 101) as f32 / 2000.0 + at as f32 / 1e6
                })
                .collect();
            row.extend([0.0, 0.0]);
            let rest = 1.0 - row.iter().map(|value| value * value).sum::<f32>();
            row.push(rest.sqrt());
            set.push(row, labels.clone()).unwrap();
        }
    }

    /// How many pictures of people in general, explicit ones and children there are, and what is added.
    fn doubts(counts: [usize; 3], recalls: &[Group], more: &dyn Fn(&mut LabelledSet)) -> Vec<String> {
        let mut set = LabelledSet::new("abc");
        add(&mut set, "none", 300, &[]);
        for (label, n) in ["person", "person+explicit", "person+under_age"]
            .into_iter()
            .zip(counts)
        {
            add(&mut set, label, n, &[]);
        }
        more(&mut set);
        let places: Vec<Vec<f32>> = (0..7)
            .map(|axis| (0..8).map(|n| f32::from(u8::from(n == axis))).collect())
            .collect();
        let want = Want {
            fpr: 0.01,
            recall: recalls.iter().map(|group| (*group, 0.99)).collect(),
        };
        let (tuned, report) = tune(&lists(), &places, &set, &want).unwrap();
        assert_eq!(tuned.calibrated, report.doubts.is_empty());
        report.doubts
    }

    #[test]
    fn a_set_that_suffices_leaves_no_doubt_and_each_lack_one() {
        const RECALLS: [Group; 2] = [Group::UnderAge, Group::Explicit];
        assert_eq!(doubts([300; 3], &RECALLS, &|_| {}), Vec::<String>::new());
        let check_with = |recalls: &[Group], counts, more: &dyn Fn(&mut LabelledSet), expected: &str| {
            let doubts = doubts(counts, recalls, more);
            assert!(
                doubts.iter().any(|doubt| doubt.contains(expected)),
                "{expected}: {doubts:?}"
            );
        };
        let check =
            |counts, more: &dyn Fn(&mut LabelledSet), expected: &str| check_with(&RECALLS, counts, more, expected);
        check([300, 300, 199], &|_| {}, "`under_age` has 199 positive");
        check([300, 199, 300], &|_| {}, "`explicit` has 199 positive");
        let faint = |set: &mut LabelledSet| add(set, "person+under_age", 3, &[(Group::UnderAge, -0.3)]);
        check(
            [300, 300, 203],
            &faint,
            "`under_age` reaches a recall of 0.985 on unseen pictures, which is sure only to 0.9",
        );
        let grown_up_alike = |set: &mut LabelledSet| add(set, "person", 300, &[(Group::UnderAge, 0.5)]);
        check(
            [300; 3],
            &grown_up_alike,
            "`under_age` reaches its recall only by a false-positive rate of 0.",
        );
        let dressed_alike = |set: &mut LabelledSet| add(set, "person", 300, &[(Group::Explicit, 0.5)]);
        check_with(&RECALLS[..1], [300; 3], &dressed_alike, "`explicit` finds only 0.");
        // With its threshold just above what is harmless, weak evidence is everywhere.
        check_with(&RECALLS[..1], [300; 3], &|_| {}, "would count as `csam`");
        let twice = |set: &mut LabelledSet| add(set, "none", 1, &[]);
        check([300; 3], &twice, "1 vectors stand there more than once");
        let both = |set: &mut LabelledSet| {
            add(set, "person+explicit", 100, &[(Group::UnderAge, 0.5)]);
        };
        check([300; 3], &both, "of 1300 pictures would count as `csam`");
    }
}
