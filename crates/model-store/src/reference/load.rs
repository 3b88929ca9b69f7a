//! Where references come from: the primary service, then the legacy files, then the last good copy, then the snapshot.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use url::Url;

use super::record::{self, LeftOut};
use super::{Catalogue, Kind, local};
use crate::fetch::Downloader;

/// Largest reference that is read; the text reference has about 2 MB.
pub(super) const MAX_BYTES: usize = 32 << 20;

/// Where to ask.
#[derive(Clone, Debug)]
pub struct ReferenceSettings {
    /// The primary service, up to the category: `…/api/model_references/v2/`.
    pub primary: Url,
    /// Folder of the legacy image references.
    pub legacy_image: Url,
    /// Folder of the legacy text reference.
    pub legacy_text: Url,
    /// Time for one document.
    pub deadline: Duration,
}

impl Default for ReferenceSettings {
    fn default() -> Self {
        let url = |text: &str| Url::parse(text).expect("the address is constant and valid");
        Self {
            primary: url("https://models.aihorde.net/api/model_references/v2/"),
            legacy_image: url("https://raw.githubusercontent.com/Haidra-Org/AI-Horde-image-model-reference/main/"),
            legacy_text: url("https://raw.githubusercontent.com/db0/AI-Horde-text-model-reference/main/"),
            deadline: Duration::from_secs(20),
        }
    }
}

/// Where one reference was taken from in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// The primary service.
    Primary,
    /// The legacy files.
    Legacy,
    /// The last good copy on disk.
    Disk,
    /// The snapshot inside this program.
    Snapshot,
}

/// The references of some kinds and what went wrong on the way.
#[derive(Debug, Default)]
pub struct Loaded {
    /// All models, the builtin ones included.
    pub catalogue: Catalogue,
    /// Source of each kind.
    pub taken: Vec<(Kind, Taken)>,
    /// Sources that did not answer, in words.
    pub problems: Vec<String>,
    /// Records that were left out.
    pub left_out: Vec<LeftOut>,
}

/// Loads the references of `kinds`. Never fails: what cannot be had is missing and named in `problems`.
///
/// Good documents are kept in `cache` for the next time. Builtin models come first, so references replace them.
pub async fn load(kinds: &[Kind], settings: &ReferenceSettings, cache: &Path, downloader: &Downloader) -> Loaded {
    let mut loaded = Loaded {
        catalogue: local::builtin(),
        ..Loaded::default()
    };
    for &kind in kinds {
        let Some((category, file)) = names(kind) else { continue };
        let copy = cache.join(format!("{category}.json"));
        let legacy = if kind == Kind::Text {
            &settings.legacy_text
        } else {
            &settings.legacy_image
        };
        let mut found = None;
        for (base, name, taken) in [
            (&settings.primary, category, Taken::Primary),
            (legacy, file, Taken::Legacy),
        ] {
            let outcome = match base.join(name) {
                Ok(url) => downloader
                    .get_document(&url, MAX_BYTES, settings.deadline)
                    .await
                    .map_err(|e| e.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match outcome.and_then(|text| {
                record::parse(kind, &text)
                    .map(|parsed| (text, parsed))
                    .map_err(|e| e.to_string())
            }) {
                Ok((text, parsed)) => {
                    keep(&copy, &text);
                    found = Some((taken, parsed));
                    break;
                }
                Err(reason) => loaded
                    .problems
                    .push(format!("{category}: {}: {reason}", crate::fetch::http::authority(base))),
            }
        }
        let found = found
            .or_else(|| Some((Taken::Disk, record::parse(kind, &std::fs::read(&copy).ok()?).ok()?)))
            .or_else(|| Some((Taken::Snapshot, record::parse(kind, snapshot(kind)?.as_bytes()).ok()?)));
        match found {
            Some((taken, (catalogue, left_out))) => {
                loaded.catalogue.merge(catalogue);
                loaded.left_out.extend(left_out);
                loaded.taken.push((kind, taken));
            }
            None => loaded
                .problems
                .push(format!("{category}: nothing is known, not even an older copy")),
        }
    }
    loaded
}

/// What is on disk or in this program, without asking anybody: for commands that must answer at once.
pub fn load_offline(kinds: &[Kind], cache: &Path) -> Catalogue {
    let mut catalogue = local::builtin();
    for &kind in kinds {
        let Some((category, _)) = names(kind) else { continue };
        let copy = std::fs::read(cache.join(format!("{category}.json"))).ok();
        let parsed = copy.and_then(|text| record::parse(kind, &text).ok());
        let parsed = parsed.or_else(|| record::parse(kind, snapshot(kind)?.as_bytes()).ok());
        if let Some((found, _)) = parsed {
            catalogue.merge(found);
        }
    }
    catalogue
}

/// Category of the primary service and file of the legacy folder.
pub(super) fn names(kind: Kind) -> Option<(&'static str, &'static str)> {
    Some(match kind {
        Kind::Image => ("image_generation", "stable_diffusion.json"),
        Kind::Text => ("text_generation", "db.json"),
        Kind::Clip => ("clip", "clip.json"),
        Kind::Blip => ("blip", "blip.json"),
        Kind::Esrgan => ("esrgan", "esrgan.json"),
        Kind::Gfpgan => ("gfpgan", "gfpgan.json"),
        Kind::Codeformer => ("codeformer", "codeformer.json"),
        Kind::Controlnet => ("controlnet", "controlnet.json"),
        Kind::SafetyChecker => ("safety_checker", "safety_checker.json"),
        Kind::Miscellaneous => ("miscellaneous", "miscellaneous.json"),
        Kind::ControlnetAnnotator | Kind::Background | Kind::Nsfw => return None,
    })
}

fn snapshot(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::Image => include_str!("../../data/snapshot/image_generation.json"),
        Kind::Text => include_str!("../../data/snapshot/text_generation.json"),
        Kind::Clip => include_str!("../../data/snapshot/clip.json"),
        Kind::Gfpgan => include_str!("../../data/snapshot/gfpgan.json"),
        Kind::Codeformer => include_str!("../../data/snapshot/codeformer.json"),
        _ => return None,
    })
}

pub(super) fn keep(copy: &Path, text: &[u8]) {
    let written = (|| {
        std::fs::create_dir_all(copy.parent().unwrap_or(Path::new(".")))?;
        let temporary = crate::fetch::part::beside(copy, ".new");
        std::fs::write(&temporary, text)?;
        std::fs::rename(&temporary, copy)
    })();
    if let Err(error) = written {
        tracing::warn!(path = %copy.display(), %error, "could not keep a copy of a reference");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_snapshot_is_a_reference() {
        for kind in Kind::ALL {
            if let Some(text) = snapshot(kind) {
                let (catalogue, left_out) = record::parse(kind, text.as_bytes()).unwrap();
                assert!(!catalogue.is_empty() && left_out.is_empty(), "{kind:?}: {left_out:?}");
            }
        }
    }
}
