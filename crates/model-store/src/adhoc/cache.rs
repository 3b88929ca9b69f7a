//! What of LoRAs and embeddings is on disk: an index beside files that are named by their sums.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::AdHocKind;
use super::civitai::Resolved;
use crate::digest::Sha256Sum;
use crate::fetch::part::beside;
use crate::reference::Baseline;
use crate::stamp::stamp_path;

/// Most names kept for one file.
const MAX_NAMES: usize = 16;

/// One file and what is known about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub kind: AdHocKind,
    pub sha256: Sha256Sum,
    pub version_id: u64,
    pub model_id: Option<u64>,
    pub title: String,
    pub triggers: Vec<String>,
    pub baseline: Option<Baseline>,
    pub nsfw: bool,
    bytes: u64,
    /// What jobs called it; compared, never opened.
    names: Vec<String>,
    last_used: u64,
}

impl Entry {
    pub(super) fn new(kind: AdHocKind, resolved: Resolved, bytes: u64) -> Self {
        Self {
            kind,
            sha256: resolved.sha256,
            version_id: resolved.version_id,
            model_id: resolved.model_id,
            title: resolved.title,
            triggers: resolved.triggers,
            baseline: resolved.baseline,
            nsfw: resolved.nsfw,
            bytes,
            names: Vec::new(),
            last_used: 0,
        }
    }

    pub(super) fn add_name(&mut self, name: &str) {
        if name.len() <= 255 && self.names.len() < MAX_NAMES && !self.names.iter().any(|known| known == name) {
            self.names.push(name.to_owned());
        }
    }
}

/// A file in use. It cannot be evicted while this lives.
pub struct Pinned {
    entry: Entry,
    path: PathBuf,
    cache: Arc<Mutex<Cache>>,
}

impl Pinned {
    pub(super) fn new(entry: Entry, path: PathBuf, cache: Arc<Mutex<Cache>>) -> Self {
        *cache
            .lock()
            .expect("no holder of this lock panics")
            .pins
            .entry(entry.sha256)
            .or_insert(0) += 1;
        Self { entry, path, cache }
    }

    /// The safetensors file, with the right sum and a sound head.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// CivitAI's id of the version.
    pub fn version_id(&self) -> u64 {
        self.entry.version_id
    }

    /// CivitAI's id of the model, where known.
    pub fn model_id(&self) -> Option<u64> {
        self.entry.model_id
    }

    /// Its title for people.
    pub fn title(&self) -> &str {
        &self.entry.title
    }

    /// Words it was trained on, for `inject_trigger`.
    pub fn triggers(&self) -> &[String] {
        &self.entry.triggers
    }

    /// Its family, where known.
    pub fn baseline(&self) -> Option<&Baseline> {
        self.entry.baseline.as_ref()
    }
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned")
            .field("version_id", &self.entry.version_id)
            .field("path", &self.path)
            .finish()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Ok(mut cache) = self.cache.lock()
            && let Some(count) = cache.pins.get_mut(&self.entry.sha256)
        {
            *count = count.saturating_sub(1);
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    dir: PathBuf,
    entries: Vec<Entry>,
    pins: HashMap<Sha256Sum, usize>,
    clock: u64,
}

impl Cache {
    /// Reads the index; entries without a file are dropped, files without an entry are left to [`Self::make_room`].
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let text = fs::read(dir.join("index.json")).unwrap_or_default();
        let mut entries: Vec<Entry> = serde_json::from_slice(&text).unwrap_or_default();
        entries.retain(|entry| dir.join(format!("{}.safetensors", entry.sha256)).is_file());
        Ok(Self {
            dir: dir.to_owned(),
            clock: entries.iter().map(|entry| entry.last_used).max().unwrap_or(0),
            entries,
            pins: HashMap::new(),
        })
    }

    pub(super) fn by_version(&self, kind: AdHocKind, id: u64) -> Option<Entry> {
        self.entries
            .iter()
            .find(|entry| entry.kind == kind && entry.version_id == id)
            .cloned()
    }

    pub(super) fn by_sum(&self, kind: AdHocKind, sum: Sha256Sum) -> Option<Entry> {
        self.entries
            .iter()
            .find(|entry| entry.kind == kind && entry.sha256 == sum)
            .cloned()
    }

    pub(super) fn by_name(&self, kind: AdHocKind, name: &str) -> Option<Entry> {
        let named = self
            .entries
            .iter()
            .filter(|entry| entry.kind == kind && entry.names.iter().any(|known| known == name));
        named.max_by_key(|entry| entry.last_used).cloned()
    }

    /// Notes a use and saves the index.
    pub(super) fn touch(&mut self, mut entry: Entry) {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        // Strictly growing, so that uses within one second keep their order.
        self.clock = now.max(self.clock + 1);
        entry.last_used = self.clock;
        self.entries
            .retain(|other| (other.kind, other.sha256) != (entry.kind, entry.sha256));
        self.entries.push(entry);
        self.save();
    }

    pub(super) fn forget(&mut self, kind: AdHocKind, sum: Sha256Sum) {
        self.entries.retain(|entry| (entry.kind, entry.sha256) != (kind, sum));
        self.save();
    }

    /// Removes the least recently used files that nobody uses until `bytes` more fit into `budget`.
    pub(super) fn make_room(&mut self, bytes: u64, budget: u64) -> bool {
        loop {
            let held: u64 = self.entries.iter().map(|entry| entry.bytes).sum();
            if held.saturating_add(bytes) <= budget {
                return true;
            }
            let free = |entry: &&Entry| self.pins.get(&entry.sha256).is_none_or(|count| *count == 0);
            let Some(oldest) = self.entries.iter().filter(free).min_by_key(|entry| entry.last_used) else {
                return false;
            };
            let (kind, sum) = (oldest.kind, oldest.sha256);
            let path = self.dir.join(format!("{sum}.safetensors"));
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "could not remove a cached file");
                return false;
            }
            let _ = fs::remove_file(stamp_path(&path));
            self.forget(kind, sum);
        }
    }

    fn save(&self) {
        let index = self.dir.join("index.json");
        let temporary = beside(&index, ".new");
        let saved = serde_json::to_vec(&self.entries)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&temporary, text))
            .and_then(|()| fs::rename(&temporary, &index));
        if let Err(error) = saved {
            tracing::warn!(%error, "could not save the index of LoRAs");
        }
    }
}
