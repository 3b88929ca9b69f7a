//! `scribe models …`: GGUF files by name, fetched, looked at, checked and removed.

use std::io::Write;
use std::path::Path;

use clap::Subcommand;
use model_store::command::{self, CommandError, ModelsCommand, Outcome};
use model_store::fetch::{Bars, Control, Downloader, FetchSettings, HttpSettings, JsonLines, Progress};
use model_store::reference::{Catalogue, Kind, local};
use model_store::store::{State, Store};
use worker_app::{Context, Stop};

use crate::program::Scribe;

/// What scribe adds to the verbs of all workers.
#[derive(Debug, Subcommand)]
pub enum ScribeCommand {
    /// Fetch, list, verify and remove models
    ///
    /// Names are those that come with scribe and those of `models.toml` in the models directory.
    Models {
        /// What to do
        #[command(subcommand)]
        command: ModelsCommand,
        /// Print JSON: progress as one object per line, the outcome as the last
        #[arg(long, global = true)]
        json: bool,
    },
}

/// Runs one of scribe's own verbs.
pub(crate) fn run(command: &ScribeCommand, context: &Context<Scribe>) -> Result<(), Stop> {
    let ScribeCommand::Models { command, json } = command;
    let catalogue = catalogue(&context.models_dir)?;
    let store = Store::new(&context.models_dir);
    let downloader = Downloader::new(FetchSettings {
        http: HttpSettings {
            proxy: context.common.proxy.clone(),
            ..HttpSettings::default()
        },
        ..FetchSettings::default()
    })
    .map_err(|error| Stop::failed(error.to_string()))?;
    let progress: Box<dyn Progress> = if *json {
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
    let outcome = runtime.block_on(async {
        let on_interrupt = control.clone();
        // What has arrived is kept; the next pull goes on there.
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                on_interrupt.stop();
            }
        });
        let place = command::Context {
            store: &store,
            catalogue: &catalogue,
            downloader: &downloader,
            progress: progress.as_ref(),
            control: &control,
        };
        command::run(command, place).await
    });
    let outcome = outcome.map_err(stop)?;
    let text = if *json {
        serde_json::to_string(&outcome).map_err(|error| Stop::failed(error.to_string()))? + "\n"
    } else {
        outcome.to_string()
    };
    // A reader that left is no error.
    let _ = std::io::stdout().write_all(text.as_bytes());
    judged(&outcome)
}

/// Text models that come with the program, then the owner's own.
fn catalogue(models_dir: &Path) -> Result<Catalogue, Stop> {
    let mut all = local::builtin();
    let path = models_dir.join("models.toml");
    match std::fs::read_to_string(&path) {
        Ok(text) => all.merge(local::parse(&text).map_err(|error| {
            Stop::config(format!("`{}`: {error}", path.display()))
                .hint("correct it, or move it away; `models import` prints lines that fit in")
        })?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Stop::config(format!("`{}`: {error}", path.display()))),
    }
    let mut texts = Catalogue::default();
    all.of_kind(Kind::Text).for_each(|model| texts.insert(model.clone()));
    Ok(texts)
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
                        .hint("`scribe models pull NAME` fetches what is missing or broken"),
                ),
            }
        }
        Outcome::Converted(code) if *code != 0 => Err(Stop::failed("the checkpoint was not converted")),
        _ => Ok(()),
    }
}
