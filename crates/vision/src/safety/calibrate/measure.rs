//! Numbers of a yes-or-no test with a threshold. A value counts as yes from the threshold on.

use serde::Serialize;

/// A threshold with what it does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The threshold.
    pub at: f32,
    /// Share of the found that are right, 0..=1; 1 when nothing is found.
    pub precision: f64,
    /// Share of the right that are found, 0..=1; 1 when nothing is right.
    pub recall: f64,
    /// Share of the wrong that are found, 0..=1; 0 when nothing is wrong.
    pub fpr: f64,
}

/// What a threshold does to values of positive and negative examples.
pub fn point(positive: &[f32], negative: &[f32], at: f32) -> Point {
    let found = |values: &[f32]| values.iter().filter(|value| **value >= at).count();
    let (hits, false_hits) = (found(positive), found(negative));
    let share = |part: usize, whole: usize, empty: f64| {
        if whole == 0 { empty } else { part as f64 / whole as f64 }
    };
    Point {
        at,
        precision: share(hits, hits + false_hits, 1.0),
        recall: share(hits, positive.len(), 1.0),
        fpr: share(false_hits, negative.len(), 0.0),
    }
}

/// Area under the ROC curve: how often a positive lies above a negative, ties half. `None` without examples of both.
pub fn auc(positive: &[f32], negative: &[f32]) -> Option<f64> {
    if positive.is_empty() || negative.is_empty() {
        return None;
    }
    let mut negative = negative.to_vec();
    negative.sort_by(f32::total_cmp);
    let sum: usize = positive
        .iter()
        .map(|value| {
            let below = negative.partition_point(|other| other < value);
            let not_above = negative.partition_point(|other| other <= value);
            below + not_above
        })
        .sum();
    Some(sum as f64 / 2.0 / positive.len() as f64 / negative.len() as f64)
}

/// The lowest threshold that finds no more than `fpr` of the negatives. `None` without negatives.
pub fn threshold_at_fpr(negative: &[f32], fpr: f64) -> Option<f32> {
    let allowed = (fpr.clamp(0.0, 1.0) * negative.len() as f64).floor() as usize;
    above_nth(&descending(negative), allowed)
}

/// Highest first.
pub(super) fn descending(values: &[f32]) -> Vec<f32> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted
}

/// The lowest threshold that finds no more than `n` of the values, which are sorted highest first.
pub(super) fn above_nth(descending: &[f32], n: usize) -> Option<f32> {
    match descending.get(n) {
        Some(value) => Some(value.next_up()),
        None => descending.last().copied(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_point_counts_what_is_found() {
        let point = point(&[0.3, 0.2, 0.1], &[0.25, 0.1, 0.0, -0.1], 0.2);
        assert_eq!((point.recall, point.fpr), (2.0 / 3.0, 0.25));
        assert_eq!(point.precision, 2.0 / 3.0);
    }

    #[test]
    fn the_area_is_that_of_the_curve() {
        assert_eq!(auc(&[2.0, 3.0], &[0.0, 1.0]), Some(1.0));
        assert_eq!(auc(&[0.0], &[1.0]), Some(0.0));
        assert_eq!(auc(&[1.0, 1.0], &[1.0]), Some(0.5));
        assert_eq!(auc(&[0.0, 2.0], &[1.0]), Some(0.5));
        assert_eq!(auc(&[], &[1.0]), None);
    }

    proptest! {
        #[test]
        fn a_threshold_keeps_the_rate_and_a_lower_one_does_not(
            negative in proptest::collection::vec(-1.0f32..1.0, 1..200),
            fpr in 0.0f64..1.0,
        ) {
            let at = threshold_at_fpr(&negative, fpr).unwrap();
            prop_assert!(point(&[], &negative, at).fpr <= fpr);
            prop_assert!(point(&[], &negative, at.next_down()).fpr > fpr);
        }
    }
}
