//! What makes the alchemist a program: its section, its checks, its files.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::Subcommand;
use horde_client::alchemy::Form;
use model_store::reference::Kind;
use model_store::trust::Trust;
use serde_json::Value;
use worker_app::models::ModelsVerb;
use worker_app::{Check, Choice, Common, Context, DeviceFound, Program, Stop, nearest};

use crate::backend::{AlchemyBackend, BackendSettings};
use crate::config::Config;
use crate::engine::{AlchemyEngine, EngineSettings};
use crate::fit::{self, Machine, Needs};
use crate::forms::{self, Lane, Missing, Wanted};
use crate::verified::{Verified, verified};

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

/// The engine of light forms, which works on the processor beside the configured devices.
const LIGHT: &str = "light";

/// What is remembered of verified files, in the state directory.
const REMEMBERED: &str = "verified.json";

/// The wanted forms whose files are there and right. Reads only what changed since the last look.
fn verify(context: &Context<Alchemist>) -> Result<Verified, Stop> {
    let catalogue = worker_app::models::catalogue(&context.models_dir, &KINDS)?;
    let mut trust = Trust::open(context.state_dir.join(REMEMBERED));
    let all = verified(&context.config.wanted(), &context.models_dir, &catalogue, &mut trust);
    // The directory is the worker's own; other verbs leave it alone where it is not there yet.
    if context.state_dir.is_dir()
        && let Err(error) = trust.save()
    {
        tracing::warn!(%error, "verified files cannot be remembered and are read again at the next start");
    }
    Ok(all)
}

/// Kinds of files that forms need.
const KINDS: [Kind; 9] = [
    Kind::Clip,
    Kind::Blip,
    Kind::Esrgan,
    Kind::Gfpgan,
    Kind::Codeformer,
    Kind::SafetyChecker,
    Kind::Miscellaneous,
    Kind::Background,
    Kind::Nsfw,
];

impl Program for Alchemist {
    const NAME: &'static str = "alchemist";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str = "Upscales, repairs, cuts out and describes pictures for the AI Horde.";
    const UNIT: &'static str = "tiles";
    const FAULTS_PER_HOUR: usize = 50;
    // Many sources are addresses that strangers chose and where nothing is; the Horde sends such a form three times.
    const REST_AFTER_FAULT: Duration = Duration::from_secs(2);
    const CONFIG_FILE: &'static str = include_str!("../../../configs/alchemist.toml");
    const MODELS_KEY: &'static str = "forms";

    type Config = Config;
    type Backend = AlchemyBackend;
    type Engine = AlchemyEngine;
    type Command = AlchemistCommand;

    fn check(config: &Config, _common: &Common) -> Result<(), Stop> {
        config.check().map_err(|message| {
            let stop = Stop::config(message);
            let known = forms::KNOWN.each_ref().map(|form| form.as_str());
            match config.unknown_form().map(|name| nearest(name, known)) {
                Some(Some(near)) => stop.hint(format!("did you mean `{near}`?")),
                Some(None) => stop.hint(format!("the forms are {}", known.join(", "))),
                None => stop,
            }
        })
    }

