//! LoRAs and textual inversions that a job names: looked up, fetched within a time budget, kept by their sum.
//!
//! A failure is a value the job's metadata can tell; it never costs the job. What a job's client wrote is only ever
//! compared and sent as a query: files are named by their SHA-256.

mod cache;
pub mod civitai;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use url::Url;

pub use cache::Pinned;

use self::cache::{Cache, Entry};
use self::civitai::Resolved;
use crate::digest::Sha256Sum;
use crate::fetch::{Control, Downloader, FetchError, FetchPlan, Progress, Source};
use crate::reference::Baseline;

/// Limits and places.
#[derive(Clone, Debug)]
pub struct AdHocSettings {
    /// CivitAI's API, up to `/api/v1/`.
    pub civitai: Url,
    /// The Horde's converter of embeddings, up to `/api/v1/`.
    pub hordeling: Url,
    /// Largest LoRA in bytes.
    pub max_lora_bytes: u64,
    /// Largest embedding in bytes.
    pub max_embedding_bytes: u64,
    /// Disk budget of all of them together, in bytes; the least recently used make room.
    pub budget_bytes: u64,
    /// Time to find out what to fetch.
    pub lookup: Duration,
    /// Time to fetch it.
    pub download: Duration,
}

impl Default for AdHocSettings {
    fn default() -> Self {
        let url = |text: &str| Url::parse(text).expect("the address is constant and valid");
        Self {
            civitai: url("https://civitai.com/api/v1/"),
            hordeling: url("https://hordeling.aihorde.net/api/v1/"),
            max_lora_bytes: 400 << 20,
            max_embedding_bytes: 20 << 20,
            budget_bytes: 10 << 30,
            lookup: Duration::from_secs(15),
            download: Duration::from_secs(45),
        }
    }
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdHocKind {
    /// Low-rank adapter.
    Lora,
    /// Textual inversion.
    Embedding,
}

/// What a job asks for.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// Which of the two.
    pub kind: AdHocKind,
    /// As the client wrote it: a model id, with `is_version` a version id, or a name.
    pub name: &'a str,
    /// Is `name` the id of a version?
    pub is_version: bool,
    /// Family of the job's model; a LoRA of another one is refused. `None` takes any.
    pub baseline: Option<&'a Baseline>,
    /// May it be one that is flagged as not safe for work?
    pub nsfw: bool,
}

/// Why there is none. The job goes on without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdHocFailure {
    /// Nothing by this name.
    #[error("nothing is known by this name")]
    NotFound,
    /// For another family of models.
    #[error("made for `{found}`, the job's model is `{wanted}`")]
    BaselineMismatch { found: String, wanted: String },
    /// Larger than the owner allows.
    #[error("has {bytes} bytes, the limit is {limit}")]
    TooLarge { bytes: u64, limit: u64 },
    /// Nobody says what its bytes should be.
    #[error("has no sha256")]
    NoSum,
    /// Only offered as a pickle.
    #[error("is offered in no safe format")]
    NoSafeFormat,
    /// Flagged, and the worker is not for that.
    #[error("is flagged as not safe for work")]
    Nsfw,
    /// Everything in the cache is in use.
    #[error("there is no room for it")]
    NoRoom,
    /// The time budget ran out; what arrived is kept for the next time.
    #[error("did not arrive in time")]
    TimedOut,
    /// It could not be fetched or is not what it should be.
    #[error("{0}")]
    Fetch(String),
}

/// The cache and the way to fill it. Clones share both.
#[derive(Clone)]
pub struct AdHoc {
    settings: AdHocSettings,
    downloader: Downloader,
    cache: Arc<Mutex<Cache>>,
    dir: PathBuf,
}

impl AdHoc {
    /// Opens the cache below `dir` (the models directory's `lora` folder, say).
    pub fn open(dir: impl Into<PathBuf>, settings: AdHocSettings, downloader: Downloader) -> std::io::Result<Self> {
        let dir = dir.into();
        Ok(Self {
            cache: Arc::new(Mutex::new(Cache::open(&dir)?)),
            settings,
            downloader,
            dir,
        })
    }

