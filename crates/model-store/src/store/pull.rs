//! How missing files get there: fetched or found, converted where needed, checked, and only then under their name.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{State, Store};
use crate::digest::Sha256Sum;
use crate::fetch::{Control, Downloader, Event, FetchError, FetchPlan, Fetched, Progress, io_error, part::beside};
use crate::formats::convert::Conversion;
use crate::formats::sandbox::Converter;
use crate::formats::{Format, Refusal};
use crate::reference::{Model, ModelFile};
use crate::stamp::{Stamp, stamp_path};

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
        let inputs_dir = self.inputs_dir(model);
        for dir in [&self.folder(model.kind), &inputs_dir] {
            let _ = fs::remove_dir_all(dir.join(crate::fetch::wheel::WHEELS));
        }
        let _ = fs::remove_dir(&inputs_dir);
        Ok(fetched)
    }

    /// Where what files are made of waits.
    fn inputs_dir(&self, model: &Model) -> PathBuf {
        self.folder(model.kind).join(".inputs")
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
        let inputs_dir = self.inputs_dir(model);
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
        if let Some(format) = Format::of(dest) {
            format.precheck(&temporary)?;
        }
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
