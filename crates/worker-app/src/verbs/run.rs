//! `run`: in this order, each with its own message: configuration, state directory, key, models, devices, first pop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use worker_runtime::backend::Backend;
use worker_runtime::device::{ChildCommand, ChildDevice, Device};
use worker_runtime::ledger::{Durability, Ledger, LedgerError};
use worker_runtime::settings::{Controls, RunError, Settings, Summary};
use worker_runtime::{Clock, Command, Shutdown, Status};

use crate::config::{Common, Loaded, LogFormat};
use crate::display::{Display, Key as Pressed};
use crate::logging::{ENGINE_FILTER, Logging, Sink};
use crate::program::{Context, Program};
use crate::sandbox::{self, Sandbox};
use crate::state::{Inbox, Lock, StatusFile, write_status};
use crate::stop::{Code, Stop};
use crate::{devices, owner, signals};

/// How often `control/` is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// `status.json` is written this often, and at once when the state changes.
const TELL: Duration = Duration::from_secs(1);
/// What the third signal leaves for the terminal and the log.
const ABORT_GRACE: Duration = Duration::from_millis(300);
/// Commands waiting for the runtime: more than an owner types.
const MAX_WAITING_COMMANDS: usize = 16;

/// Serves until it is told to end.
pub fn run<P: Program>(loaded: &Loaded<P::Config>) -> Result<(), Stop> {
    let common = &loaded.common;
    if !loaded.is_named {
        return Err(no_name(P::NAME, loaded.file.is_some()));
    }
    P::check(&loaded.section, common).map_err(|stop| loaded.with_origin(stop))?;
    let lock = Lock::take(&common.state_dir)?;
    let key = loaded.key.clone()?;
    crate::forget_key_in_environment(P::NAME);

    // Before the first thread: threads started earlier would escape it.
    let sandbox = Sandbox::enter();
    sandbox::hide_memory();
    let shows = common.log.format == LogFormat::Auto && Display::is_possible();
    let log_file = shows.then(|| common.state_dir.join("worker.log"));
    let sink = log_file.clone().map_or(Sink::Stderr, Sink::File);
    let logging = Logging::start(&common.log, sink)?;
    for warning in &loaded.warnings {
        tracing::warn!("{}", crate::text::printable(warning));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("supervisor")
        .enable_all()
        .build()
        .map_err(|error| Stop::failed(format!("the runtime cannot be started: {error}")))?;
    let context = crate::context::<P>(loaded, Some(&key))?;
    P::models(&context)?;
    let chosen = P::engines(&context, devices::choose(P::NAME, &common.devices)?)?;
    tracing::info!(
        program = P::NAME,
        version = P::VERSION,
        worker = common.worker_name.as_str(),
        horde = common.horde_url.host_str().unwrap_or_default(),
        devices = chosen.join(","),
        sandbox = sandbox.describe(),
        key_from = %key.source,
        "starting"
    );
    let first = StatusFile {
        program: P::NAME.to_owned(),
        version: P::VERSION.to_owned(),
        pid: std::process::id(),
        worker_name: common.worker_name.to_string(),
        bridge_agent: common.bridge_agent.to_string(),
        horde_url: common.horde_url.to_string(),
        unit: P::UNIT.to_owned(),
        sandbox: sandbox.describe().to_owned(),
        log_lines_dropped: 0,
        log_warnings: 0,
        log_file: log_file.map(|path| path.display().to_string()),
        status: Status {
            kind: <<P::Backend as Backend>::Kind as horde_client::JobKind>::NAME.to_owned(),
            updated_unix_ms: Clock::System.unix_ms(),
            ..Status::default()
        },
    };
    let around = Around {
        lock,
        first,
        logging,
        shows,
    };
    let ended = runtime.block_on(serve(context, &chosen, around));
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended.map(|summary| {
        eprintln!(
            "{}: ended well: {} delivered, {} handed back, {} expired, {} left for the next start, {:.1} kudos",
            P::NAME,
            summary.submitted,
            summary.faulted,
            summary.expired,
            summary.left_in_ledger,
            summary.kudos
        );
    })
}

/// The worker has no name (78). Without a file, everything else is still to be said too.
pub(super) fn no_name(program: &str, has_file: bool) -> Stop {
    Stop::config("the worker has no name").hint(if has_file {
        "set `worker_name` to a name of 5 to 100 characters that no other worker of the Horde has".to_owned()
    } else {
        format!("`{program} setup` asks four questions and writes a configuration; `--name NAME` names it for once")
    })
}

/// A device for the jobs of `B`.
type AnyDevice<B> = Arc<dyn Device<<B as Backend>::Work, <B as Backend>::Output>>;

/// What stands around the runtime while it runs; dropped at the end, the terminal first.
struct Around {
    lock: Lock,
    first: StatusFile,
    logging: Logging,
    shows: bool,
}

async fn serve<P: Program>(context: Context<P>, chosen: &[String], around: Around) -> Result<Summary, Stop> {
    let backend = P::backend(&context)?;
    let (ledger, quarantined) =
        Ledger::open(&context.state_dir, Durability::Full).map_err(|error| broken_ledger(&error))?;
    if let Some(quarantined) = quarantined {
        tracing::error!("{quarantined}");
    }
    let mut engines: Vec<AnyDevice<P::Backend>> = Vec::new();
    for device in chosen {
        let command = child_command(&context, device)?;
        engines.push(Arc::new(ChildDevice::new(device.clone(), command)));
    }
    let (to_runtime, commands) = mpsc::channel(MAX_WAITING_COMMANDS);
    let (shutdown, urgency) = watch::channel(Shutdown::No);
    let (told, mut status) = watch::channel(around.first.status.clone());

    let inbox = Inbox::open(around.lock.dir()).map_err(|error| {
        Stop::new(
            Code::StateDir,
            format!("`control/` cannot be used: {}", crate::config::reason(&error)),
        )
        .hint("make the state directory writable for the worker's user")
    })?;
    let (shown, to_show) = watch::channel(around.first.clone());
    let (pressed, keys) = mpsc::channel(MAX_WAITING_COMMANDS);
    let mut tasks = tokio::task::JoinSet::new();
    let signals_to = shutdown.clone();
    tasks.spawn(async move {
        if let Err(error) = signals::watch_signals(signals_to).await {
            tracing::error!(%error, "signals cannot be caught");
        }
    });
    tasks.spawn(leave_on_abort(urgency.clone()));
    tasks.spawn(take_orders(inbox, to_runtime.clone()));
    tasks.spawn(take_keys(keys, to_runtime.clone(), shutdown.clone()));
    tasks.spawn(owner::keep_windows(
        context.common.pause_between.clone(),
        to_runtime.clone(),
    ));
    let (dropped, warnings) = (around.logging.dropped(), around.logging.warnings());
    let dir = around.lock.dir().to_owned();
    let first = around.first.clone();
    tasks.spawn(async move {
        let mut teller = Teller {
            dir,
            file: first,
            shown,
            is_failing: false,
        };
        let now = status.borrow_and_update().clone();
        teller.tell(&now).await;
        let mut beat = tokio::time::interval(TELL);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = beat.tick() => {}
                changed = status.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let is_same_state = status.borrow().state == teller.file.status.state;
                    if is_same_state {
                        teller.show(&status.borrow_and_update().clone());
                        continue;
                    }
                }
            }
            teller.file.log_lines_dropped = dropped.load(std::sync::atomic::Ordering::Relaxed);
            teller.file.log_warnings = warnings.load(std::sync::atomic::Ordering::Relaxed);
            let now = status.borrow_and_update().clone();
            teller.tell(&now).await;
        }
    });
    let display = if around.shows {
        Some(Display::start(to_show, pressed)?)
    } else {
        None
    };

    let controls = Controls {
        commands,
        shutdown: urgency,
        status: told,
    };
    let ended = worker_runtime::run(
        backend,
        context.client.clone(),
        engines,
        ledger,
        settings::<P>(&context.common),
        controls,
    )
    .await;
    drop(display);
    tasks.shutdown().await;
    ended.map_err(|error| explain(error, &context.common))
}

