//! What scribe adds to the verbs of all workers.

use clap::Subcommand;
use model_store::reference::Kind;
use worker_app::models::ModelsVerb;
use worker_app::{Context, Stop};

use crate::calibration::{Calibrations, Record, now_unix_ms};
use crate::program::Scribe;

/// Scribe's own verbs.
#[derive(Debug, Subcommand)]
pub enum ScribeCommand {
    /// Fetch, list, verify and remove models
    ///
    /// Names are those that come with scribe and those of `models.toml` in the models directory.
    Models(ModelsVerb),
    /// Show the measured speeds that starts rely on, or forget them
    ///
    /// The embedded engine is measured at its first start with a model, a device and settings; later starts take over what
    /// was found until one of these, or the program itself, changes.
    Calibration {
        /// Forget them: the next start measures anew
        #[arg(long)]
        forget: bool,
    },
}

/// Runs one of scribe's own verbs.
pub(crate) fn run(command: &ScribeCommand, context: &Context<Scribe>) -> Result<(), Stop> {
    match command {
        ScribeCommand::Models(verb) => worker_app::models::run(verb, &[Kind::Text], context),
        ScribeCommand::Calibration { forget } => {
            let all = Calibrations::all(&context.state_dir);
            if all.is_empty() {
                println!("nothing is known yet: the first start measures");
            }
            all.iter()
                .try_for_each(|calibrations| calibration(calibrations, *forget))
        }
    }
}

fn calibration(calibrations: &Calibrations, forget: bool) -> Result<(), Stop> {
    let records = calibrations.read();
    if forget {
        calibrations
            .forget()
            .map_err(|error| Stop::failed(format!("what was measured cannot be removed: {error}")))?;
    }
    match records {
        Ok(records) => records.iter().for_each(|record| {
            println!("{}{}", if forget { "forgotten: " } else { "" }, line(record));
        }),
        Err(why) => println!(
            "{}: cannot be used and counts for nothing ({why})",
            calibrations.device()
        ),
    }
    Ok(())
}

fn line(Record { setup, measured }: &Record) -> String {
    let minutes = now_unix_ms().saturating_sub(measured.unix_ms) / 60_000;
    let age = match (minutes / (24 * 60), minutes / 60) {
        (0, 0) => format!("{minutes} minutes"),
        (0, hours) => format!("{hours} hours"),
        (days, _) => format!("{days} days"),
    };
    format!(
        "{}: `{}`: {} jobs at once in {} tokens each write {} tokens/s each and read {} tokens/s; measured {age} ago",
        setup.device,
        setup.model.path.file_name().unwrap_or_default().to_string_lossy(),
        measured.slots,
        setup.llama.context_tokens,
        measured.write_per_second,
        measured.read_per_second,
    )
}
