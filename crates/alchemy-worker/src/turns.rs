//! Which forms one pop names, and how large their sources may be.
//!
//! The Horde knows one bound of size for all forms of a pop. Asked by the slowest form's alone, it would withhold every larger
//! picture from the quick ones too; so the bounds take turns.

use std::collections::{BTreeMap, BTreeSet};

use crate::pace::Pace;

/// Most bounds that take turns: each more has the slowest form asked for less often.
const MOST: usize = 4;

/// The forms of the `n`th pop, and the most tiles of their sources. The first bound is the slowest form's, with which all
/// forms are named; each further one is larger and leaves out the forms that are too slow for it.
pub fn turn(forms: &BTreeMap<String, Pace>, max_tiles: u32, n: usize) -> (Vec<&str>, u32) {
    let most_of = |pace: &Pace| pace.most_tiles().min(max_tiles).max(1);
    let bounds: Vec<u32> = forms
        .values()
        .map(most_of)
        .collect::<BTreeSet<u32>>()
        .into_iter()
        .collect();
    // Of many the smallest, the largest, and some in between.
    let n_turns = bounds.len().clamp(1, MOST);
    let at = (n % n_turns) * bounds.len().saturating_sub(1) / (n_turns - 1).max(1);
    let bound = bounds.get(at).copied().unwrap_or(1);
    let able = forms.iter().filter(|(_, pace)| most_of(pace) >= bound);
    (able.map(|(form, _)| form.as_str()).collect(), bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forms(tile_seconds: &[f64]) -> BTreeMap<String, Pace> {
        let pace = |tile_seconds| Pace {
            base_seconds: 0.0,
            tile_seconds,
        };
        let named = tile_seconds.iter().enumerate();
        named
            .map(|(n, seconds)| (format!("form {n}"), pace(*seconds)))
            .collect()
    }

    #[test]
    fn a_slow_form_is_asked_for_small_sources_and_does_not_keep_large_ones_from_the_quick() {
        let forms = forms(&[0.0, 100.0, 30.0]);
        let told: Vec<(usize, u32)> = (0..4).map(|n| turn(&forms, 16, n)).map(|(f, t)| (f.len(), t)).collect();
        assert_eq!(told, [(3, 1), (2, 4), (1, 16), (3, 1)]);
        assert_eq!(turn(&forms, 16, 2).0, ["form 0"]);
    }

    #[test]
    fn equally_able_forms_share_every_pop() {
        let forms = forms(&[1.0, 2.0]);
        for n in 0..3 {
            assert_eq!(turn(&forms, 16, n), (vec!["form 0", "form 1"], 16));
        }
    }

    #[test]
    fn of_many_bounds_the_least_and_the_greatest_have_their_turn() {
        // 144, 72, 48, … 12 tiles.
        let forms = forms(&(1..=12).map(f64::from).collect::<Vec<_>>());
        let bounds: Vec<u32> = (0..8).map(|n| turn(&forms, 256, n).1).collect();
        assert_eq!(bounds[..4], bounds[4..]);
        assert_eq!((bounds[0], bounds[3]), (12, 144));
        assert!(bounds.is_sorted_by(|a, b| a < b || *b == 12), "{bounds:?}");
    }

    #[test]
    fn a_form_too_slow_for_any_tile_is_asked_for_one_and_none_at_all_is_no_error() {
        assert_eq!(turn(&forms(&[500.0]), 16, 3), (vec!["form 0"], 1));
        assert_eq!(turn(&BTreeMap::new(), 16, 3), (Vec::new(), 1));
    }
}
