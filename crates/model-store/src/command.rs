//! `models list|pull|verify|remove|import` as a clap subcommand and as functions that return plain data.

use std::fmt;
use std::path::PathBuf;

use clap::Subcommand;
use indicatif::HumanBytes;
use serde::Serialize;

use crate::fetch::{Control, Downloader, Fetched, Progress};
use crate::import::{self, ImportReport};
use crate::reference::{Catalogue, Kind, Model};
use crate::store::{FileReport, PullError, State, Store};

/// What can be done with models.
#[derive(Clone, Debug, Subcommand)]
pub enum ModelsCommand {
    /// Show models with size and state
    List {
        /// Also those that are not on disk
        #[arg(long)]
        all: bool,
    },
    /// Fetch models; what is there and right is left alone
    Pull {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Read files again and compare them with the reference
    Verify {
        /// Names; none for all that are on disk
        names: Vec<String>,
    },
    /// Remove models from disk
    Remove {
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Find models in another program's folder (reGen, ComfyUI, A1111, KoboldCpp, Ollama, LM Studio) and link them
    Import {
        /// Folder
        dir: PathBuf,
    },
    /// Standard input is a checkpoint, standard output becomes safetensors; end with `formats::sandbox::child_main`
    #[command(hide = true)]
    ConvertPickle,
}

/// What a command works on.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The models directory.
    pub store: &'a Store,
    /// All known models.
    pub catalogue: &'a Catalogue,
    /// Fetches what is missing.
    pub downloader: &'a Downloader,
    /// Where progress goes.
    pub progress: &'a dyn Progress,
    /// Pauses and stops.
    pub control: &'a Control,
}

/// The outcome as data (`--json`) and, by `Display`, for people.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "command", content = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// One line per model.
    List(Vec<ListLine>),
    /// Files of all pulled models.
    Pull(Vec<Fetched>),
    /// One report per file.
    Verify(Vec<FileReport>),
    /// Bytes freed, per model.
    Remove(Vec<(String, u64)>),
    /// What was found.
    Import(ImportReport),
    /// Exit code of the converter.
    Converted(i32),
}

/// One model in the list.
#[derive(Clone, Debug, Serialize)]
pub struct ListLine {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Its family.
    pub baseline: Option<String>,
    /// What is on disk.
    pub state: State,
    /// Size of all files, where known.
    pub size_bytes: Option<u64>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Nobody knows the name.
    #[error("no model `{name}`")]
    Unknown {
        /// As typed.
        name: String,
        /// The nearest known name.
        similar: Option<String>,
    },
    /// A model could not be had.
    #[error("{model}: {source}")]
    Pull {
        /// Its name.
        model: String,
        /// Why.
        #[source]
        source: PullError,
    },
    /// The file system said no.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl CommandError {
    /// What the owner may try.
    pub fn hint(&self) -> Option<String> {
        match self {
            CommandError::Unknown {
                similar: Some(similar), ..
            } => Some(format!("did you mean `{similar}`?")),
            CommandError::Unknown { similar: None, .. } => Some("`models list --all` shows all names".into()),
            CommandError::Pull { source, .. } => source.hint(),
            CommandError::Io(_) => None,
        }
    }
}

/// Runs one command.
pub async fn run(command: &ModelsCommand, context: Context<'_>) -> Result<Outcome, CommandError> {
    match command {
        ModelsCommand::List { all } => Ok(Outcome::List(list(context.store, context.catalogue, *all))),
        ModelsCommand::Pull { names } => pull(names, context).await.map(Outcome::Pull),
        ModelsCommand::Verify { names } => verify(names, context).map(Outcome::Verify),
        ModelsCommand::Remove { names } => {
            let models = find_all(names, context.catalogue)?;
            let freed = models
                .into_iter()
                .map(|model| Ok((model.name.clone(), context.store.remove(model)?)));
            Ok(Outcome::Remove(freed.collect::<Result<_, std::io::Error>>()?))
        }
        ModelsCommand::Import { dir } => {
            let mut on_file = |path: &std::path::Path| tracing::info!(path = %path.display(), "reading");
            Ok(Outcome::Import(import::import(
                dir,
                context.catalogue,
                context.store,
                &mut on_file,
            )?))
        }
        ModelsCommand::ConvertPickle => Ok(Outcome::Converted(crate::formats::sandbox::child_main())),
    }
}

