//! What the check as a whole makes of labelled pictures: rules, contrasts and weak evidence together, which no group's rates
//! tell.

use std::collections::BTreeMap;

use serde::Serialize;

use super::measure::wilson_95;
use super::set::LabelledSet;
use crate::error::Result;
use crate::safety::rate::{Evidence, rate};
use crate::safety::{Level, Lists, Rating, Read, Style, see};

/// Verdicts on the pictures of one label, each looked at as its vector shows it, without a prompt and further networks.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerdictReport {
    /// As a folder of pictures is called.
    pub label: String,
    /// Pictures of this label.
    pub n: usize,
    /// Rated `ok`.
    pub n_ok: usize,
    /// Rated `nsfw`.
    pub n_nsfw: usize,
    /// Rated `csam`. No picture of a set may be that, so all of these are false alarms.
    pub n_csam: usize,
    /// Where the true share of `nsfw` and `csam` together lies with 95 % confidence.
    pub not_ok_95: [f64; 2],
    /// Where the true share of `csam` lies with 95 % confidence.
    pub csam_95: [f64; 2],
}

/// Rates every picture of a set; `cosines` are those of its rows to the phrases.
pub(super) fn verdicts(lists: &Lists, cosines: &[Vec<f32>], set: &LabelledSet) -> Result<Vec<VerdictReport>> {
    let mut counts: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    for (index, view) in cosines.iter().enumerate() {
        let seen = see(lists, std::slice::from_ref(view), Style::General)?;
        let (rating, _) = rate(&Evidence::new(&seen, Level::None, Read::default(), false));
        let of_label = counts.entry(set.label(index)).or_default();
        match rating {
            Rating::Ok => of_label[0] += 1,
            Rating::Nsfw => of_label[1] += 1,
            Rating::Csam => of_label[2] += 1,
        }
    }
    let report = |(label, [n_ok, n_nsfw, n_csam]): (String, [usize; 3])| {
        let n = n_ok + n_nsfw + n_csam;
        VerdictReport {
            label,
            n,
            n_ok,
            n_nsfw,
            n_csam,
            not_ok_95: wilson_95(n_nsfw + n_csam, n),
            csam_95: wilson_95(n_csam, n),
        }
    };
    Ok(counts.into_iter().map(report).collect())
}
