//! Which files the content check needs, and the gate they make.

use std::path::Path;

use diffusion::safetensors_file::SafetensorsFile;
use imaging::Picture;
use vision::Device;
pub use vision::safety::CheckerFiles;
use vision::safety::{Context, Lists, Rating, SafetyChecker, Style};
use worker_app::{Check, Stop};

use crate::checked::{About, Checker, Gate};

/// Below the models directory: CLIP ViT-L/14 with both halves.
const CLIP: &str = "clip/model.safetensors";
/// What the catalogue calls it.
pub const MODEL: &str = "clip-vit-large-patch14";
/// Lists with thresholds that the owner's own calibration wrote.
const LISTS: &str = "safety_checker/lists.json";
/// Networks that are asked too where they are there.
const SD_CHECKER: &str = "nsfw/safety_checker.safetensors";
const OPEN_NSFW: &str = "nsfw/open_nsfw.safetensors";
/// Where places of phrases are kept.
const CACHE: &str = "safety_checker/cache";

const HINT: &str = "`dreamer models pull clip-vit-large-patch14` fetches it; docs/SAFETY.md says what the check does";

/// Looks for the checker's files below the models directory. Lists and further networks are taken where they are there.
///
/// # Errors
/// CLIP is not there: then no picture may leave this machine.
pub fn find(models_dir: &Path) -> Result<CheckerFiles, Stop> {
    let clip = models_dir.join(CLIP);
    if !clip.is_file() {
        return Err(Stop::no_model(format!(
            "the content check needs `{}`, and no picture leaves this machine unchecked",
            clip.display()
        ))
        .hint(HINT));
    }
    let there = |path: &str| Some(models_dir.join(path)).filter(|path| path.is_file());
    Ok(CheckerFiles {
        clip,
        cache: models_dir.join(CACHE),
        lists: there(LISTS),
        sd_checker: there(SD_CHECKER),
        open_nsfw: there(OPEN_NSFW),
    })
}

/// What `doctor` says of the check's files: missing lists are those of this build, which are not calibrated, and lists of the
/// owner's own may be broken or not calibrated either.
pub fn diagnosis(files: &CheckerFiles) -> Check {
    const NAME: &str = "content check";
    match files.lists.as_deref().map(Lists::open) {
        None => Check::ok(
            NAME,
            "its files are there; its thresholds are not calibrated yet (docs/SAFETY.md)",
        ),
        Some(Ok(lists)) if lists.calibrated => Check::ok(NAME, "its files and calibrated lists of your own are there"),
        Some(Ok(_)) => Check::warn(NAME, "its files are there; your own lists do not count as calibrated")
            .hint("`just safety-calibrate tune` says why (docs/SAFETY.md)"),
        Some(Err(error)) => Check::fail(NAME, error.to_string())
            .hint("mend the file, make it anew with `just safety-calibrate tune` (docs/SAFETY.md), or remove it"),
    }
}

/// What the check holds: every number of its networks in four bytes.
///
/// # Errors
/// A file is damaged.
pub fn bytes(files: &CheckerFiles) -> Result<u64, Stop> {
    let paths = [Some(&files.clip), files.sd_checker.as_ref(), files.open_nsfw.as_ref()];
    let mut bytes = 0u64;
    for path in paths.into_iter().flatten() {
        let file = SafetensorsFile::open(path)
            .map_err(|error| Stop::no_model(format!("the content check cannot be used: {error}")).hint(HINT))?;
        let values = |name: &str| {
            let shape = file.shape(name).unwrap_or_default();
            shape.iter().map(|dim| *dim as u64).product::<u64>()
        };
        bytes += 4 * file.names().map(values).sum::<u64>();
    }
    Ok(bytes)
}

/// The gate of an engine.
///
/// # Errors
/// The checker cannot be read or does not see, and nobody said that pictures may go unchecked.
pub fn gate(files: Option<&CheckerFiles>, unchecked: bool, device: &Device) -> Result<Gate, Stop> {
    match (files, unchecked) {
        (Some(files), _) => {
            let checker = SafetyChecker::open_files(files, device)
                .map_err(|error| Stop::no_model(format!("the content check cannot be used: {error}")).hint(HINT))?;
            Ok(Gate::Checker(Box::new(checker)))
        }
        (None, true) => Ok(Gate::UncheckedOnLoopback),
        (None, false) => Err(Stop::no_model("there is no content check").hint(HINT)),
    }
}

impl Checker for SafetyChecker {
    fn rate(&self, picture: &Picture, about: About<'_>) -> Result<Rating, String> {
        let context = Context {
            prompt: about.prompt,
            negative: "",
            nsfw_model: about.is_nsfw_model,
            style: Style::from_reference(about.style),
        };
        let verdict = self.check(picture, &context).map_err(|error| error.to_string())?;
        tracing::debug!(rating = ?verdict.rating, views = verdict.scores.n_views, "a picture was checked");
        Ok(verdict.rating)
    }
}

#[cfg(test)]
mod tests {
    use worker_app::Verdict;

    use super::*;

    #[test]
    fn doctor_tells_lists_that_are_broken_or_not_calibrated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lists.json");
        let mut lists = Lists::builtin().unwrap();
        let mut check = |calibrated: Option<bool>, expected: (Verdict, &str)| {
            let json = calibrated.map(|calibrated| {
                lists.calibrated = calibrated;
                lists.to_json().unwrap()
            });
            std::fs::write(&path, json.unwrap_or_default()).unwrap();
            let files = CheckerFiles {
                lists: Some(path.clone()),
                ..CheckerFiles::default()
            };
            let said = diagnosis(&files);
            assert!(
                said.verdict == expected.0 && said.message.contains(expected.1),
                "{said:?}"
            );
        };
        check(Some(true), (Verdict::Ok, "calibrated lists of your own"));
        check(Some(false), (Verdict::Warn, "do not count as calibrated"));
        check(None, (Verdict::Fail, "lists.json"));
        let said = diagnosis(&CheckerFiles::default());
        assert!(
            said.verdict == Verdict::Ok && said.message.contains("not calibrated yet"),
            "{said:?}"
        );
    }
}
