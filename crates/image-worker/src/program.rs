//! What makes the dreamer a program: its section, its checks, its models.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Subcommand;
use model_store::adhoc::{AdHoc, AdHocSettings};
use model_store::fetch::{Downloader, FetchSettings, HttpSettings};
use model_store::reference::Kind;
use model_store::store::Store;
use model_store::token::{HostToken, Token};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vision::Device;
use worker_app::models::ModelsVerb;
use worker_app::{Check, Choice, Common, Context, DeviceFound, Program, Stop};

use crate::backend::DreamerBackend;
use crate::checker::{self, CheckerFiles, gate};
use crate::config::Config;
use crate::engine::{DreamerEngine, EngineSettings};
use crate::extras::Extras;
use crate::levels;
use crate::models::{self, Resolved};
use crate::networks::PostFiles;
use crate::room::Room;

/// The dreamer.
pub struct Dreamer;

/// The dreamer's own verbs.
#[derive(Debug, Subcommand)]
pub enum DreamerCommand {
    /// Fetch, list, verify, remove and import models
    ///
    /// Names are those of the Horde's reference, those that come with the workers, and those of `models.toml` in the
    /// models directory.
    Models(ModelsVerb),
}

/// Kinds of files that image jobs need.
const KINDS: [Kind; 7] = [
    Kind::Image,
    Kind::Clip,
    Kind::Esrgan,
    Kind::Gfpgan,
    Kind::Codeformer,
    Kind::Miscellaneous,
    Kind::Background,
];

pub(crate) const HINT_MODELS: &str = "`dreamer models list` shows what is there, `dreamer models pull NAME` fetches a model of the Horde's reference, also one whose file is broken; a broken file of your own must be put there again";

/// What the engine child is told.
#[derive(Serialize, Deserialize)]
struct Told {
    engine: EngineSettings,
    checker: Option<CheckerFiles>,
    check_on_cpu: bool,
    unchecked: bool,
    memory_mb: u64,
}

impl Program for Dreamer {
    const NAME: &'static str = "dreamer";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str = "Makes pictures for the AI Horde";
    const UNIT: &'static str = "steps";
    const CONFIG_FILE: &'static str = include_str!("../../../configs/dreamer.toml");
    const MODELS_KEY: &'static str = "models";

    type Config = Config;
    type Backend = DreamerBackend;
    type Engine = DreamerEngine;
    type Command = DreamerCommand;

    fn check(config: &Config, common: &Common) -> Result<(), Stop> {
        config.check(common)
    }

    fn models(context: &Context<Self>) -> Result<(), Stop> {
        let resolved = resolve(context)?;
        for (model, why) in &resolved.missing {
            tracing::warn!(model, why, "a model is not offered");
        }
        has_checker(context)?;
        keeps_promises(context, &resolved)?;
        if context.config.allow_post_processing
            && let Some(missing) = missing_post(context)
        {
            return Err(Stop::config(format!(
                "`dreamer.allow_post_processing` is `true`, but `{missing}` is not installed"
            ))
            .hint("jobs may ask for every post-processor that the bridge agent unlocks; `dreamer doctor` lists them"));
        }
        Ok(())
    }

    fn backend(context: &Context<Self>) -> Result<DreamerBackend, Stop> {
        let resolved = resolve(context)?;
        let baselines: BTreeMap<_, _> = resolved
            .served
            .into_iter()
            .map(|model| (model.name, model.baseline))
            .collect();
        Ok(DreamerBackend::new(
            context.common.clone(),
            context.config.clone(),
            context.client.clone(),
            extras(context)?,
            baselines,
            context.config.allow_post_processing,
        ))
    }

