//! From arguments to an exit code.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use horde_client::client::{Client, ClientConfig};
use horde_client::http::{HttpSettings, HttpTransport};
use horde_client::secret::ApiKey;
use horde_client::transport::Transport;
use worker_runtime::backend::LoadError;

use crate::cli::{self, Verb};
use crate::config::{self, Key, Loaded, Places, Sources};
use crate::logging;
use crate::program::{Context, Program};
use crate::sandbox::{self, Sandbox};
use crate::state::Order;
use crate::stop::Stop;
use crate::verbs;

/// The key of the Horde's anonymous user, for verbs that only read public things.
const ANONYMOUS: &str = "0000000000";

/// The whole program `P`. Must be the first thing `main` does: the sandbox has to come before any thread.
pub fn main<P: Program>() -> ExitCode {
    let args: Vec<String> = std::env::args_os()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    // The reader of pickles is confined before it reads; no configuration, no thread and no environment come before it.
    if args.get(1..).is_some_and(|rest| rest == ["models", "convert-pickle"]) {
        let code = model_store::formats::sandbox::child_main();
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    match program::<P>(&args) {
        Ok(code) => code,
        Err(stop) => {
            eprint!("{}", stop.render());
            stop.code.into()
        }
    }
}

fn program<P: Program>(args: &[String]) -> Result<ExitCode, Stop> {
    let cli = match cli::parse::<P>(args)? {
        Ok(cli) => cli,
        Err(text) => {
            say(&text);
            return Ok(ExitCode::SUCCESS);
        }
    };
    let verb = cli.verb.unwrap_or(Verb::Run);
    match verb {
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut cli::command::<P>(), P::NAME, &mut script);
            say(&String::from_utf8_lossy(&script));
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Engine { list: true, .. } => {
            let devices = serde_json::to_string(&P::devices()).map_err(|error| Stop::failed(error.to_string()))?;
            say(&format!("{devices}\n"));
            return Ok(ExitCode::SUCCESS);
        }
        Verb::Engine { on, .. } => return Ok(engine::<P>(on)),
        _ => {}
    }

    let mut sources = sources::<P>(&cli.flags)?;
    let asked_for = sources.file.clone();
    if matches!(verb, Verb::Setup { .. }) {
        // What is to be written need not be there.
        sources.file = sources.file.filter(|path| path.exists());
    }
    let loaded: Loaded<P::Config> = config::load(P::NAME, P::VERSION, &sources)?;
    let dir = &loaded.common.state_dir;
    let print = |text: Result<String, Stop>| {
        text.map(|text| {
            say(&text);
            ExitCode::SUCCESS
        })
    };
    match verb {
        Verb::Run => verbs::run::run::<P>(&loaded).map(|()| ExitCode::SUCCESS),
        Verb::Status { json } => print(verbs::status::status(P::NAME, dir, json)),
        Verb::Pause { length, now } => {
            let for_s = length.map(|length| length.as_secs());
            print(verbs::control::control(P::NAME, dir, Order::Pause { for_s, now }))
        }
        Verb::Resume => print(verbs::control::control(P::NAME, dir, Order::Resume)),
        Verb::Finish => print(verbs::control::control(P::NAME, dir, Order::Finish)),
        Verb::Stop => print(verbs::control::control(P::NAME, dir, Order::Stop)),
        Verb::Doctor { json } => doctor::<P>(&loaded, json),
        Verb::Setup { import, yes } => {
            forget_key_in_environment(P::NAME);
            let target = match &asked_for {
                Some(path) => sources.places.absolute(path),
                None => sources.places.config_file(P::NAME),
            };
            let context = context::<P>(&loaded, None)?;
            let imported = match import {
                Some(path) => verbs::import::import(&path, P::NAME)?,
                None => verbs::import::Imported::default(),
            };
            let asking = verbs::setup::Asking {
                context: &context,
                loaded: &loaded,
                places: &sources.places,
                runtime: &runtime()?,
                imported,
                is_silent: yes,
            };
            verbs::setup::setup(&asking, &target)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Extra(command) => {
            let context = context::<P>(&loaded, loaded.key.as_ref().ok())?;
            forget_key_in_environment(P::NAME);
            P::command(command, &context)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Completions { .. } | Verb::Engine { .. } => Ok(ExitCode::SUCCESS),
    }
}

/// The engine child. Listening is denied here too, as the supervisor's rule is inherited; a child started by hand gets
/// its own.
fn engine<P: Program>(device: String) -> ExitCode {
    sandbox::leave_signals_to_supervisor();
    Sandbox::enter();
    logging::start_in_engine();
    worker_runtime::engine::serve(move |config| {
        P::engine(config, &device).map_err(|stop| LoadError {
            message: stop.message.clone(),
            detail: serde_json::to_value(&stop).unwrap_or_default(),
        })
    })
}

fn doctor<P: Program>(loaded: &Loaded<P::Config>, json: bool) -> Result<ExitCode, Stop> {
    forget_key_in_environment(P::NAME);
    let sandbox = Sandbox::enter();
    let runtime = runtime()?;
    let context = context::<P>(loaded, loaded.key.as_ref().ok())?;
    let findings = runtime.block_on(verbs::doctor::doctor::<P>(&context, loaded, sandbox));
    if json {
        say(&format!("{}\n", findings.to_json()));
    } else {
        say(&findings.render());
    }
    Ok(findings.code().map_or(ExitCode::SUCCESS, ExitCode::from))
}

fn runtime() -> Result<tokio::runtime::Runtime, Stop> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Stop::failed(format!("the runtime cannot be started: {error}")))
}