    /// Has what a job asks for. The file stays while the returned value lives.
    ///
    /// # Cancellation
    /// May be dropped at any time; a begun download is resumed by the next call.
    pub async fn get(
        &self,
        wanted: &Wanted<'_>,
        progress: &dyn Progress,
        control: &Control,
    ) -> Result<Pinned, AdHocFailure> {
        // A version never changes, so what is there needs no question.
        let by_version = wanted.is_version.then(|| wanted.name.trim().parse().ok()).flatten();
        if let Some(entry) = by_version.and_then(|id| self.cache().by_version(wanted.kind, id)) {
            return self.hand_out(entry, wanted);
        }
        let lookup = tokio::time::timeout(self.settings.lookup, self.look_up(wanted)).await;
        let resolved = match lookup.unwrap_or(Err(AdHocFailure::TimedOut)) {
            Ok(resolved) => resolved,
            Err(failure @ (AdHocFailure::TimedOut | AdHocFailure::Fetch(_))) => {
                // The service is out of reach: an older version is better than none.
                let older = self.cache().by_name(wanted.kind, wanted.name);
                return older.map_or(Err(failure), |entry| self.hand_out(entry, wanted));
            }
            Err(failure) => return Err(failure),
        };
        check(wanted, resolved.baseline.as_ref(), resolved.nsfw)?;
        let there = self.cache().by_sum(wanted.kind, resolved.sha256);
        if let Some(mut entry) = there {
            entry.add_name(wanted.name);
            return self.hand_out(entry, wanted);
        }
        let limit = match wanted.kind {
            AdHocKind::Lora => self.settings.max_lora_bytes,
            AdHocKind::Embedding => self.settings.max_embedding_bytes,
        };
        if let Some(bytes) = resolved.size_bytes.filter(|bytes| *bytes > limit) {
            return Err(AdHocFailure::TooLarge { bytes, limit });
        }
        if !self
            .cache()
            .make_room(resolved.size_bytes.unwrap_or(0), self.settings.budget_bytes)
        {
            return Err(AdHocFailure::NoRoom);
        }
        let plan = FetchPlan {
            sha256: Some(resolved.sha256),
            max_bytes: limit.min(self.settings.budget_bytes),
            sources: vec![Source::Url {
                url: resolved.url.clone(),
            }],
            ..FetchPlan::new(
                format!(
                    "{} {}",
                    if wanted.kind == AdHocKind::Lora {
                        "LoRA"
                    } else {
                        "embedding"
                    },
                    resolved.version_id
                ),
                self.path(resolved.sha256),
            )
        };
        let fetched =
            tokio::time::timeout(self.settings.download, self.downloader.fetch(&plan, progress, control)).await;
        let fetched = match fetched {
            Err(_) => return Err(AdHocFailure::TimedOut),
            Ok(Err(FetchError::DiskFloor { .. } | FetchError::DiskFull { .. })) => return Err(AdHocFailure::NoRoom),
            Ok(Err(error)) => return Err(AdHocFailure::Fetch(error.to_string())),
            Ok(Ok(fetched)) => fetched,
        };
        // Nobody announces the size of an embedding.
        if resolved.size_bytes.is_none() && !self.cache().make_room(fetched.bytes, self.settings.budget_bytes) {
            let _ = std::fs::remove_file(&fetched.path);
            return Err(AdHocFailure::NoRoom);
        }
        let mut entry = Entry::new(wanted.kind, resolved, fetched.bytes);
        entry.add_name(wanted.name);
        self.hand_out(entry, wanted)
    }

    fn hand_out(&self, entry: Entry, wanted: &Wanted<'_>) -> Result<Pinned, AdHocFailure> {
        check(wanted, entry.baseline.as_ref(), entry.nsfw)?;
        let path = self.path(entry.sha256);
        if !path.is_file() {
            self.cache().forget(entry.kind, entry.sha256);
            return Err(AdHocFailure::Fetch(
                "the cached file is gone; it will be fetched anew".into(),
            ));
        }
        self.cache().touch(entry.clone());
        Ok(Pinned::new(entry, path, self.cache.clone()))
    }

    async fn look_up(&self, wanted: &Wanted<'_>) -> Result<Resolved, AdHocFailure> {
        match wanted.kind {
            AdHocKind::Lora => civitai::lora(&self.downloader, &self.settings, wanted.name, wanted.is_version).await,
            AdHocKind::Embedding => civitai::embedding(&self.downloader, &self.settings, wanted.name).await,
        }
    }

    fn path(&self, sum: Sha256Sum) -> PathBuf {
        self.dir.join(format!("{sum}.safetensors"))
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().expect("no holder of this lock panics")
    }
}

fn check(wanted: &Wanted<'_>, baseline: Option<&Baseline>, nsfw: bool) -> Result<(), AdHocFailure> {
    if nsfw && !wanted.nsfw {
        return Err(AdHocFailure::Nsfw);
    }
    match (wanted.baseline, baseline) {
        (Some(job), Some(found)) if !job.is_compatible_with(found) => Err(AdHocFailure::BaselineMismatch {
            found: found.to_string(),
            wanted: job.to_string(),
        }),
        _ => Ok(()),
    }
}