fn child_command<P: Program>(context: &Context<P>, device: &str) -> Result<ChildCommand, Stop> {
    Ok(ChildCommand {
        program: std::env::current_exe()
            .map_err(|error| Stop::failed(format!("the program cannot find itself: {error}")))?,
        args: ["engine", "--on", device].map(str::to_owned).to_vec(),
        env: {
            let mut env = waiting_without_spinning();
            env.push((ENGINE_FILTER.to_owned(), context.common.log.filter.clone()));
            env
        },
        config: P::engine_config(context, device)?,
        load_timeout: P::load_timeout(context),
    })
}

/// Threads of an engine that wait for each other sleep instead of spinning: on a machine somebody else is using, spinning
/// made llama.cpp twelve times slower and the owner's programs with it. What the owner set stays.
fn waiting_without_spinning() -> Vec<(String, String)> {
    let set_by_owner = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    if set_by_owner {
        Vec::new()
    } else {
        vec![("OMP_WAIT_POLICY".to_owned(), "passive".to_owned())]
    }
}

fn settings<P: Program>(common: &Common) -> Settings {
    let mut settings = Settings::default();
    settings.prefetch.depth = u8::try_from(common.prefetch).unwrap_or(2);
    settings.drain_grace = common.grace;
    settings.faults_per_hour = P::FAULTS_PER_HOUR;
    settings.rest_after_fault = P::REST_AFTER_FAULT;
    settings
}