    fn engine_config(context: &Context<Self>, _device: &str) -> Result<Value, Stop> {
        let told = Told {
            engine: EngineSettings {
                models: resolve(context)?.served,
                models_in_memory: context.config.models_in_memory,
                post: if context.config.allow_post_processing {
                    PostFiles::find(&context.models_dir)
                } else {
                    PostFiles::default()
                },
                ceiling: context.config.ceiling(),
            },
            checker: has_checker(context)?,
            check_on_cpu: context.config.check_on_cpu,
            unchecked: is_unchecked(context),
            memory_mb: context.config.memory_mb,
        };
        serde_json::to_value(told)
            .map_err(|error| Stop::failed(format!("the engine's settings cannot be written: {error}")))
    }

    fn engine(config: Value, device: &str) -> Result<DreamerEngine, Stop> {
        diffusion::allocator::keep_freed();
        let told: Told = serde_json::from_value(config)
            .map_err(|error| Stop::failed(format!("the engine's settings cannot be read: {error}")))?;
        let device = opened(device)?;
        let check_on = if told.check_on_cpu { &Device::Cpu } else { &device };
        let check_bytes = told.checker.as_ref().map_or(Ok(0), checker::bytes)?;
        let limit_bytes = (told.memory_mb > 0).then_some(told.memory_mb << 20);
        let is_beside = check_on.is_cpu() == device.is_cpu();
        let check_room = Room {
            device: check_on.clone(),
            free_bytes: diffusion::memory::free_bytes,
            limit_bytes: limit_bytes.filter(|_| is_beside),
            check_bytes,
        };
        check_room.check_alone().map_err(|shortage| {
            Stop::no_model(format!("the content check cannot be used: {shortage}"))
                .hint("end other programs, or raise `dreamer.memory_mb` where it is set")
        })?;
        let room = Room {
            device: device.clone(),
            free_bytes: diffusion::memory::free_bytes,
            limit_bytes,
            check_bytes: if is_beside { check_bytes } else { 0 },
        };
        let gate = gate(told.checker.as_ref(), told.unchecked, check_on)?;
        DreamerEngine::new(told.engine, room, gate)
    }

    fn devices() -> Vec<DeviceFound> {
        found_devices()
    }

    fn doctor(context: &Context<Self>) -> Vec<Check> {
        let resolved = match resolve(context) {
            Ok(resolved) => resolved,
            // The check of models before these has said so; the content check has files of its own.
            Err(_) => return vec![content_check(context)],
        };
        let mut checks: Vec<Check> = Vec::new();
        for model in &resolved.served {
            let family = model
                .baseline
                .as_ref()
                .map_or("told by its file", |baseline| baseline.as_str());
            checks.push(Check::ok("model", format!("`{}`, {family}", model.name)));
        }
        for (model, why) in &resolved.missing {
            checks.push(Check::warn("model", format!("`{model}` is not offered: {why}")).hint(HINT_MODELS));
        }
        checks.push(content_check(context));
        checks.push(match keeps_promises(context, &resolved) {
            Ok(()) => Check::ok("promises", "this build does what the bridge agent says"),
            Err(stop) => Check::from_stop("promises", &stop),
        });
        checks.push(match (context.config.allow_post_processing, missing_post(context)) {
            (false, _) => Check::ok("post-processing", "not offered"),
            (true, None) => Check::ok("post-processing", "every network that jobs may name is there"),
            (true, Some(missing)) => Check::fail("post-processing", format!("`{missing}` is not installed"))
                .hint("fetch it, or set `dreamer.allow_post_processing = false`"),
        });
        checks
    }

    fn choices(context: &Context<Self>) -> Vec<Choice> {
        let Ok(catalogue) = worker_app::models::catalogue(&context.models_dir, &[Kind::Image]) else {
            return Vec::new();
        };
        let there = models::on_disk(&catalogue, &Store::new(&context.models_dir));
        let mut choices: Vec<Choice> = there
            .iter()
            .map(|name| Choice {
                name: name.clone(),
                description: "on disk".into(),
                is_proposed: false,
            })
            .collect();
        for (name, description) in BEGINNINGS {
            let size = catalogue
                .get(Kind::Image, name)
                .map(|model| model.size_bytes.unwrap_or(0) >> 20);
            if let Some(size) = size.filter(|_| !there.iter().any(|known| known == name)) {
                choices.push(Choice {
                    name: name.into(),
                    description: format!("{description}; {size} MB, fetched by `dreamer models pull`"),
                    is_proposed: false,
                });
            }
        }
        choices
    }

