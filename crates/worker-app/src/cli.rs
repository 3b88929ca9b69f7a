//! The command line, the same for all workers.

use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::LogFormat;
use crate::program::Program;
use crate::stop::{Code, Stop};

/// What was typed.
#[derive(Debug, Parser)]
#[command(disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli<C: Subcommand> {
    /// Options every verb takes.
    #[command(flatten)]
    pub flags: Flags,
    /// `run` when missing.
    #[command(subcommand)]
    pub verb: Option<Verb<C>>,
}

/// Options that stand over file and environment.
#[derive(Clone, Debug, Default, Args)]
pub struct Flags {
    /// Read this configuration file; it must exist
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Keep lock, ledger, status and control files here
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Look for models here
    #[arg(long, global = true, value_name = "DIR")]
    pub models_dir: Option<PathBuf>,
    /// Serve the Horde at this address
    #[arg(long, global = true, value_name = "URL")]
    pub horde_url: Option<String>,
    /// The worker's name at the Horde
    #[arg(long, global = true, value_name = "NAME")]
    pub name: Option<String>,
    /// Run on this device; may be given several times
    #[arg(long = "device", global = true, value_name = "DEVICE")]
    pub devices: Vec<String>,
    /// Log lines instead of the live display
    #[arg(long, global = true, value_name = "FORMAT", value_enum)]
    pub log: Option<LogFormat>,
    /// What to log: `error`, `warn`, `info`, `debug`, or a filter like `warn,worker_runtime=debug`
    #[arg(long, global = true, value_name = "FILTER")]
    pub log_level: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb<C: Subcommand> {
    /// Serve the Horde (the default)
    Run,
    /// Ask for key, name, device and models, and write a commented configuration
    ///
    /// An existing configuration is never overwritten. Answers are read from the terminal, or line by line from a pipe.
    Setup {
        /// Take key, name and what else has a counterpart from a `bridgeData.yaml` of the Horde's Python workers
        #[arg(long, value_name = "FILE")]
        import: Option<PathBuf>,
        /// Ask nothing: the key and the name are taken from where they are set, of device and models what is proposed
        #[arg(long)]
        yes: bool,
    },
    /// Look for everything that could keep the worker from earning
    ///
    /// Checks the Horde, the key, the worker's name, what the bridge agent unlocks, state directory, disk, models (of text
    /// models also whether the Horde's reference, fetched once a day, knows the name), devices and the sandbox. Exits 0 when nothing failed, else with the code `run` would end with.
    Doctor {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show what the running worker does
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Rest: finish what is held, then give all device memory back
    Pause {
        /// How long, such as `45m` or `2h`; until `resume` when missing
        #[arg(value_name = "TIME", value_parser = parse_pause)]
        length: Option<Duration>,
        /// Hand back what is held instead of finishing it
        #[arg(long)]
        now: bool,
    },
    /// Serve again after a pause; takes back a `finish`
    Resume,
    /// Take nothing new, finish everything held, then exit
    Finish,
    /// Hand back what waits, finish what ends soon, then exit (as SIGTERM)
    Stop,
    /// Print a completion script for your shell
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Runs one device's engine behind pipes; started by `run`
    #[command(hide = true)]
    Engine {
        /// Print the devices of this machine as JSON and exit
        #[arg(long = "devices")]
        list: bool,
        /// The device to run on
        #[arg(long = "on", value_name = "DEVICE", default_value = "cpu")]
        on: String,
    },
    /// What this worker adds.
    #[command(flatten)]
    Extra(C),
}

/// The command line of `P`.
pub fn command<P: Program>() -> clap::Command {
    let name = P::NAME;
    Cli::<P::Command>::command()
        .name(name)
        .bin_name(name)
        .version(P::VERSION)
        .about(P::ABOUT)
        .after_help(format!(
            "Examples:\n  \
             {name} setup            answer four questions, get a configuration\n  \
             {name} doctor           see what is missing\n  \
             {name}                  serve, with a live display on a terminal\n  \
             {name} --log json       serve, one JSON object per line on stderr\n  \
             {name} pause 2h         free the device for two hours\n  \
             {name} finish           end without dropping a job\n\n\
             The API key is read from a systemd credential, a key file, HORDE_API_KEY or the configuration, never from \
             the command line.\n\
             Exit codes: 0 ended well, 1 something unforeseen, 64 usage, 66 no model, 69 no device, 73 state directory, 75 another instance or \
             none, 78 configuration."
        ))
}

/// Parses `args`; help and version come back as `Ok(Err(text))`.
pub fn parse<P: Program>(args: &[String]) -> Result<Result<Cli<P::Command>, String>, Stop> {
    if let Some(flag) = args.iter().find(|arg| is_key_flag(arg)) {
        let flag = flag.split('=').next().unwrap_or_default();
        return Err(Stop::new(
            Code::Usage,
            format!(
                "there is no `{}`: every user of this machine can read a command line",
                crate::text::printable(flag)
            ),
        )
        .hint("put the key into a file with mode 0600 (`api_key_file`) or into `HORDE_API_KEY`"));
    }
    let parsed = command::<P>()
        .try_get_matches_from(args)
        .and_then(|matches| Cli::<P::Command>::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => Ok(Ok(cli)),
        Err(error) if !error.use_stderr() => Ok(Err(error.render().to_string())),
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let help = error.render().to_string();
            let usage = help.lines().find_map(|line| line.trim().strip_prefix("Usage: "));
            let verb = usage
                .and_then(|usage| usage.split(['[', '<']).next())
                .unwrap_or(P::NAME)
                .trim();
            Err(Stop::new(Code::Usage, format!("`{verb}` needs a verb of its own"))
                .hint(format!("`{verb} --help` lists them")))
        }
        Err(error) => {
            let text = error.render().to_string();
            let text = text.trim_start_matches("error: ").trim_end();
            let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
            let hint = rest
                .lines()
                .find_map(|line| line.trim().strip_prefix("tip: "))
                .map_or_else(
                    || format!("`{} --help` lists verbs and options", P::NAME),
                    str::to_owned,
                );
            Err(Stop::new(Code::Usage, message).hint(hint))
        }
    }
}

fn is_key_flag(arg: &str) -> bool {
    ["--api-key", "--api_key", "--apikey", "--key"].contains(&arg.split('=').next().unwrap_or_default())
}

fn parse_pause(text: &str) -> Result<Duration, String> {
    let length = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if length < Duration::from_secs(1) || length > Duration::from_secs(366 * 24 * 3600) {
        return Err("must be between one second and a year".to_owned());
    }
    Ok(length)
}

impl Flags {
    /// The flags' layer of the configuration.
    pub fn layer(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut layer = serde_json::Map::new();
        let mut set = |key: &str, value: Option<serde_json::Value>| {
            if let Some(value) = value {
                layer.insert(key.to_owned(), value);
            }
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into());
        set("state_dir", path(&self.state_dir));
        set("models_dir", path(&self.models_dir));
        set("horde_url", self.horde_url.clone().map(Into::into));
        set("worker_name", self.name.clone().map(Into::into));
        set(
            "devices",
            (!self.devices.is_empty()).then(|| self.devices.clone().into()),
        );
        set(
            "log_format",
            self.log.and_then(|format| serde_json::to_value(format).ok()),
        );
        set("log", self.log_level.clone().map(Into::into));
        layer
    }
}