fn sources<P: Program>(flags: &cli::Flags) -> Result<Sources, Stop> {
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let places = Places::from_env(&|name| env.get(name).cloned()).ok_or_else(|| {
        Stop::config("neither `HOME` nor the XDG directories are set")
            .hint("set `HOME`, or `XDG_CONFIG_HOME`, `XDG_STATE_HOME` and `XDG_CACHE_HOME`")
    })?;
    let named_by_env = env
        .get(&format!("{}_CONFIG", P::NAME.to_uppercase()))
        .filter(|path| !path.is_empty());
    Ok(Sources {
        file: flags.config.clone().or_else(|| named_by_env.map(Into::into)),
        places,
        env,
        flags: flags.layer(),
    })
}

/// To stdout; a reader that left is no error.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// What the program's functions are given.
pub(crate) fn context<P: Program>(loaded: &Loaded<P::Config>, key: Option<&Key>) -> Result<Context<P>, Stop> {
    let common = loaded.common.clone();
    let agent = common.bridge_agent.to_string();
    let transport = HttpTransport::new(HttpSettings {
        proxy: common.proxy.clone(),
        allow_loopback: common.is_on_loopback(),
        user_agent: format!("{}/{}", P::NAME, P::VERSION),
    })
    .map_err(|why| {
        Stop::failed(format!("the network cannot be used: {why}")).hint("are the system's certificates installed?")
    })?;
    let transport: Arc<dyn Transport> = Arc::new(transport);
    let client = Client::new(
        Arc::clone(&transport),
        ClientConfig {
            base_url: common.horde_url.clone(),
            api_key: key.map_or_else(|| ApiKey::new(ANONYMOUS), |key| key.api_key.clone()),
            client_agent: agent,
        },
    );
    Ok(Context {
        models_dir: common.models_dir.clone(),
        state_dir: common.state_dir.clone(),
        config: loaded.section.clone(),
        client,
        transport,
        common,
    })
}

/// Takes the key out of the environment, so that no child inherits it.
pub(crate) fn forget_key_in_environment(name: &str) {
    for variable in [format!("{}_API_KEY", name.to_uppercase()), "HORDE_API_KEY".to_owned()] {
        // SAFETY: called before this process has started a second thread.
        unsafe { std::env::remove_var(variable) };
    }
}
