//! What makes the alchemist a program: its section, its checks, its files.

use clap::Subcommand;
use model_store::reference::Kind;
use serde_json::Value;
use worker_app::models::ModelsVerb;
use worker_app::{Check, Choice, Common, Context, DeviceFound, Program, Stop};

use crate::backend::{AlchemyBackend, BackendSettings};
use crate::config::Config;
use crate::engine::{AlchemyEngine, EngineSettings};
use crate::forms;

/// The alchemist.
pub struct Alchemist;

/// The alchemist's own verbs.
#[derive(Debug, Subcommand)]
pub enum AlchemistCommand {
    /// Fetch, list, verify and remove the files that forms need
    ///
    /// Names are those of the Horde's references, those that come with the workers, and those of `models.toml` in the
    /// models directory.
    Models(ModelsVerb),
}

/// Kinds of files that forms need.
const KINDS: [Kind; 7] = [
    Kind::Clip,
    Kind::Blip,
    Kind::Esrgan,
    Kind::Gfpgan,
    Kind::Codeformer,
    Kind::SafetyChecker,
    Kind::Miscellaneous,
];

impl Program for Alchemist {
    const NAME: &'static str = "alchemist";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str = "Upscales, repairs, cuts out and describes pictures for the AI Horde.";
    const UNIT: &'static str = "tiles";
    const FAULTS_PER_HOUR: usize = 50;
    const CONFIG_FILE: &'static str = include_str!("../../../configs/alchemist.toml");
    const MODELS_KEY: &'static str = "forms";

    type Config = Config;
    type Backend = AlchemyBackend;
    type Engine = AlchemyEngine;
    type Command = AlchemistCommand;

    fn check(config: &Config, _common: &Common) -> Result<(), Stop> {
        let known = forms::KNOWN.each_ref().map(|f| f.as_str()).join(", ");
        config
            .check()
            .map_err(|message| Stop::config(message).hint(format!("Forms this worker can do: {known}")))
    }

    fn models(context: &Context<Self>) -> Result<(), Stop> {
        let (found, missing) = forms::installed(&context.config.forms, &context.models_dir);
        if found.is_empty() {
            let folder = context.models_dir.display();
            return Err(Stop::no_model(format!("no form has all its files in `{folder}`"))
                .hint("`alchemist doctor` names the files that each form needs"));
        }
        // Without a wish everything is optional.
        for (form, path) in missing.iter().filter(|_| !context.config.forms.is_empty()) {
            tracing::warn!(form = form.as_str(), missing = %path.display(), "a form is not offered");
        }
        Ok(())
    }

    fn backend(context: &Context<Self>) -> Result<AlchemyBackend, Stop> {
        let settings = BackendSettings {
            name: context.common.worker_name.to_string(),
            bridge_agent: context.common.bridge_agent.to_string(),
            priority_usernames: context.common.priority_usernames.clone(),
            max_tiles: context.config.max_tiles,
        };
        Ok(AlchemyBackend::new(settings, context.client.clone()))
    }

    fn engine_config(context: &Context<Self>, _device: &str) -> Result<Value, Stop> {
        let settings = EngineSettings {
            models_dir: context.models_dir.clone(),
            cache_dir: context.state_dir.join("words"),
            forms: context.config.forms.clone(),
            max_tiles: context.config.max_tiles,
            threads: context.config.threads,
            nsfw_threshold: context.config.nsfw_threshold as f32,
        };
        serde_json::to_value(settings)
            .map_err(|e| Stop::failed(format!("the engine's settings cannot be written: {e}")))
    }

    fn engine(config: Value, device: &str) -> Result<AlchemyEngine, Stop> {
        vision::allocator::keep_freed();
        let device = vision::device::open(device).map_err(|error| {
            Stop::no_device(format!("the device `{device}` cannot be used: {error}"))
                .hint("`alchemist doctor` lists the devices; `cpu` is always there")
        })?;
        let settings: EngineSettings = serde_json::from_value(config)
            .map_err(|e| Stop::failed(format!("the engine's settings cannot be read: {e}")))?;
        let engine = AlchemyEngine::new(settings, device);
        if engine.forms().next().is_none() {
            return Err(Stop::no_model("no form's files can be read"));
        }
        Ok(engine)
    }

    fn devices() -> Vec<DeviceFound> {
        let found = vision::device::found().into_iter();
        found
            .map(|device| DeviceFound {
                name: device.name,
                description: device.description,
                memory_bytes: None,
            })
            .collect()
    }

    fn doctor(context: &Context<Self>) -> Vec<Check> {
        let (found, missing) = forms::installed(&context.config.forms, &context.models_dir);
        let served = found
            .iter()
            .map(|(form, _)| Check::ok(form.as_str(), "its files are there"));
        let others = missing
            .iter()
            .map(|(form, path)| Check::warn(form.as_str(), format!("not offered: `{}` is missing", path.display())));
        served.chain(others).collect()
    }

    fn choices(context: &Context<Self>) -> Vec<Choice> {
        let (found, missing) = forms::installed(&[], &context.models_dir);
        let ready = found.iter().map(|(form, _)| (form, "ready"));
        let absent = missing.iter().map(|(form, _)| (form, "its files are not there yet"));
        ready
            .chain(absent)
            .map(|(form, state)| Choice {
                name: form.as_str().into(),
                description: state.into(),
            })
            .collect()
    }

    fn command(command: AlchemistCommand, context: &Context<Self>) -> Result<(), Stop> {
        let AlchemistCommand::Models(verb) = command;
        worker_app::models::run(&verb, &KINDS, context)
    }
}
