//! Which bytes of a file are there: a sorted list of intervals that never touch.

use serde::{Deserialize, Serialize};

/// Half-open byte intervals `[start, end)`, sorted, merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds an interval and merges its neighbours. Empty intervals are ignored.
    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self.0.partition_point(|(_, e)| *e < start);
        let last = self.0.partition_point(|(s, _)| *s <= end);
        let merged = self.0[first..last]
            .iter()
            .fold((start, end), |(s, e), other| (s.min(other.0), e.max(other.1)));
        self.0.splice(first..last, [merged]);
    }

    /// End of the interval that starts at zero: everything below is there.
    pub(crate) fn prefix(&self) -> u64 {
        self.0
            .first()
            .filter(|(start, _)| *start == 0)
            .map_or(0, |(_, end)| *end)
    }

    /// Sum of all intervals.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// What is missing of `total` bytes, cut at multiples of `chunk`, in order.
    pub(crate) fn missing(&self, total: u64, chunk: u64) -> Vec<(u64, u64)> {
        let chunk = chunk.max(1);
        let mut gaps = Vec::new();
        let mut at = 0;
        let ends = self.0.iter().copied().chain([(total, total)]);
        for (start, end) in ends {
            while at < start.min(total) {
                let cut = ((at / chunk + 1) * chunk).min(start).min(total);
                gaps.push((at, cut));
                at = cut;
            }
            at = at.max(end);
        }
        gaps
    }

    /// What was read from a journal, if it is sorted, merged and within `total`.
    pub(crate) fn checked(self, total: u64) -> Option<Self> {
        let sorted = self.0.windows(2).all(|pair| pair[0].1 < pair[1].0);
        let sound = self.0.iter().all(|(start, end)| start < end && *end <= total);
        (sorted && sound).then_some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn done_and_missing_together_are_the_file(parts in prop::collection::vec((0u64..500, 0u64..80), 0..40), chunk in 1u64..90) {
            let total = 600;
            let mut ranges = Ranges::default();
            let mut truth = vec![false; total as usize];
            for (start, length) in parts {
                ranges.insert(start, start + length);
                truth[start as usize..(start + length) as usize].fill(true);
            }
            prop_assert_eq!(ranges.bytes() as usize, truth.iter().filter(|t| **t).count());
            prop_assert_eq!(ranges.prefix() as usize, truth.iter().take_while(|t| **t).count());
            for (start, end) in ranges.missing(total, chunk) {
                prop_assert!(end > start && end - start <= chunk);
                for at in start..end {
                    prop_assert!(!truth[at as usize]);
                    truth[at as usize] = true;
                }
            }
            prop_assert!(truth.iter().all(|t| *t));
            prop_assert!(ranges.checked(total).is_some());
        }
    }

    #[test]
    fn a_journal_that_lies_is_not_believed() {
        assert!(Ranges(vec![(0, 5), (3, 9)]).checked(10).is_none());
        assert!(Ranges(vec![(0, 50)]).checked(10).is_none());
        assert!(Ranges(vec![(5, 5)]).checked(10).is_none());
        assert!(Ranges(vec![(0, 5), (6, 9)]).checked(10).is_some());
    }
}
