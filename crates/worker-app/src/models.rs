//! `models …` for every worker: model files by name, fetched with progress and resume, looked at, checked and removed.

use std::io::Write;
use std::path::Path;

use model_store::command::{self, CommandError, ModelsCommand, Outcome};
use model_store::fetch::{Bars, Control, Downloader, FetchSettings, HttpSettings, JsonLines, Progress};
use model_store::reference::{Catalogue, Kind, load, local};
use model_store::store::{State, Store};

use crate::program::{Context, Program};
use crate::stop::Stop;

/// `models` as a verb: put it into a program's own commands as `Models(ModelsVerb)`.
#[derive(Debug, clap::Args)]
pub struct ModelsVerb {
    /// What to do
    #[command(subcommand)]
    command: ModelsCommand,
    /// Print JSON: progress as one object per line, the outcome as the last
    #[arg(long, global = true)]
    json: bool,
}

/// Runs the verb over the models of `kinds`: those of the references, those that come with the programs, and the owner's
/// `models.toml`, which replaces others of its names. The references' last copies in `references` of the models directory
/// (or the snapshots inside this program) are enough unless a name is unknown or the whole list is wanted.
pub fn run<P: Program>(verb: &ModelsVerb, kinds: &[Kind], context: &Context<P>) -> Result<(), Stop> {
    let (common, models_dir) = (&context.common, &context.models_dir);
    let store = Store::new(models_dir);
    let downloader = Downloader::new(FetchSettings {
        http: HttpSettings {
            proxy: common.proxy.clone(),
            ..HttpSettings::default()
        },
        ..FetchSettings::default()
    })
    .map_err(|error| Stop::failed(error.to_string()))?;
    let progress: Box<dyn Progress> = if verb.json {
        Box::new(JsonLines::new(std::io::stdout()))
    } else {
        Box::new(Bars::default())
    };
    let control = Control::default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Stop::failed(format!("the runtime cannot be started: {error}")))?;
    let references = models_dir.join("references");
    let with_files = with_files(kinds);
    let mut catalogue = catalogue(models_dir, kinds)?;
    let outcome = runtime.block_on(async {
        let on_interrupt = control.clone();
        // What has arrived is kept; the next pull goes on there.
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                on_interrupt.stop();
            }
        });
        // A Horde on this machine has no references.
        if !with_files.is_empty() && !common.is_on_loopback() && wants_news(&verb.command, &catalogue) {
            let settings = load::ReferenceSettings::default();
            let loaded = load::load(&with_files, &settings, &references, &downloader).await;
            for problem in &loaded.problems {
                tracing::debug!(problem, "a reference could not be had");
            }
            catalogue = with_own(loaded.catalogue, models_dir, kinds)?;
        }
        let place = command::Context {
            store: &store,
            catalogue: &catalogue,
            downloader: &downloader,
            progress: progress.as_ref(),
            control: &control,
        };
        command::run(&verb.command, place)
            .await
            .map_err(|error| stop(error, P::NAME))
    })?;
    let text = if verb.json {
        serde_json::to_string(&outcome).map_err(|error| Stop::failed(error.to_string()))? + "\n"
    } else if matches!(&outcome, Outcome::List(lines) if lines.is_empty()) {
        let program = P::NAME;
        format!("no models are on disk; `{program} models list --all` shows what can be pulled\n")
    } else {
        outcome.to_string()
    };
    // A reader that left is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    judged(&outcome, P::NAME)
}

/// The models of `kinds` that are known without asking anybody: the references' last copies, those that come with the
/// programs, and the owner's `models.toml`, which replaces others of its names.
///
/// # Errors
/// `models.toml` cannot be read.
pub fn catalogue(models_dir: &Path, kinds: &[Kind]) -> Result<Catalogue, Stop> {
    let known = load::load_offline(&with_files(kinds), &models_dir.join("references"));
    with_own(known, models_dir, kinds)
}

/// The text reference names models without saying where their files are.
fn with_files(kinds: &[Kind]) -> Vec<Kind> {
    kinds.iter().copied().filter(|kind| *kind != Kind::Text).collect()
}

fn with_own(mut all: Catalogue, models_dir: &Path, kinds: &[Kind]) -> Result<Catalogue, Stop> {
    all.merge(own(models_dir)?);
    Ok(of_kinds(&all, kinds))
}

/// Whether the references are worth asking: a name nobody here knows, or the whole list.
fn wants_news(command: &ModelsCommand, catalogue: &Catalogue) -> bool {
    match command {
        ModelsCommand::List { all } => *all,
        ModelsCommand::Pull { names } => names.iter().any(|name| catalogue.find(name).is_none()),
        _ => false,
    }
}

fn own(models_dir: &Path) -> Result<Catalogue, Stop> {
    let path = models_dir.join("models.toml");
    match std::fs::read_to_string(&path) {
        Ok(text) => local::parse(&text).map_err(|error| {
            Stop::config(format!("`{}`: {error}", path.display()))
                .hint("correct it, or move it away; `models import` prints lines that fit in")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Catalogue::default()),
        Err(error) => Err(Stop::config(format!("`{}`: {error}", path.display()))),
    }
}

fn of_kinds(all: &Catalogue, kinds: &[Kind]) -> Catalogue {
    let mut wanted = Catalogue::default();
    let models = all.models().filter(|model| kinds.contains(&model.kind));
    models.for_each(|model| wanted.insert(model.clone()));
    wanted
}

fn stop(error: CommandError, program: &str) -> Stop {
    let stop = match &error {
        CommandError::Unknown { .. } => Stop::no_model(error.to_string()),
        CommandError::Pull { .. } | CommandError::Io(_) => Stop::failed(error.to_string()),
    };
    let hint = match error {
        CommandError::Unknown { similar: None, .. } => Some(format!("`{program} models list --all` shows all names")),
        error => error.hint(),
    };
    match hint {
        Some(hint) => stop.hint(hint),
        None => stop,
    }
}

/// A check that found something wrong is a failure for whoever called it from a script.
fn judged(outcome: &Outcome, program: &str) -> Result<(), Stop> {
    match outcome {
        Outcome::Verify(reports) => {
            let bad = |state| !matches!(state, State::Verified | State::Present);
            match reports.iter().filter(|report| bad(report.state)).count() {
                0 => Ok(()),
                bad => Err(
                    Stop::failed(format!("{bad} of {} files are not as they should be", reports.len())).hint(format!(
                        "`{program} models pull NAME` fetches what is missing or broken"
                    )),
                ),
            }
        }
        Outcome::Converted(code) if *code != 0 => Err(Stop::failed("the checkpoint was not converted")),
        _ => Ok(()),
    }
}
