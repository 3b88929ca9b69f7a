//! What scribe adds to the verbs of all workers.

use clap::Subcommand;
use model_store::reference::Kind;
use worker_app::models::ModelsVerb;
use worker_app::{Context, Stop};

use crate::program::Scribe;

/// Scribe's own verbs.
#[derive(Debug, Subcommand)]
pub enum ScribeCommand {
    /// Fetch, list, verify and remove models
    ///
    /// Names are those that come with scribe and those of `models.toml` in the models directory.
    Models(ModelsVerb),
}

/// Runs one of scribe's own verbs.
pub(crate) fn run(command: &ScribeCommand, context: &Context<Scribe>) -> Result<(), Stop> {
    let ScribeCommand::Models(verb) = command;
    worker_app::models::run(verb, &[Kind::Text], context)
}
