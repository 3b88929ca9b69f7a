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
    /// Where the true precision lies with 95 % confidence.
    pub precision_95: [f64; 2],
    /// Where the true recall lies with 95 % confidence.
    pub recall_95: [f64; 2],
    /// Where the true false-positive rate lies with 95 % confidence.
    pub fpr_95: [f64; 2],
}

impl Point {
    /// From counts: found ones of the right and of the wrong.
    pub fn of_counts(at: f32, hits: usize, n_positive: usize, false_hits: usize, n_negative: usize) -> Self {
        let share = |part: usize, whole: usize, empty: f64| {
            if whole == 0 { empty } else { part as f64 / whole as f64 }
        };
        Self {
            at,
            precision: share(hits, hits + false_hits, 1.0),
            recall: share(hits, n_positive, 1.0),
            fpr: share(false_hits, n_negative, 0.0),
            precision_95: wilson_95(hits, hits + false_hits),
            recall_95: wilson_95(hits, n_positive),
            fpr_95: wilson_95(false_hits, n_negative),
        }
    }
}

/// Where a rate lies with 95 % confidence when `part` of `whole` were seen; all of 0..=1 when nothing was.
///
/// Wilson's score interval without continuity correction: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209. Unlike the usual
/// one it stays within 0..=1 and says something where all or none of a few were found.
pub fn wilson_95(part: usize, whole: usize) -> [f64; 2] {
    /// The normal distribution's quantile at 97.5 %.
    const Z: f64 = 1.959_963_984_540_054;
    if whole == 0 {
        return [0.0, 1.0];
    }
    let n = whole as f64;
    let rate = part.min(whole) as f64 / n;
    let middle = rate + Z * Z / (2.0 * n);
    let half = Z * (rate * (1.0 - rate) / n + Z * Z / (4.0 * n * n)).sqrt();
    let bound = |value: f64| (value / (1.0 + Z * Z / n)).clamp(0.0, 1.0);
    [bound(middle - half), bound(middle + half)]
}

/// What a threshold does to values of positive and negative examples.
pub fn point(positive: &[f32], negative: &[f32], at: f32) -> Point {
    let found = |values: &[f32]| values.iter().filter(|value| **value >= at).count();
    Point::of_counts(at, found(positive), positive.len(), found(negative), negative.len())
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
    fn intervals_are_wilsons() {
        let check = |part, whole, low: f64, high: f64| {
            let [a, b] = wilson_95(part, whole);
            assert!(
                (a - low).abs() < 5e-5 && (b - high).abs() < 5e-5,
                "{part} of {whole}: {a} to {b}"
            );
        };
        // Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3.
        check(81, 263, 0.2553, 0.3662);
        check(15, 148, 0.0624, 0.1605);
        check(0, 20, 0.0, 0.1611);
        check(1, 29, 0.0061, 0.1718);
        check(29, 29, 0.8830, 1.0);
        check(0, 0, 0.0, 1.0);
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
