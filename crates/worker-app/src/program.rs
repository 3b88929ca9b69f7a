//! What a worker binary plugs in. Everything else about the program is the same for all workers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use horde_client::transport::Transport;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use worker_runtime::backend::{Backend, Engine};

use crate::config::Common;
use crate::stop::{Check, Stop};

/// How long loading an engine may take: a large model on a slow disk.
pub const LOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// One worker program: its names, its own section of the configuration, its backend and its engine.
///
/// Only [`Program::engine`] and [`Program::devices`] run in an engine child, where device libraries may be touched;
/// everything else runs in the supervisor, which must outlive them.
///
/// ```ignore
/// fn main() -> std::process::ExitCode {
///     worker_app::main::<text_worker::Scribe>()
/// }
/// ```
pub trait Program: Sized + Send + Sync + 'static {
    /// The binary's name; also the name of its section in the configuration, of its default state directory and, in
    /// capitals, of its environment variables. Lower-case ASCII letters.
    const NAME: &'static str;
    /// The version of the binary, `env!("CARGO_PKG_VERSION")`.
    const VERSION: &'static str;
    /// One sentence for `--help`.
    const ABOUT: &'static str;
    /// What is counted while a job runs, in the plural: `tokens`, `steps`, `tiles`.
    const UNIT: &'static str;
    /// Generations handed back in an hour after which popping rests; the Horde forces maintenance at 20, for alchemy at 100.
    const FAULTS_PER_HOUR: usize = 10;
    /// How long popping rests after a job was handed back; twice as long after each further one in a row.
    const REST_AFTER_FAULT: Duration = Duration::from_secs(10);
    /// The commented configuration file of `configs/`, by `include_str!`; `setup` fills it in.
    const CONFIG_FILE: &'static str;
    /// The key in the worker's own section that names the models to serve (a list of strings, or one string); `setup`
    /// writes the choice there.
    const MODELS_KEY: &'static str;

    /// The worker's own section `[NAME]`. Every field is serialised (no `skip_serializing`), as defaults are read off
    /// `Default` and known keys off the serialised default. `deny_unknown_fields` belongs on it and on what it nests.
    type Config: Serialize + DeserializeOwned + Default + Clone + Send + Sync + 'static;
    /// The kind of work, in the supervisor.
    type Backend: Backend;
    /// The engine, in the child.
    type Engine: Engine<Work = <Self::Backend as Backend>::Work, Output = <Self::Backend as Backend>::Output>;
    /// Further verbs (`models`, `bench`); [`NoCommand`] for none.
    type Command: clap::Subcommand + Send;

    /// Refuses values out of range in the own section, and a bridge agent that claims more than this build can do.
    /// The message names the key as the owner writes it (`scribe.context_tokens`). Cheap, no I/O.
    fn check(config: &Self::Config, common: &Common) -> Result<(), Stop>;

    /// Looks at the models before anything starts, without loading one: exit 66 when none of them can be served.
    /// Warnings (a model that is missing while others are there) go to `tracing`.
    fn models(context: &Context<Self>) -> Result<(), Stop>;

    /// Builds the backend.
    fn backend(context: &Context<Self>) -> Result<Self::Backend, Stop>;

    /// The engines to start where `devices` were chosen, by the names [`Program::engine_config`] and [`Program::engine`]
    /// will be given: one per device, unless a kind of work has more.
    fn engines(context: &Context<Self>, devices: Vec<String>) -> Result<Vec<String>, Stop> {
        let _ = context;
        Ok(devices)
    }

    /// What the child of `device` needs to load its engine: opaque to everybody but [`Program::engine`]. No secrets.
    fn engine_config(context: &Context<Self>, device: &str) -> Result<serde_json::Value, Stop>;

    /// In the child: loads the engine on `device` (`cpu`, `cuda:0`, …) from what [`Program::engine_config`] gave.
    /// May take minutes. A device that is not there is [`Stop::no_device`], a broken file [`Stop::no_model`].
    fn engine(config: serde_json::Value, device: &str) -> Result<Self::Engine, Stop>;

    /// How long loading an engine may take before its child is started anew; `None` is as long as it takes, for engines that
    /// wait for another program.
    fn load_timeout(context: &Context<Self>) -> Option<Duration> {
        let _ = context;
        Some(LOAD_TIMEOUT)
    }

    /// In a short-lived child: the devices this build can use, the best first. `cpu` is listed where the engine can
    /// really serve from it. Empty means none.
    fn devices() -> Vec<DeviceFound>;

    /// Further checks for `doctor`: model files, licences, content checks. Must not touch a device.
    fn doctor(context: &Context<Self>) -> Vec<Check>;

    /// What `setup` offers as models, the recommended first.
    fn choices(context: &Context<Self>) -> Vec<Choice>;

    /// As [`Program::choices`], for the device that was chosen among `found` (`auto` is the first of them).
    fn choices_on(context: &Context<Self>, device: &str, found: &[DeviceFound]) -> Vec<Choice> {
        let _ = (device, found);
        Self::choices(context)
    }

    /// What is still to be done before `chosen` can be served, as lines for the end of `setup`.
    fn after_setup(context: &Context<Self>, chosen: &[String]) -> Option<String> {
        let _ = (context, chosen);
        None
    }

    /// Runs one of the further verbs. Output goes to stdout.
    fn command(command: Self::Command, context: &Context<Self>) -> Result<(), Stop>;
}

/// What a program's functions are given: the whole configuration, resolved, and the way out.
pub struct Context<P: Program> {
    /// The common part.
    pub common: Common,
    /// The worker's own section.
    pub config: P::Config,
    /// Where models lie; the same as `common.models_dir`, resolved.
    pub models_dir: PathBuf,
    /// Where this worker may keep files of its own; exists only while `run` holds it.
    pub state_dir: PathBuf,
    /// The line to the Horde, the object store and sources; with the anonymous key where none is configured.
    pub client: horde_client::Client,
    /// What `client` sends through.
    pub transport: Arc<dyn Transport>,
}

/// A device an engine could use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceFound {
    /// The name as configured: `cuda:0`, `metal:0`, `vulkan:1`, `cpu`.
    pub name: String,
    /// For people: `NVIDIA GeForce RTX 4090`.
    pub description: String,
    /// Memory in bytes, where known.
    pub memory_bytes: Option<u64>,
}

/// One model `setup` offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// As written into the configuration.
    pub name: String,
    /// For people: size, what it is good for, whether it is on disk.
    pub description: String,
    /// Whether it is taken when nothing else is said. Where none is, the first is.
    pub is_proposed: bool,
}

/// A program without further verbs. Has no value, so nothing can be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCommand {}

impl clap::FromArgMatches for NoCommand {
    fn from_arg_matches(_: &clap::ArgMatches) -> Result<Self, clap::Error> {
        Err(clap::Error::new(clap::error::ErrorKind::InvalidSubcommand))
    }

    fn update_from_arg_matches(&mut self, _: &clap::ArgMatches) -> Result<(), clap::Error> {
        match *self {}
    }
}

impl clap::Subcommand for NoCommand {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        command
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        command
    }

    fn has_subcommand(_: &str) -> bool {
        false
    }
}
