//! Which models to offer: names and the words that stand for many of them.
//!
//! Known words, in any case: `ALL`, `TOP n`, `BOTTOM n` (by what the Horde's users asked for), and `ALL` followed by
//! `SDXL`, `SD15`, `SD21`, `FLUX`, `INPAINTING`, `SFW` or `NSFW`. A word never brings a model that is skipped, too
//! large for the owner's rule, or not to be had; a name does, unless it is skipped too.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Baseline, Catalogue, Kind, Model};

/// What the owner wrote.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Names and words.
    pub wanted: Vec<String>,
    /// Names and words that are taken away again.
    pub skip: Vec<String>,
    /// May words bring families that need much memory (Flux, Cascade, Qwen and everything unknown)?
    pub large_models: bool,
}

/// How often each model was asked for, from `/v2/stats/img/models` or `/v2/stats/text/models`.
#[derive(Clone, Debug, Default)]
pub struct Popularity {
    day: BTreeMap<String, u64>,
    month: BTreeMap<String, u64>,
}

/// The outcome.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Selected {
    /// Names to offer, sorted.
    pub names: Vec<String>,
    /// What nobody knows, with the nearest known name.
    pub unknown: Vec<(String, Option<String>)>,
    /// What a word would have brought, and why it did not.
    pub left_out: Vec<(String, String)>,
}

/// `TOP n` or `BOTTOM n` without numbers to rank by.
#[derive(Debug, thiserror::Error)]
#[error("`{word}` needs the Horde's statistics, which could not be had")]
pub struct NoStatistics {
    /// The word.
    pub word: String,
}

enum Word {
    All,
    Family(&'static str),
    Inpainting,
    Nsfw(bool),
    Top(usize),
    Bottom(usize),
}

impl Popularity {
    /// Reads the server's answer: `{day, month, total: {name: count}}`. Unknown parts are ignored.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let value: serde_json::Value = serde_json::from_slice(text)?;
        let counts = |key: &str| {
            let map = value[key].as_object().into_iter().flatten();
            map.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?)))
                .collect()
        };
        Ok(Self {
            day: counts("day"),
            month: counts("month"),
        })
    }

    /// By the last day, ties and newcomers by the month.
    fn score(&self, name: &str) -> (u64, u64) {
        let of = |map: &BTreeMap<String, u64>| map.get(name).copied().unwrap_or(0);
        (of(&self.day), of(&self.month))
    }
}

/// Resolves what the owner wrote for one kind. `unusable` says why a word must not bring a model, such as a missing
/// token or an engine that cannot run it.
pub fn select(
    selection: &Selection,
    kind: Kind,
    catalogue: &Catalogue,
    popularity: Option<&Popularity>,
    unusable: &dyn Fn(&Model) -> Option<String>,
) -> Result<Selected, NoStatistics> {
    let mut outcome = Selected::default();
    let mut skipped = BTreeSet::new();
    for text in &selection.skip {
        match parse_word(text) {
            Some(word) => skipped.extend(names_of(&word, text, catalogue.of_kind(kind).collect(), popularity)?),
            None => match known(catalogue, kind, text) {
                Ok(name) => drop(skipped.insert(name)),
                Err(similar) => outcome.unknown.push((text.clone(), similar)),
            },
        }
    }
    let mut reasons = BTreeMap::new();
    let candidates: Vec<&Model> = catalogue
        .of_kind(kind)
        .filter(|model| {
            let reason = if skipped.contains(&model.name) {
                Some("it is in the skip list".to_owned())
            } else if !selection.large_models && is_large(model) {
                Some("it needs much memory and `large_models` is off".to_owned())
            } else {
                unusable(model)
            };
            reason
                .map(|reason| reasons.insert(model.name.clone(), reason))
                .is_none()
        })
        .collect();
    let mut chosen = BTreeSet::new();
    let mut used_a_word = false;
    for text in &selection.wanted {
        match parse_word(text) {
            Some(word) => {
                used_a_word = true;
                chosen.extend(names_of(&word, text, candidates.clone(), popularity)?);
            }
            None => match known(catalogue, kind, text) {
                Ok(name) if skipped.contains(&name) => {}
                Ok(name) => drop(chosen.insert(name)),
                Err(similar) => outcome.unknown.push((text.clone(), similar)),
            },
        }
    }
    if used_a_word {
        outcome.left_out = reasons.into_iter().filter(|(name, _)| !chosen.contains(name)).collect();
    }
    outcome.names = chosen.into_iter().collect();
    Ok(outcome)
}

/// Families that do not run well beside others: everything beyond Stable Diffusion 1, 2 and XL.
pub fn is_large(model: &Model) -> bool {
    match &model.baseline {
        Some(Baseline::Sd1 | Baseline::Sd2At512 | Baseline::Sd2At768 | Baseline::Sdxl | Baseline::Infer) | None => {
            false
        }
        Some(_) => model.kind == Kind::Image,
    }
}

fn known(catalogue: &Catalogue, kind: Kind, text: &str) -> Result<String, Option<String>> {
    let text = text.trim();
    if let Some(model) = catalogue.get(kind, text) {
        return Ok(model.name.clone());
    }
    match catalogue
        .of_kind(kind)
        .find(|model| model.name.eq_ignore_ascii_case(text))
    {
        Some(model) => Ok(model.name.clone()),
        None => Err(catalogue.similar(text).first().map(|name| (*name).to_owned())),
    }
}

