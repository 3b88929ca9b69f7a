//! One reference kept fresh on disk: asked for when the copy has grown old, and read only if it has changed since.

use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::load::{MAX_BYTES, ReferenceSettings, keep, names};
use super::{Kind, record};
use crate::fetch::{Document, Downloader};

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// The copy is younger than was asked for; nobody was asked.
    Young,
    /// The copy is still what the source has.
    Unchanged,
    /// There is a new copy.
    New,
    /// No source gave one, each with its reason; an older copy stays.
    Failed(Vec<String>),
}

/// Where a copy came from; lies beside it.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Mark {
    url: String,
    etag: String,
}

/// Has a copy of the reference of `kind` in `cache` (where [`super::load::load_offline`] reads it) that is at most `max_age`
/// old, from the primary service or else the legacy file. Only what can be read as a reference replaces a copy.
pub async fn refresh(
    kind: Kind,
    settings: &ReferenceSettings,
    cache: &Path,
    max_age: Duration,
    downloader: &Downloader,
) -> Refreshed {
    let Some((category, file)) = names(kind) else {
        return Refreshed::Failed(vec![format!("there is no reference of {kind:?}")]);
    };
    let (copy, beside) = (
        cache.join(format!("{category}.json")),
        cache.join(format!("{category}.source.json")),
    );
    let written = std::fs::metadata(&copy).and_then(|about| about.modified()).ok();
    // A copy from the future was written under another clock: it counts as old.
    let age = written.and_then(|written| SystemTime::now().duration_since(written).ok());
    if age.is_some_and(|age| age < max_age) {
        return Refreshed::Young;
    }
    // What a source has not changed is only as good as the copy of it.
    let is_good = written.is_some() && std::fs::read(&copy).is_ok_and(|text| record::parse(kind, &text).is_ok());
    let mark: Mark = std::fs::read(&beside)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let legacy = if kind == Kind::Text {
        &settings.legacy_text
    } else {
        &settings.legacy_image
    };
    let mut problems = Vec::new();
    for (base, name) in [(&settings.primary, category), (legacy, file)] {
        let outcome = async {
            let url = base.join(name).map_err(|error| error.to_string())?;
            let etag = Some(mark.etag.as_str()).filter(|etag| is_good && !etag.is_empty() && mark.url == url.as_str());
            let answer = downloader.get_document_unless(&url, MAX_BYTES, settings.deadline, etag);
            let answer = answer.await.map_err(|error| error.to_string())?;
            let Some(Document { body, etag }) = answer else {
                return Ok(Refreshed::Unchanged);
            };
            record::parse(kind, &body).map_err(|error| error.to_string())?;
            keep(&copy, &body);
            let mark = Mark {
                url: url.to_string(),
                etag: etag.unwrap_or_default(),
            };
            keep(&beside, &serde_json::to_vec(&mark).unwrap_or_default());
            Ok::<_, String>(Refreshed::New)
        };
        match outcome.await {
            Ok(refreshed) => {
                if refreshed == Refreshed::Unchanged {
                    touch(&copy);
                }
                return refreshed;
            }
            Err(reason) => problems.push(format!("{}: {reason}", crate::fetch::http::authority(base))),
        }
    }
    Refreshed::Failed(problems)
}

/// Makes the copy young again.
fn touch(copy: &Path) {
    let touched = std::fs::File::options()
        .append(true)
        .open(copy)
        .and_then(|file| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(path = %copy.display(), %error, "the copy of a reference stays old");
    }
}
