//! The models directory: where files stand, which are there, and how the missing ones get there.

mod pull;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

pub use self::pull::PullError;
use crate::fetch::{FetchPlan, part::beside};
use crate::formats::Format;
use crate::formats::sandbox::Converter;
use crate::reference::{Kind, Model, ModelFile};
use crate::stamp::{Stamp, stamp_path};

/// A models directory in the layout of reGen's cache.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    converter: Converter,
}

/// What stands on disk of one file or model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There, and its sum was checked since it last changed.
    Verified,
    /// There in the right size; its sum was not checked yet.
    Present,
    /// A download was interrupted and will go on.
    Partial,
    /// Not there.
    Missing,
    /// There, but of another size or sum than the reference says.
    Corrupt,
}

/// What a check of one file found.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// The model's name.
    pub model: String,
    /// Where the file stands or would stand.
    pub path: PathBuf,
    /// What is there.
    pub state: State,
    /// Bytes on disk.
    pub bytes: u64,
    /// In words, where something is wrong.
    pub problem: Option<String>,
}

impl Store {
    /// The store at `root`. Nothing is created yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            converter: Converter::default(),
        }
    }

    /// Starts the reader of pickles by another command than this program's `models convert-pickle`.
    pub fn with_converter(mut self, converter: Converter) -> Self {
        self.converter = converter;
        self
    }

    /// The models directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of a kind.
    pub fn folder(&self, kind: Kind) -> PathBuf {
        self.root.join(kind.folder())
    }

    /// Where a file of a model stands or would stand.
    pub fn path_of(&self, model: &Model, file: &ModelFile) -> PathBuf {
        match &file.local_path {
            Some(path) => path.clone(),
            None => file.path.below(&self.folder(model.kind)),
        }
    }

    /// What is there of one file, without reading it.
    pub fn file_state(&self, model: &Model, file: &ModelFile) -> State {
        let path = self.path_of(model, file);
        let Ok(meta) = fs::metadata(&path) else {
            let begun = beside(&path, ".part").exists() && file.local_path.is_none();
            return if begun { State::Partial } else { State::Missing };
        };
        if file.size_bytes.is_some_and(|size| size != meta.len()) {
            return State::Corrupt;
        }
        match (Stamp::read(&path), file.sha256) {
            (Some(stamp), Some(expected)) if stamp.sha256 != expected => State::Corrupt,
            (Some(_), _) => State::Verified,
            (None, _) => State::Present,
        }
    }

    /// The worst state of all files of a model; `Missing` for a model without files.
    pub fn state(&self, model: &Model) -> State {
        let rank = |state: &State| match state {
            State::Verified => 0,
            State::Present => 1,
            State::Partial => 2,
            State::Missing => 3,
            State::Corrupt => 4,
        };
        model
            .files
            .iter()
            .map(|file| self.file_state(model, file))
            .max_by_key(rank)
            .unwrap_or(State::Missing)
    }

    /// Bytes that interrupted downloads of a model have left.
    pub fn partial_bytes(&self, model: &Model) -> u64 {
        use std::os::unix::fs::MetadataExt;
        let parts = model
            .files
            .iter()
            .map(|file| beside(&self.path_of(model, file), ".part"));
        parts
            .filter_map(|part| fs::metadata(part).ok())
            .map(|meta| meta.len().min(meta.blocks().saturating_mul(512)))
            .sum()
    }

    /// Paths of all files of a model, each with the right sum and a sound head, or the first that has not:
    /// ask this before an engine is given the files. Reads only what changed since the last check.
    pub fn verified_paths(&self, model: &Model) -> Result<Vec<PathBuf>, FileReport> {
        model
            .files
            .iter()
            .map(|file| match self.verify_file(model, file, false) {
                report if report.state == State::Verified => Ok(report.path),
                report => Err(report),
            })
            .collect()
    }

    /// Reads a file and compares it with the reference. `anew` ignores earlier checks.
    pub fn verify_file(&self, model: &Model, file: &ModelFile, anew: bool) -> FileReport {
        let path = self.path_of(model, file);
        let mut report = FileReport {
            model: model.name.clone(),
            bytes: fs::metadata(&path).map_or(0, |meta| meta.len()),
            state: self.file_state(model, file),
            path: path.clone(),
            problem: None,
        };
        if !matches!(report.state, State::Verified | State::Present | State::Corrupt) {
            return report;
        }
        let judged = if anew {
            Stamp::judge_anew(&path, file.sha256)
        } else {
            Stamp::judge(&path, file.sha256)
        };
        let mut fault = |problem: String| {
            report.state = State::Corrupt;
            report.problem = Some(problem);
        };
        match (judged, file.sha256) {
            (Err(error), _) => fault(format!("cannot be read: {error}")),
            (Ok((found, false)), Some(expected)) => fault(format!("has sha256 {found}, expected {expected}")),
            (Ok((found, false)), None) => fault(format!("has changed since it was put there: sha256 {found} now")),
            (Ok((_, true)), _) => match Format::of(&path).map_or(Ok(()), |format| format.precheck(&path)) {
                Err(refusal) => fault(refusal.to_string()),
                Ok(()) => report.state = State::Verified,
            },
        }
        report
    }

    /// The plan to fetch a file as it is.
    pub fn plan(&self, model: &Model, file: &ModelFile) -> FetchPlan {
        FetchPlan {
            sources: file.sources.clone(),
            size_bytes: file.size_bytes,
            sha256: file.sha256,
            ..FetchPlan::new(file.path.file_name(), self.path_of(model, file))
        }
    }

    /// Removes a model's files and what belongs to them; the owner's own files (`local_path`) stay. Returns bytes freed.
    pub fn remove(&self, model: &Model) -> io::Result<u64> {
        let mut freed = 0;
        for file in model.files.iter().filter(|file| file.local_path.is_none()) {
            let path = self.path_of(model, file);
            for path in [
                path.clone(),
                beside(&path, ".part"),
                beside(&path, ".part.json"),
                stamp_path(&path),
            ] {
                match fs::symlink_metadata(&path) {
                    Ok(meta) => {
                        fs::remove_file(&path)?;
                        // A link frees nothing but itself.
                        freed += if meta.is_file() { meta.len() } else { 0 };
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(freed)
    }
}