fn parse_word(text: &str) -> Option<Word> {
    let words: Vec<String> = text.split_whitespace().map(str::to_ascii_uppercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Some(match words.as_slice() {
        ["ALL"] | ["ALL", "MODELS"] => Word::All,
        ["ALL", "SDXL", ..] => Word::Family("SDXL"),
        ["ALL", "SD15" | "SD1", ..] => Word::Family("SD15"),
        ["ALL", "SD21" | "SD2", ..] => Word::Family("SD21"),
        ["ALL", "FLUX", ..] => Word::Family("FLUX"),
        ["ALL", "INPAINTING", ..] => Word::Inpainting,
        ["ALL", "SFW", ..] => Word::Nsfw(false),
        ["ALL", "NSFW", ..] => Word::Nsfw(true),
        ["TOP", count] => Word::Top(count.parse().ok()?),
        ["BOTTOM", count] => Word::Bottom(count.parse().ok()?),
        _ => return None,
    })
}

fn names_of(
    word: &Word,
    text: &str,
    mut models: Vec<&Model>,
    popularity: Option<&Popularity>,
) -> Result<Vec<String>, NoStatistics> {
    let ranked = |models: &mut Vec<&Model>| {
        let popularity = popularity.ok_or_else(|| NoStatistics { word: text.to_owned() })?;
        models.sort_by_key(|model| std::cmp::Reverse(popularity.score(&model.name)));
        Ok(())
    };
    match word {
        Word::All => {}
        Word::Family(family) => models.retain(|model| {
            model
                .baseline
                .as_ref()
                .is_some_and(|baseline| baseline.family() == *family)
        }),
        Word::Inpainting => models.retain(|model| model.inpainting),
        Word::Nsfw(wanted) => models.retain(|model| model.nsfw == *wanted),
        Word::Top(count) => {
            ranked(&mut models)?;
            models.truncate(*count);
        }
        Word::Bottom(count) => {
            ranked(&mut models)?;
            models.reverse();
            models.truncate(*count);
        }
    }
    Ok(models.into_iter().map(|model| model.name.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue() -> Catalogue {
        let record = |name: &str, baseline: &str, nsfw: bool, inpainting: bool| {
            format!(
                r#""{name}": {{"name": "{name}", "baseline": "{baseline}", "nsfw": {nsfw}, "inpainting": {inpainting},
                 "config": {{"files": [], "download": [{{"file_name": "{name}.safetensors", "file_url": "https://e.org/{name}"}}]}}}}"#
            )
        };
        let text = [
            record("one", "stable diffusion 1", false, false),
            record("two", "stable diffusion 2", true, false),
            record("paint", "stable diffusion 1", false, true),
            record("big", "stable_diffusion_xl", true, false),
            record("flow", "flux_1", false, false),
        ];
        super::super::record::parse(Kind::Image, format!("{{{}}}", text.join(",")).as_bytes())
            .unwrap()
            .0
    }

    fn check(wanted: &[&str], skip: &[&str], large_models: bool, expected: &[&str]) -> Selected {
        let popularity = Popularity::parse(
            br#"{"day": {"big": 90, "one": 50, "flow": 70, "two": 5}, "month": {"paint": 3}, "total": {}}"#,
        )
        .unwrap();
        let own = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let selection = Selection {
            wanted: own(wanted),
            skip: own(skip),
            large_models,
        };
        let selected = select(&selection, Kind::Image, &catalogue(), Some(&popularity), &|_| None).unwrap();
        assert_eq!(selected.names, expected, "{wanted:?} without {skip:?}");
        selected
    }

    #[test]
    fn words_stand_for_the_models_they_say() {
        check(&["ALL"], &[], true, &["big", "flow", "one", "paint", "two"]);
        check(&["all"], &[], false, &["big", "one", "paint", "two"]);
        check(&["ALL SDXL"], &[], false, &["big"]);
        check(&["ALL SD15", "ALL SD21"], &["paint"], false, &["one", "two"]);
        check(&["ALL FLUX"], &[], false, &[]);
        check(&["ALL FLUX models"], &[], true, &["flow"]);
        check(&["ALL INPAINTING"], &[], false, &["paint"]);
        check(&["ALL SFW"], &["ALL SD15"], false, &[]);
        check(&["ALL NSFW"], &[], false, &["big", "two"]);
        check(&["TOP 2"], &[], false, &["big", "one"]);
        check(&["TOP 2"], &["big"], true, &["flow", "one"]);
        check(&["bottom 1"], &[], false, &["paint"]);
        check(&["TOP 99999999999"], &[], true, &["big", "flow", "one", "paint", "two"]);
        // A name is the owner's own decision: the rule for large models is for words.
        check(&["flow", "One"], &[], false, &["flow", "one"]);
    }

    #[test]
    fn what_is_unknown_is_named_and_what_is_left_out_explained() {
        let selected = check(&["oen", "TOP 1"], &["nobody"], false, &["big"]);
        assert_eq!(selected.unknown.len(), 2);
        assert!(
            selected
                .left_out
                .iter()
                .any(|(name, reason)| name == "flow" && reason.contains("large_models"))
        );
    }

    #[test]
    fn top_without_statistics_is_an_error_and_not_an_empty_offer() {
        let selection = Selection {
            wanted: vec!["TOP 3".into()],
            ..Selection::default()
        };
        assert!(select(&selection, Kind::Image, &catalogue(), None, &|_| None).is_err());
    }

    #[test]
    fn a_word_does_not_bring_what_cannot_be_had() {
        let selection = Selection {
            wanted: vec!["ALL".into()],
            ..Selection::default()
        };
        let needs_token = |model: &Model| (model.name == "big").then(|| "it needs a CivitAI token".to_owned());
        let selected = select(&selection, Kind::Image, &catalogue(), None, &needs_token).unwrap();
        assert_eq!(selected.names, ["one", "paint", "two"]);
        assert!(
            selected
                .left_out
                .contains(&("big".into(), "it needs a CivitAI token".into()))
        );
    }
}
