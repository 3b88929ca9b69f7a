//! What scribe plugs into the program around it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use textgen::bridge::{BridgeEngine, BridgeSettings, Dialect};
use textgen::settings::{LlamaSettings, available_memory};
use textgen::{TextEngine, TextError, gguf};
use worker_app::{Check, Choice, Common, Context, DeviceFound, Program, Stop};

use crate::backend::{ScribeBackend, Served};
use crate::config::{Config, DEMO_MODEL};
use crate::engine::ScribeEngine;
use crate::health::Health;
use crate::known::Reference;
use crate::models::{self, ScribeCommand};
use crate::names::{bridged_name, horde_name};

/// The text worker.
pub struct Scribe;

/// What the engine child is told.
#[derive(Serialize, Deserialize)]
struct EngineOrder {
    model: std::path::PathBuf,
    llama: LlamaSettings,
    /// Where measured speeds are kept; absent in tests.
    #[serde(default)]
    state_dir: Option<std::path::PathBuf>,
    #[serde(default)]
    bridge: Option<(Dialect, BridgeSettings)>,
}

const HINT_FETCH: &str =
    "set `scribe.model` to a GGUF file; `scribe models pull smollm2-135m-instruct` fetches the demo model";

impl Program for Scribe {
    const NAME: &'static str = "scribe";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const ABOUT: &'static str = "Writes text for the AI Horde";
    const UNIT: &'static str = "tokens";
    const CONFIG_FILE: &'static str = include_str!("../../../configs/scribe.toml");
    const MODELS_KEY: &'static str = "model";

    type Config = Config;
    type Backend = ScribeBackend;
    type Engine = ScribeEngine;
    type Command = ScribeCommand;

    fn check(config: &Config, _common: &Common) -> Result<(), Stop> {
        let refuse = |key: &str, value: String, hint: &str| {
            Err(Stop::config(format!("`scribe.{key}` is `{value}`")).hint(hint.to_owned()))
        };
        if config.model.trim().is_empty() {
            return refuse("model", config.model.clone(), "name a GGUF file");
        }
        let name = &config.model_name;
        if !name.is_empty() && !(3..=255).contains(&name.chars().count()) {
            return refuse(
                "model_name",
                name.clone(),
                "the Horde takes names of 3 to 255 characters, or leave it empty",
            );
        }
        if config.max_length != 0 && !(16..=16_384).contains(&config.max_length) {
            return refuse(
                "max_length",
                config.max_length.to_string(),
                "use 16 to 16384, or 0 to follow measured speed",
            );
        }
        if config.max_context_length != 0 && !(80..=1 << 20).contains(&config.max_context_length) {
            return refuse(
                "max_context_length",
                config.max_context_length.to_string(),
                "use 80 to 1048576, or 0",
            );
        }
        let llama = &config.llama;
        if llama.slots > 64 {
            return refuse(
                "llama.slots",
                llama.slots.to_string(),
                "use 1 to 64, or 0 to choose from memory",
            );
        }
        if llama.context_tokens != 0 && !(256..=1 << 20).contains(&llama.context_tokens) {
            return refuse(
                "llama.context_tokens",
                llama.context_tokens.to_string(),
                "use 256 to 1048576, or 0",
            );
        }
        if !(32..=512).contains(&llama.batch_tokens) {
            return refuse("llama.batch_tokens", llama.batch_tokens.to_string(), "use 32 to 512");
        }
        let bridge = &config.bridge;
        if !(1..=64).contains(&bridge.parallel) {
            return refuse("bridge.parallel", bridge.parallel.to_string(), "use 1 to 64");
        }
        if !(5..=600).contains(&bridge.stall_seconds) {
            return refuse("bridge.stall_seconds", bridge.stall_seconds.to_string(), "use 5 to 600");
        }
        if bridge.idle_seconds > 3_600 {
            return refuse(
                "bridge.idle_seconds",
                bridge.idle_seconds.to_string(),
                "use 1 to 3600, or 0 to serve although somebody uses the backend",
            );
        }
        Ok(())
    }

    fn models(context: &Context<Self>) -> Result<(), Stop> {
        if context.config.dialect().is_some() {
            return Ok(());
        }
        header(context).map(|_| ())
    }