    fn models(context: &Context<Self>) -> Result<(), Stop> {
        let verified = verify(context)?;
        verified.tell();
        if verified.served.is_empty() {
            let folder = context.models_dir.display();
            return Err(match verified.refused.first() {
                None => {
                    let models = models_for(verified.missing.iter().map(|(form, _)| form));
                    Stop::no_model(format!("no form has all its files in `{folder}`"))
                        .hint(format!("`alchemist models pull {models}` fetches them"))
                }
                Some(refused) => Stop::no_model(format!(
                    "no form can be served: `{}` {}",
                    refused.path.display(),
                    refused.why
                ))
                .hint(refused.hint.clone()),
            });
        }
        // Without a wish everything is optional.
        if !context.config.forms.is_empty() && !verified.missing.is_empty() {
            let names: Vec<&str> = verified.missing.iter().map(|(form, _)| form.as_str()).collect();
            let pull = match models_for(verified.missing.iter().map(|(form, _)| form)) {
                models if models.is_empty() => String::new(),
                models => format!("; `alchemist models pull {models}` fetches them"),
            };
            tracing::warn!(
                "files are missing, so these forms are not offered: {}{pull}",
                names.join(", ")
            );
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

    fn engines(context: &Context<Self>, devices: Vec<String>) -> Result<Vec<String>, Stop> {
        let verified = verify(context)?;
        let has = |lane| verified.served.iter().any(|(_, task)| task.lane() == lane);
        let mut engines = if has(Lane::Device) { devices } else { Vec::new() };
        if has(Lane::Light) {
            engines.push(LIGHT.to_owned());
        }
        Ok(engines)
    }

    fn engine_config(context: &Context<Self>, device: &str) -> Result<Value, Stop> {
        // Remembered since the look at the models: nothing is read again.
        let verified = verify(context)?;
        let lane = if device == LIGHT { Lane::Light } else { Lane::Device };
        let served = verified.served.iter().filter(|(_, task)| task.lane() == lane);
        let settings = EngineSettings {
            forms: served.map(|(form, _)| form.as_str().to_owned()).collect(),
            is_named: !context.config.forms.is_empty(),
            stamps: verified.stamps,
            models_dir: context.models_dir.clone(),
            cache_dir: context.state_dir.join("words"),
            pace_file: context
                .state_dir
                .join(format!("pace-{}.json", device.replace(':', "-"))),
            max_tiles: context.config.max_tiles,
            threads: if lane == Lane::Light { 1 } else { context.config.threads },
            nsfw_threshold: context.config.nsfw_threshold as f32,
        };
        serde_json::to_value(settings)
            .map_err(|e| Stop::failed(format!("the engine's settings cannot be written: {e}")))
    }

    fn engine(config: Value, device: &str) -> Result<AlchemyEngine, Stop> {
        vision::allocator::keep_freed();
        let name = if device == LIGHT { "cpu" } else { device };
        let opened = vision::device::open(name).map_err(|error| {
            Stop::no_device(format!("the device `{device}` cannot be used: {error}"))
                .hint("`alchemist doctor` lists the devices; `cpu` is always there")
        })?;
        let settings: EngineSettings = serde_json::from_value(config)
            .map_err(|e| Stop::failed(format!("the engine's settings cannot be read: {e}")))?;
        let engine = AlchemyEngine::new(settings, opened, device);
        if engine.readable().next().is_none() {
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
        let verified = match verify(context) {
            Ok(verified) => verified,
            Err(stop) => return vec![Check::from_stop("forms", &stop)],
        };
        let served = verified.served.iter();
        let served = served.map(|(form, task)| {
            let how = if task.files().is_empty() {
                "it needs no file"
            } else {
                "its files are there and verified"
            };
            Check::ok(form.as_str(), how)
        });
        let refused = verified.refused.iter().map(|refused| {
            let (path, why) = (refused.path.display(), &refused.why);
            Check::warn(refused.form.as_str(), format!("not offered: `{path}` {why}")).hint(refused.hint.clone())
        });
        if context.config.forms.is_empty() {
            let others = could_be_served(context, &verified.missing);
            return served.chain(refused).chain(others).collect();
        }
        let missing = verified.missing.iter();
        let missing = missing.map(|(form, path)| {
            let check = Check::warn(form.as_str(), format!("not offered: `{}` is missing", path.display()));
            match Needs::of(form).models {
                [] => check,
                models => check.hint(format!("`alchemist models pull {}`", models.join(" "))),
            }
        });
        served.chain(refused).chain(missing).collect()
    }

    fn choices(context: &Context<Self>) -> Vec<Choice> {
        Self::choices_on(context, "cpu", &[])
    }

    fn choices_on(context: &Context<Self>, device: &str, found: &[DeviceFound]) -> Vec<Choice> {
        let wanted = Config::default().wanted();
        let machine = machine(found.iter().find(|one| one.name == device || device == "auto"));
        let forms: Vec<Form> = forms::KNOWN.into_iter().filter(|form| wanted.has(form)).collect();
        let proposed = fit::proposed(&forms, &machine);
        let (_, missing) = forms::installed(&wanted, &context.models_dir);
        let choice = |form: &Form| {
            let needs = Needs::of(form);
            let lacks = missing.iter().any(|(absent, _)| absent == form);
            let state = if lacks { "to be fetched" } else { "ready" };
            let seconds = needs.seconds(&machine);
            let of = if needs.is_per_tile { "tile" } else { "picture" };
            Choice {
                name: form.as_str().into(),
                description: format!("{}, about {seconds:.1} s a {of} here, {state}", needs.about),
                is_proposed: proposed.contains(form),
            }
        };
        let (mut first, rest): (Vec<Choice>, Vec<Choice>) =
            forms.iter().map(choice).partition(|choice| choice.is_proposed);
        first.extend(rest);
        first
    }

    fn after_setup(context: &Context<Self>, chosen: &[String]) -> Option<String> {
        let wanted = Wanted {
            named: chosen.to_vec(),
            ..context.config.wanted()
        };
        let (_, missing) = forms::installed(&wanted, &context.models_dir);
        let models = models_for(missing.iter().map(|(form, _)| form));
        (!models.is_empty()).then(|| format!("Fetch what is missing: `alchemist models pull {models}`"))
    }

    fn command(command: AlchemistCommand, context: &Context<Self>) -> Result<(), Stop> {
        let AlchemistCommand::Models(verb) = command;
        worker_app::models::run(&verb, &KINDS, context)
    }
}

/// Names for `models pull` of all that these forms need, each once, with blanks between.
fn models_for<'a>(forms: impl IntoIterator<Item = &'a Form>) -> String {
    let needed = forms.into_iter().flat_map(|form| Needs::of(form).models);
    let needed: BTreeSet<&str> = needed.copied().collect();
    needed.into_iter().collect::<Vec<_>>().join(" ")
}

/// This machine, with the device that forms would run on.
fn machine(device: Option<&DeviceFound>) -> Machine {
    let card = device.filter(|device| device.name != "cpu");
    Machine {
        has_card: card.is_some(),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        memory_bytes: card.and_then(|device| device.memory_bytes).or_else(fit::machine_memory),
    }
}

/// Without a wish every form is optional: one line for all that lack files, with how to get those that fit this machine's
/// processor. Doctor touches no device, so what a card could do besides is setup's to say.
fn could_be_served(context: &Context<Alchemist>, missing: &Missing) -> Option<Check> {
    let names: Vec<&str> = missing.iter().map(|(form, _)| form.as_str()).collect();
    let forms: Vec<Form> = missing.iter().map(|(form, _)| form.clone()).collect();
    if names.is_empty() {
        return None;
    }
    let fitting = fit::proposed(&forms, &machine(None));
    let models = models_for(&fitting);
    let folder = context.models_dir.display();
    let check = Check::ok(
        "other forms",
        format!("their files are not in `{folder}`: {}", names.join(", ")),
    );
    Some(match models.as_str() {
        "" => check.hint("`alchemist models list --all` names what can be fetched"),
        models => check.hint(format!(
            "`alchemist models pull {models}` fetches all that is quick enough on this processor"
        )),
    })
}