/// Models with what is on disk of them; without `all` only those of which something is.
pub fn list(store: &Store, catalogue: &Catalogue, all: bool) -> Vec<ListLine> {
    let lines = catalogue.models().map(|model| ListLine {
        name: model.name.clone(),
        kind: model.kind,
        baseline: model.baseline.as_ref().map(ToString::to_string),
        state: store.state(model),
        size_bytes: model.size_bytes,
    });
    lines.filter(|line| all || line.state != State::Missing).collect()
}

/// Has all named models, one after the other; unknown names are found before anything is fetched.
pub async fn pull(names: &[String], context: Context<'_>) -> Result<Vec<Fetched>, CommandError> {
    let mut fetched = Vec::new();
    for model in find_all(names, context.catalogue)? {
        let files = context
            .store
            .pull(model, context.downloader, context.progress, context.control)
            .await;
        fetched.extend(files.map_err(|source| CommandError::Pull {
            model: model.name.clone(),
            source,
        })?);
    }
    Ok(fetched)
}

fn verify(names: &[String], context: Context<'_>) -> Result<Vec<FileReport>, CommandError> {
    let models: Vec<&Model> = if names.is_empty() {
        context
            .catalogue
            .models()
            .filter(|model| context.store.state(model) != State::Missing)
            .collect()
    } else {
        find_all(names, context.catalogue)?
    };
    let files = models
        .into_iter()
        .flat_map(|model| model.files.iter().map(move |file| (model, file)));
    Ok(files
        .map(|(model, file)| context.store.verify_file(model, file, true))
        .collect())
}

fn find_all<'a>(names: &[String], catalogue: &'a Catalogue) -> Result<Vec<&'a Model>, CommandError> {
    let find = |name: &String| {
        catalogue.find(name).ok_or_else(|| CommandError::Unknown {
            name: name.clone(),
            similar: catalogue.similar(name).first().map(|similar| (*similar).to_owned()),
        })
    };
    names.iter().map(find).collect()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::List(lines) if lines.is_empty() => {
                writeln!(f, "no models are on disk; `models list --all` shows what can be pulled")
            }
            Outcome::List(lines) => lines.iter().try_for_each(|line| {
                let size = line
                    .size_bytes
                    .map_or_else(String::new, |bytes| HumanBytes(bytes).to_string());
                writeln!(
                    f,
                    "{:<9} {:>11}  {:<20} {}",
                    state_word(line.state),
                    size,
                    line.kind.folder(),
                    line.name
                )
            }),
            Outcome::Pull(files) => files.iter().try_for_each(|file| writeln!(f, "{}", file.path.display())),
            Outcome::Verify(reports) => reports.iter().try_for_each(|report| {
                let problem = report.problem.as_deref().unwrap_or("");
                writeln!(f, "{:<9} {} {problem}", state_word(report.state), report.path.display())
            }),
            Outcome::Remove(freed) => freed
                .iter()
                .try_for_each(|(name, bytes)| writeln!(f, "removed {name}: {} freed", HumanBytes(*bytes))),
            Outcome::Import(report) => {
                for linked in &report.linked {
                    let how = if linked.converted { "converted" } else { "linked" };
                    writeln!(f, "{how} {}: {}", linked.model, linked.from.display())?;
                }
                for name in &report.already_there {
                    writeln!(f, "already there: {name}")?;
                }
                for unknown in &report.unknown {
                    writeln!(
                        f,
                        "in no reference: {}; lines for models.toml:\n{}",
                        unknown.path.display(),
                        unknown.models_toml
                    )?;
                }
                report
                    .problems
                    .iter()
                    .try_for_each(|problem| writeln!(f, "problem: {problem}"))
            }
            Outcome::Converted(_) => Ok(()),
        }
    }
}

fn state_word(state: State) -> &'static str {
    match state {
        State::Verified => "verified",
        State::Present => "present",
        State::Partial => "partial",
        State::Missing => "missing",
        State::Corrupt => "corrupt",
    }
}