    fn after_setup(context: &Context<Self>, chosen: &[String]) -> Option<String> {
        let catalogue = worker_app::models::catalogue(&context.models_dir, &[Kind::Image]).ok()?;
        let there = models::on_disk(&catalogue, &Store::new(&context.models_dir));
        let mut names: Vec<String> = chosen.iter().filter(|name| !there.contains(name)).cloned().collect();
        if checker::find(&context.models_dir).is_err() {
            names.push(checker::MODEL.to_owned());
        }
        (!names.is_empty()).then(|| format!("Fetch what is missing: {}", pull(&names)))
    }

    fn command(command: DreamerCommand, context: &Context<Self>) -> Result<(), Stop> {
        let DreamerCommand::Models(verb) = command;
        worker_app::models::run(&verb, &KINDS, context)
    }
}

/// Models to begin with, where the reference has them.
const BEGINNINGS: [(&str, &str); 3] = [
    ("stable_diffusion", "Stable Diffusion 1.5, for cards from 4 GB"),
    (
        "Deliberate",
        "a much asked-for model of Stable Diffusion 1.5, for cards from 4 GB",
    ),
    (
        "AlbedoBase XL (SDXL)",
        "a much asked-for model of SDXL, for cards from 8 GB",
    ),
];

fn resolve(context: &Context<Dreamer>) -> Result<Resolved, Stop> {
    if context.config.models.is_empty() {
        return Err(Stop::config("`dreamer.models` is empty")
            .hint("name models there; `dreamer setup` proposes some, `dreamer models list --all` shows all"));
    }
    let resolved = models::resolve(&context.config, &context.common, &context.models_dir)?;
    if resolved.served.is_empty() {
        let why = match resolved.missing.first() {
            Some((model, why)) => format!("`{model}` cannot be served: {why}"),
            None => "`dreamer.models` comes to no model".to_owned(),
        };
        return Err(Stop::no_model(why).hint(match resolved.to_fetch.as_slice() {
            [] => HINT_MODELS.to_owned(),
            names => format!("{} fetches what is missing or broken", pull(names)),
        }));
    }
    Ok(resolved)
}

/// The command that fetches these models. Names may have blanks.
fn pull(names: &[String]) -> String {
    let is_word = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c));
    let quoted = names.iter().map(|name| match is_word(name) {
        true => name.clone(),
        false => format!("'{}'", name.replace('\'', "'\\''")),
    });
    format!("`dreamer models pull {}`", quoted.collect::<Vec<_>>().join(" "))
}

/// Nothing is handed out unchecked, except to a Horde on this machine whose owner said so.
fn is_unchecked(context: &Context<Dreamer>) -> bool {
    context.config.unchecked_on_loopback && context.common.is_on_loopback()
}

fn has_checker(context: &Context<Dreamer>) -> Result<Option<CheckerFiles>, Stop> {
    if is_unchecked(context) {
        static WARNING: std::sync::Once = std::sync::Once::new();
        WARNING.call_once(|| {
            tracing::warn!("pictures are NOT checked for their content: `dreamer.unchecked_on_loopback` is on");
        });
        return Ok(None);
    }
    checker::find(&context.models_dir).map(Some)
}

fn content_check(context: &Context<Dreamer>) -> Check {
    const NAME: &str = "content check";
    match has_checker(context) {
        Ok(Some(files)) => checker::diagnosis(&files),
        Ok(None) => Check::warn(NAME, "off: pictures go unchecked to a Horde on this machine"),
        Err(stop) => Check::from_stop(NAME, &stop),
    }
}