    fn backend(context: &Context<Self>) -> Result<ScribeBackend, Stop> {
        let served = match context.config.dialect() {
            None => Served::File(model_name(context)),
            Some(dialect) => {
                let settings = context.config.bridge.clone();
                let yields = std::time::Duration::from_secs(settings.idle_seconds);
                Served::Bridge(Health::of(bridge(dialect, settings)?, yields))
            }
        };
        let backend = ScribeBackend::new(context.common.clone(), context.config.clone(), served);
        // Nothing waits for it; it ends with the runtime.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let name = backend.naming();
            runtime.spawn(Reference::of(&context.common).follow(name));
        }
        Ok(backend)
    }

    fn engine_config(context: &Context<Self>, _device: &str) -> Result<serde_json::Value, Stop> {
        let order = EngineOrder {
            model: context.config.model_path(&context.models_dir),
            llama: context.config.llama.clone(),
            state_dir: Some(context.state_dir.clone()),
            bridge: context
                .config
                .dialect()
                .map(|dialect| (dialect, context.config.bridge.clone())),
        };
        serde_json::to_value(order).map_err(|error| Stop::failed(error.to_string()))
    }

    fn engine(config: serde_json::Value, device: &str) -> Result<ScribeEngine, Stop> {
        let order: EngineOrder = serde_json::from_value(config).map_err(|error| Stop::failed(error.to_string()))?;
        if let Some((dialect, settings)) = order.bridge {
            return bridged(bridge(dialect, settings)?);
        }
        let settings = LlamaSettings {
            model: order.model,
            ..order.llama
        };
        embedded(settings, device, order.state_dir.as_deref())
    }

    fn load_timeout(context: &Context<Self>) -> Option<Duration> {
        // With a bridge, the engine waits for the owner to start the other program.
        context
            .config
            .dialect()
            .is_none()
            .then_some(worker_app::program::LOAD_TIMEOUT)
    }

    fn devices() -> Vec<DeviceFound> {
        found_devices()
    }

    fn doctor(context: &Context<Self>) -> Vec<Check> {
        if let Some(dialect) = context.config.dialect() {
            return backend_checks(dialect, context);
        }
        let header = match header(context) {
            Ok(header) => header,
            Err(stop) => return vec![Check::from_stop("model", &stop)],
        };
        let plan = context
            .config
            .llama_settings(&context.models_dir)
            .plan(&header, available_memory(), false);
        let mut checks = vec![Check::ok(
            "model",
            format!("`{}`, offered as `{}`", context.config.model, model_name(context)),
        )];
        checks.extend(Reference::of(&context.common).asked(&model_name(context)));
        let message = format!("on a processor: {plan}");
        checks.push(match available_memory() {
            Some(free) if plan.total_bytes() > free => Check::warn("memory", format!("{message}, but {} MiB are free", free >> 20))
                .hint("fewer `scribe.llama.slots`, a smaller `scribe.llama.context_tokens` or `scribe.llama.cache_keys = \"q8_0\"` need less"),
            _ => Check::ok("memory", message),
        });
        checks
    }

    fn choices(context: &Context<Self>) -> Vec<Choice> {
        let mut choices = vec![Choice {
            name: DEMO_MODEL.to_owned(),
            description: "98 MB, answers within seconds on any processor; to try things out".to_owned(),
            is_proposed: false,
        }];
        for folder in [context.models_dir.join("text"), context.models_dir.clone()] {
            let files = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
            for name in files.filter_map(|file| file.file_name().into_string().ok()) {
                if name.ends_with(".gguf") && !choices.iter().any(|choice| choice.name == name) {
                    choices.push(Choice {
                        description: "on disk".to_owned(),
                        name,
                        is_proposed: false,
                    });
                }
            }
        }
        choices
    }

    fn command(command: ScribeCommand, context: &Context<Self>) -> Result<(), Stop> {
        models::run(&command, context)
    }
}

fn bridge(dialect: Dialect, settings: BridgeSettings) -> Result<BridgeEngine, Stop> {
    BridgeEngine::new(dialect, settings).map_err(|error| {
        Stop::config(error.to_string()).hint("see `scribe.bridge.url` and `scribe.bridge.api_key_file`")
    })
}

/// Waits until the backend is there, however long that takes, then measures it. Nothing is popped meanwhile.
fn bridged(engine: BridgeEngine) -> Result<ScribeEngine, Stop> {
    let engine: Arc<dyn TextEngine> = Arc::new(engine);
    let mut told = String::new();
    loop {
        match ScribeEngine::new(Arc::clone(&engine)) {
            Err(TextError::Unavailable(why)) => {
                if why != told {
                    tracing::warn!(why, "waiting for the backend");
                    told = why;
                }
            }
            Err(error) => return Err(Stop::failed(error.to_string())),
            Ok(ready) => return Ok(ready),
        }
        std::thread::sleep(BETWEEN);
    }
}

/// How long apart a backend that is down is asked by an engine that is starting.
const BETWEEN: Duration = Duration::from_secs(5);

fn backend_checks(dialect: Dialect, context: &Context<Scribe>) -> Vec<Check> {
    let config = &context.config;
    // A thread of its own: the engine waits for its answer, and doctor may stand within an async runtime.
    let settings = config.bridge.clone();
    let asked = std::thread::spawn(move || BridgeEngine::new(dialect, settings)?.facts()).join();
    match asked {
        Ok(Ok(facts)) => {
            let name = if config.model_name.is_empty() {
                bridged_name(&facts.model)
            } else {
                config.model_name.clone()
            };
            let (model, tokens) = (&facts.model, facts.context_tokens);
            let program = facts.program.map(|program| format!("{program} ")).unwrap_or_default();
            let message = format!("{program}serves `{model}` with {tokens} tokens, offered as `{name}`");
            let backend = Check::ok("backend", message);
            let known = Reference::of(&context.common).asked(&name);
            std::iter::once(backend).chain(known).collect()
        }
        Ok(Err(error)) => {
            vec![Check::fail("backend", error.to_string()).hint("start it, or correct `scribe.bridge.url`")]
        }
        Err(_) => vec![Check::fail("backend", "asking it ended in a panic")],
    }
}

