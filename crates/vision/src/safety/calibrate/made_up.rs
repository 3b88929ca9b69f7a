//! A set of vectors that are of no pictures, to try the tool with before there are any.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::set::{LabelledSet, labels_of};
use crate::error::Result;
use crate::safety::lists::Section;
use crate::safety::{Anchor, Group, Lists};

/// How far a vector goes towards the phrases of its labels; chance makes up the rest of its length.
const TOWARDS: f32 = 0.3;
/// Labels, and the anchors that such pictures would be near.
const LABELS: [(&str, &[Group], &[Anchor]); 5] = [
    ("none", &[], &[]),
    ("person", &[Group::Person], &[Anchor::GrownUp, Anchor::Dressed]),
    ("person+explicit", &[Group::Person, Group::Explicit], &[Anchor::GrownUp]),
    (
        "person+suggestive",
        &[Group::Person, Group::Suggestive],
        &[Anchor::GrownUp],
    ),
    (
        "person+under_age",
        &[Group::Person, Group::UnderAge],
        &[Anchor::Dressed],
    ),
];

/// `n_each` vectors for each of five labels, near the phrases of these labels and otherwise by chance; the same ones for the
/// same numbers. `places` are those of [`Lists::texts`].
///
/// # Errors
/// The places are no directions.
pub fn made_up(clip_sha256: &str, lists: &Lists, places: &[Vec<f32>], n_each: usize) -> Result<LabelledSet> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut set = LabelledSet::new(clip_sha256);
    set.is_made_up = true;
    let sections = lists.sections();
    for (label, groups, anchors) in LABELS {
        let labels = labels_of(label)?;
        let groups = groups.iter().map(|group| Section::Group(*group));
        let wanted: Vec<Section> = groups
            .chain(anchors.iter().map(|anchor| Section::Anchor(*anchor)))
            .collect();
        for _ in 0..n_each {
            let mut row = vec![0.0; lists.dimension];
            add(
                &mut row,
                &unit((0..lists.dimension).map(|_| random.random_range(-1.0..1.0)).collect()),
                1.0,
            );
            for (_, range) in sections.iter().filter(|(section, _)| wanted.contains(section)) {
                let place = places.get(random.random_range(range.clone()));
                add(&mut row, place.map_or(&[], Vec::as_slice), TOWARDS);
            }
            set.push(unit(row), labels.clone())?;
        }
    }
    Ok(set)
}

fn add(row: &mut [f32], other: &[f32], weight: f32) {
    for (value, more) in row.iter_mut().zip(other) {
        *value += weight * more;
    }
}

fn unit(row: Vec<f32>) -> Vec<f32> {
    let length = row
        .iter()
        .map(|value| value * value)
        .sum::<f32>()
        .sqrt()
        .max(f32::MIN_POSITIVE);
    row.into_iter().map(|value| value / length).collect()
}