fn keeps_promises(context: &Context<Dreamer>, resolved: &Resolved) -> Result<(), Stop> {
    let agent = &context.common.bridge_agent;
    let baselines: Vec<_> = resolved.served.iter().map(|model| model.baseline.clone()).collect();
    let Some(broken) = levels::broken(agent, &baselines) else {
        return Ok(());
    };
    let hint = match levels::highest_kept(agent, &baselines) {
        Some(major) => format!("`{}:{major}:…` promises only what is kept", agent.name()),
        None => "leave it out: the worker then gives its own true name".to_owned(),
    };
    Err(Stop::config(format!(
        "`bridge_agent` is `{agent}`, which promises `{broken}`; this build cannot do that with its models"
    ))
    .hint(hint))
}

/// The first post-processor that jobs may name and that is not installed.
fn missing_post(context: &Context<Dreamer>) -> Option<String> {
    let promised = levels::post_processors(&context.common.bridge_agent);
    let files = PostFiles::find(&context.models_dir);
    // An agent that unlocks none may still be given any: the server looks only at the flag for names it does not know.
    let all = vision::post::NAMES.iter().map(|(name, _)| *name);
    let missing = if promised.is_empty() {
        files.missing(all)
    } else {
        files.missing(promised.iter().map(|form| form.as_str()))
    };
    missing.map(str::to_owned)
}

fn extras(context: &Context<Dreamer>) -> Result<Extras, Stop> {
    let config = &context.config;
    let url = |key: &str, text: &str| {
        text.parse()
            .map_err(|error| Stop::config(format!("`dreamer.{key}` is `{text}`: {error}")))
    };
    let tokens = match config.civitai_key_file.trim() {
        "" => Vec::new(),
        path => vec![HostToken::civitai(Token::new(read_key(path)?))],
    };
    let settings = AdHocSettings {
        civitai: url("civitai_url", &config.civitai_url)?,
        hordeling: url("embeddings_url", &config.embeddings_url)?,
        budget_bytes: u64::from(config.lora_cache_gb) << 30,
        ..AdHocSettings::default()
    };
    let downloader = Downloader::new(FetchSettings {
        http: HttpSettings {
            proxy: context.common.proxy.clone(),
            tokens,
            private_network: context.common.is_on_loopback(),
            ..HttpSettings::default()
        },
        ..FetchSettings::default()
    })
    .map_err(|error| Stop::failed(error.to_string()))?;
    let dir = context.models_dir.join("lora");
    let cache = AdHoc::open(&dir, settings, downloader).map_err(|error| {
        Stop::failed(format!("`{}` cannot be used for LoRAs: {error}", dir.display()))
            .hint("make it writable, or choose another `models_dir`")
    })?;
    Ok(Extras::new(cache, config.allow_lora, context.common.nsfw))
}

fn read_key(path: &str) -> Result<String, Stop> {
    let path = match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(path),
    };
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Stop::config(format!(
            "`dreamer.civitai_key_file`: `{}` cannot be read: {error}",
            path.display()
        ))
    })?;
    Ok(text.trim().to_owned())
}

fn opened(device: &str) -> Result<Device, Stop> {
    let absent = |why: String| {
        Stop::no_device(format!("the device `{device}` cannot be used: {why}"))
            .hint("`dreamer doctor` lists the devices; `cpu` is always there")
    };
    vision::device::open(device).map_err(|error| absent(error.to_string()))
}

/// Cards are looked for by opening them, one after the other.
fn found_devices() -> Vec<DeviceFound> {
    let found = vision::device::found().into_iter();
    found
        .map(|device| DeviceFound {
            memory_bytes: vision::device::open(&device.name)
                .ok()
                .and_then(|opened| diffusion::memory::free_bytes(&opened)),
            name: device.name,
            description: device.description,
        })
        .collect()
}