/// The runtime's end as an owner's message.
fn explain(error: RunError, common: &Common) -> Stop {
    use horde_client::error::StopReason;
    match error {
        RunError::Refused { reason, message } => {
            let hint = match reason {
                StopReason::Key => "check the API key; `doctor` says where it was found".to_owned(),
                StopReason::Name => format!(
                    "choose another `worker_name` than `{}`; each kind of worker needs one of its own",
                    common.worker_name
                ),
                StopReason::Settings => "check `priority_usernames` and the models".to_owned(),
                StopReason::Account => "the Horde's page of your account says more; `doctor` too".to_owned(),
            };
            Stop::config(format!("the Horde refuses this worker: {message}")).hint(hint)
        }
        RunError::NoEngine { device, error } => match serde_json::from_value::<Stop>(error.detail) {
            Ok(stop) => Stop {
                message: format!("`{device}`: {}", stop.message),
                ..stop
            },
            Err(_) => Stop::no_device(format!("no engine could be loaded on `{device}`: {}", error.message)),
        },
        RunError::Ledger(error) => broken_ledger(&error),
    }
}

/// The ledger cannot be used (73).
fn broken_ledger(error: &LedgerError) -> Stop {
    Stop::new(Code::StateDir, error.to_string())
        .hint("the state directory must be on a healthy disk with room; `doctor` looks at it")
}

/// Writes `status.json` and feeds the display.
struct Teller {
    dir: std::path::PathBuf,
    file: StatusFile,
    shown: watch::Sender<StatusFile>,
    is_failing: bool,
}

impl Teller {
    fn show(&mut self, status: &Status) {
        self.file.status = status.clone();
        self.shown.send_replace(self.file.clone());
    }

    async fn tell(&mut self, status: &Status) {
        self.show(status);
        let (dir, file) = (self.dir.clone(), self.file.clone());
        // A slow disk must not hold up the runtime's threads.
        let written = tokio::task::spawn_blocking(move || write_status(&dir, &file)).await;
        match written {
            Ok(Ok(())) => self.is_failing = false,
            // A full disk is told once, not every second.
            Ok(Err(error)) if !self.is_failing => {
                self.is_failing = true;
                tracing::warn!("`status.json` cannot be written: {}", crate::config::reason(&error));
            }
            _ => {}
        }
    }
}

async fn take_orders(inbox: Inbox, to_runtime: mpsc::Sender<Command>) {
    loop {
        tokio::time::sleep(LOOK).await;
        for order in inbox.take() {
            match order {
                Ok(order) => {
                    tracing::info!(?order, "told by command");
                    if to_runtime.send(order.into()).await.is_err() {
                        return;
                    }
                }
                Err(why) => tracing::warn!("{}", crate::text::printable(&why)),
            }
        }
    }
}

async fn take_keys(
    mut keys: mpsc::Receiver<Pressed>,
    to_runtime: mpsc::Sender<Command>,
    shutdown: watch::Sender<Shutdown>,
) {
    while let Some(key) = keys.recv().await {
        let command = match key {
            Pressed::Pause => Command::Pause { for_: None, now: false },
            Pressed::Resume => Command::Resume,
            Pressed::Finish => Command::Finish,
            Pressed::Drain => Command::Stop,
            Pressed::Interrupt => {
                shutdown.send_modify(|how| *how = signals::more_urgent(*how));
                continue;
            }
        };
        if to_runtime.send(command).await.is_err() {
            return;
        }
    }
}

/// The third signal: the runtime gets a moment, then the process leaves whatever hangs.
async fn leave_on_abort(mut urgency: watch::Receiver<Shutdown>) {
    if urgency.wait_for(|how| *how == Shutdown::Abort).await.is_err() {
        return;
    }
    tokio::time::sleep(ABORT_GRACE).await;
    ratatui::restore();
    std::process::exit(i32::from(Code::Failed as u8));
}
