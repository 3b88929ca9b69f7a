//! `models …` for every worker: model files by name, fetched with progress and resume, looked at, checked and removed.

use std::io::Write;
use std::path::Path;

use model_store::command::{self, CommandError, ModelsCommand, Outcome};
use model_store::fetch::{Bars, Control, Downloader, FetchSettings, HttpSettings, JsonLines, Progress};
use model_store::reference::{Catalogue, Kind, load, local};
use model_store::store::{State, Store};
use model_store::token::HostToken;

use crate::config::Common;
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

/// Models of these kinds that are known without asking anybody: the references' last copies in `references` of the
/// models directory (or the snapshots inside this program), those that come with the programs, and the owner's
/// `models.toml`, which comes last and replaces others of its names.
pub fn known(kinds: &[Kind], models_dir: &Path) -> Result<Catalogue, Stop> {
    let mut all = load::load_offline(kinds, &references(models_dir));
    all.merge(own(models_dir)?);
    Ok(of_kinds(&all, kinds))
}

/// Where copies of references are kept.
pub fn references(models_dir: &Path) -> std::path::PathBuf {
    models_dir.join("references")
}

/// A downloader by the owner's proxy, with secrets for the hosts they belong to.
pub fn downloader(common: &Common, tokens: Vec<HostToken>) -> Result<Downloader, Stop> {
    Downloader::new(FetchSettings {
        http: HttpSettings {
            proxy: common.proxy.clone(),
            tokens,
            // Whoever serves a Horde on this machine may have a mirror of the models here too.
            private_network: common.is_on_loopback(),
            ..HttpSettings::default()
        },
        ..FetchSettings::default()
    })
    .map_err(|error| Stop::failed(error.to_string()))
}

/// Runs the verb over the models of `kinds`; the references are asked for anew first, unless only what is there is wanted.
pub fn run(verb: &ModelsVerb, kinds: &[Kind], common: &Common, tokens: Vec<HostToken>) -> Result<(), Stop> {
    let store = Store::new(&common.models_dir);
    let downloader = downloader(common, tokens)?;
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
    let mut catalogue = known(kinds, &common.models_dir)?;
    let outcome = runtime.block_on(async {
        let on_interrupt = control.clone();
        // What has arrived is kept; the next pull goes on there.
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                on_interrupt.stop();
            }
        });
        if wants_news(&verb.command, kinds, &catalogue, common) {
            let settings = load::ReferenceSettings::default();
            let loaded = load::load(kinds, &settings, &references(&common.models_dir), &downloader).await;
            for problem in &loaded.problems {
                tracing::debug!(problem, "a reference could not be had");
            }
            catalogue = of_kinds(&loaded.catalogue, kinds);
            catalogue.merge(of_kinds(&own(&common.models_dir)?, kinds));
        }
        let place = command::Context {
            store: &store,
            catalogue: &catalogue,
            downloader: &downloader,
            progress: progress.as_ref(),
            control: &control,
        };
        command::run(&verb.command, place).await.map_err(stop)
    })?;
    let text = if verb.json {
        serde_json::to_string(&outcome).map_err(|error| Stop::failed(error.to_string()))? + "\n"
    } else {
        outcome.to_string()
    };
    // A reader that left is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    judged(&outcome)
}

/// Whether the references are worth asking: a name nobody here knows, or the whole list. Never for a Horde on this
/// machine, which has none.
fn wants_news(command: &ModelsCommand, kinds: &[Kind], catalogue: &Catalogue, common: &Common) -> bool {
    let unknown = |names: &[String]| names.iter().any(|name| catalogue.find(name).is_none());
    // The text reference names models without saying where their files are.
    let helps = kinds.iter().any(|kind| *kind != Kind::Text);
    helps
        && !common.is_on_loopback()
        && match command {
            ModelsCommand::List { all } => *all,
            ModelsCommand::Pull { names } => unknown(names),
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

/// Models of these kinds that have files.
fn of_kinds(all: &Catalogue, kinds: &[Kind]) -> Catalogue {
    let mut wanted = Catalogue::default();
    let models = all
        .models()
        .filter(|model| kinds.contains(&model.kind) && !model.files.is_empty());
    models.for_each(|model| wanted.insert(model.clone()));
    wanted
}

fn stop(error: CommandError) -> Stop {
    let stop = match &error {
        CommandError::Unknown { .. } => Stop::no_model(error.to_string()),
        CommandError::Pull { .. } | CommandError::Io(_) => Stop::failed(error.to_string()),
    };
    match error.hint() {
        Some(hint) => stop.hint(hint),
        None => stop,
    }
}

/// A check that found something wrong is a failure for whoever called it from a script.
fn judged(outcome: &Outcome) -> Result<(), Stop> {
    match outcome {
        Outcome::Verify(reports) => {
            let bad = |state| !matches!(state, State::Verified | State::Present);
            match reports.iter().filter(|report| bad(report.state)).count() {
                0 => Ok(()),
                bad => Err(
                    Stop::failed(format!("{bad} of {} files are not as they should be", reports.len()))
                        .hint("`models pull NAME` fetches what is missing or broken"),
                ),
            }
        }
        Outcome::Converted(code) if *code != 0 => Err(Stop::failed("the checkpoint was not converted")),
        _ => Ok(()),
    }
}