fn header(context: &Context<Scribe>) -> Result<gguf::Header, Stop> {
    let path = context.config.model_path(&context.models_dir);
    gguf::check_file(&path).map_err(|error| {
        let hint = match &error {
            gguf::GgufError::Io(_) => HINT_FETCH,
            _ => "fetch the file again, or take another one",
        };
        Stop::no_model(format!("the model `{}` cannot be used: {error}", path.display())).hint(hint)
    })
}

fn model_name(context: &Context<Scribe>) -> String {
    if !context.config.model_name.is_empty() {
        return context.config.model_name.clone();
    }
    let path = context.config.model_path(&context.models_dir);
    horde_name(&path.file_stem().unwrap_or_default().to_string_lossy())
}

/// llama.cpp inside this process, measured unless its speed is known from an earlier start.
#[cfg(feature = "llama")]
fn embedded(mut settings: LlamaSettings, device: &str, state_dir: Option<&Path>) -> Result<ScribeEngine, Stop> {
    use textgen::llama::{self, LlamaEngine};

    use crate::calibration::Calibration;

    if device == "cpu" {
        settings.gpu_layers = Some(0);
    } else if settings.devices.is_empty() {
        let index = gpus()
            .into_iter()
            .find(|(name, _)| name == device)
            .map(|(_, gpu)| gpu.index)
            .ok_or_else(|| {
                Stop::no_device(format!("there is no `{device}` that this build can use"))
                    .hint("`scribe doctor` lists the devices; `cpu` is always there")
            })?;
        settings.devices = vec![index];
    }
    let stop = |error: TextError| match error {
        TextError::Model(_) => Stop::no_model(error.to_string()).hint("`scribe doctor` says what the model needs"),
        _ => Stop::failed(error.to_string()),
    };
    let may_use_fewer_slots = settings.slots == 0;
    // What was left open is chosen here, as a speed depends on it.
    let plan = llama::plan(&settings).map_err(stop)?;
    settings.slots = plan.slots;
    settings.context_tokens = plan.context_tokens;
    let mut calibration = match state_dir {
        Some(state_dir) => Calibration::of(state_dir, &settings, device),
        None => Calibration::default(),
    };
    calibration.may_use_fewer_slots = may_use_fewer_slots;
    if let Some(known) = calibration.known {
        settings.slots = u32::try_from(known.slots).unwrap_or(plan.slots).min(plan.slots);
        if settings.prefill_tokens == 0 {
            settings.prefill_tokens = known.prefill_tokens;
        }
    }
    let engine = LlamaEngine::load(settings, |_| true).map_err(stop)?;
    calibration.prefill_tokens = engine.prefill_tokens();
    ScribeEngine::calibrated(Arc::new(engine), calibration).map_err(|error| Stop::failed(error.to_string()))
}

#[cfg(not(feature = "llama"))]
fn embedded(_: LlamaSettings, _: &str, _: Option<&Path>) -> Result<ScribeEngine, Stop> {
    Err(Stop::no_device("this build has no llama.cpp inside").hint("build scribe with its feature `llama`"))
}

/// Every GPU with the name it is configured by.
#[cfg(feature = "llama")]
fn gpus() -> Vec<(String, textgen::llama::Device)> {
    let mut counts = std::collections::HashMap::new();
    let gpus = textgen::llama::devices().into_iter().filter(|device| device.gpu);
    gpus.map(|device| {
        let kind = match device.backend.to_ascii_lowercase().as_str() {
            "mtl" | "metal" => "metal".to_owned(),
            "hip" | "rocm" => "rocm".to_owned(),
            other => other.to_owned(),
        };
        let count = counts.entry(kind.clone()).or_insert(0u32);
        let name = format!("{kind}:{count}");
        *count += 1;
        (name, device)
    })
    .collect()
}

fn found_devices() -> Vec<DeviceFound> {
    #[cfg(feature = "llama")]
    let mut found: Vec<DeviceFound> = gpus()
        .into_iter()
        .map(|(name, device)| DeviceFound {
            name,
            description: device.description,
            memory_bytes: Some(device.free_bytes),
        })
        .collect();
    #[cfg(not(feature = "llama"))]
    let mut found = Vec::new();
    found.push(DeviceFound {
        name: "cpu".to_owned(),
        description: "the processor".to_owned(),
        memory_bytes: available_memory(),
    });
    found
}
