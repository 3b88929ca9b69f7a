//! An engine in a child process: whatever it does, the supervisor sees one event, "the child died".

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::Level;

use super::{Device, DeviceState, Progress, RunLine, RunResult};
use crate::backend::Fault;
use crate::engine::frames::{self, FromEngine, ToEngine};
use crate::law::retry::Backoff;

/// Time between the rungs of the cancel ladder: cancel frame, SIGTERM, SIGKILL.
const RUNG: Duration = Duration::from_secs(5);
/// A child told to end by closing its pipe is given this long before SIGTERM.
const FAREWELL: Duration = Duration::from_secs(2);
/// Longest line of the child's stderr that is passed on.
const LONGEST_LINE_BYTES: u64 = 2 << 10;

/// How to start the child.
#[derive(Clone, Debug)]
pub struct ChildCommand {
    /// The program; the worker's own binary as a rule.
    pub program: PathBuf,
    /// Its arguments: the hidden verb and the device.
    pub args: Vec<String>,
    /// Variables added to the environment.
    pub env: Vec<(String, String)>,
    /// Sent in the `Load` frame. No secrets.
    pub config: serde_json::Value,
    /// How long loading may take. Ten minutes suit a large model on a slow disk; `None` is as long as it takes, for an engine
    /// that waits for something else.
    pub load_timeout: Option<Duration>,
}

/// A device behind a child process.
pub struct ChildDevice<W, O> {
    name: String,
    orders: mpsc::UnboundedSender<Order<W, O>>,
    wanted: watch::Sender<bool>,
    state: watch::Receiver<DeviceState>,
    next_job: AtomicU64,
}

enum Order<W, O> {
    Run {
        job: u64,
        work: W,
        progress: watch::Sender<Progress>,
        answer: oneshot::Sender<RunResult<O>>,
    },
    Cancel {
        job: u64,
    },
}

impl<W, O> ChildDevice<W, O>
where
    W: Serialize + Send + Sync + 'static,
    O: DeserializeOwned + Send + 'static,
{
    /// A stopped device. Must be called inside a tokio runtime: a task looks after the child.
    pub fn new(name: impl Into<String>, command: ChildCommand) -> Self {
        let name = name.into();
        // Bounded by the jobs a device may hold: one run and one cancel each.
        let (orders, order_queue) = mpsc::unbounded_channel();
        let (wanted, wish) = watch::channel(false);
        let (told, state) = watch::channel(DeviceState::Stopped);
        let keeper = Keeper {
            name: name.clone(),
            command,
            orders: order_queue,
            wish,
            told,
        };
        tokio::spawn(keeper.keep());
        Self {
            name,
            orders,
            wanted,
            state,
            next_job: AtomicU64::new(1),
        }
    }
}

#[async_trait]
impl<W, O> Device<W, O> for ChildDevice<W, O>
where
    W: Serialize + Send + Sync + 'static,
    O: DeserializeOwned + Send + 'static,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn state(&self) -> watch::Receiver<DeviceState> {
        self.state.clone()
    }

    fn start(&self) {
        self.wanted.send_replace(true);
    }

    async fn stop(&self) {
        self.wanted.send_replace(false);
        let mut state = self.state.clone();
        // An error means that the keeper is gone, and the child with it.
        let _ = state.wait_for(|state| *state == DeviceState::Stopped).await;
    }

    async fn run(&self, work: W, line: RunLine) -> RunResult<O> {
        let job = self.next_job.fetch_add(1, Ordering::Relaxed);
        let (answer, mut answered) = oneshot::channel();
        let dead = || Fault::of_worker("the engine is not running");
        let order = Order::Run {
            job,
            work,
            progress: line.progress,
            answer,
        };
        self.orders.send(order).map_err(|_| dead())?;
        tokio::select! {
            result = &mut answered => return result.unwrap_or_else(|_| Err(dead())),
            () = line.cancel.cancelled() => {}
        }
        let _ = self.orders.send(Order::Cancel { job });
        answered.await.unwrap_or_else(|_| Err(dead()))
    }
}

/// Looks after one child after the other.
struct Keeper<W, O> {
    name: String,
    command: ChildCommand,
    orders: mpsc::UnboundedReceiver<Order<W, O>>,
    wish: watch::Receiver<bool>,
    told: watch::Sender<DeviceState>,
}

/// How one child ended.
enum End {
    Unwanted,
    Refused(crate::backend::LoadError),
    Died { reason: String, was_ready: bool },
    Forgotten,
}

impl<W, O> Keeper<W, O>
where
    W: Serialize + Send + Sync + 'static,
    O: DeserializeOwned + Send + 'static,
{
    async fn keep(mut self) {
        let mut n_failed = 0u32;
        loop {
            if !self.rest_until(true, None).await {
                return;
            }
            self.told.send_replace(DeviceState::Loading);
            match self.one_child().await {
                End::Forgotten => return,
                End::Unwanted => {
                    self.told.send_replace(DeviceState::Stopped);
                    n_failed = 0;
                }
                End::Refused(error) => {
                    tracing::error!(device = %self.name, %error, "the engine cannot be loaded");
                    self.told.send_replace(DeviceState::Refused(error));
                    if !self.rest_until(false, None).await {
                        return;
                    }
                    self.told.send_replace(DeviceState::Stopped);
                }
                End::Died { reason, was_ready } => {
                    n_failed = if was_ready { 1 } else { n_failed.saturating_add(1) };
                    let wait = Backoff::ENGINE.wait(n_failed, 1.0);
                    tracing::error!(device = %self.name, reason, ?wait, "the engine died and will be started again");
                    self.told.send_replace(DeviceState::Failed(reason));
                    if !self.rest_until(false, Some(Instant::now() + wait)).await {
                        return;
                    }
                    if !*self.wish.borrow() {
                        self.told.send_replace(DeviceState::Stopped);
                    }
                }
            }
        }
    }

    /// Waits, without a child, for a wish or a moment; orders are refused meanwhile. False when the device is dropped.
    async fn rest_until(&mut self, wanted: bool, moment: Option<Instant>) -> bool {
        let moment = async {
            match moment {
                Some(moment) => tokio::time::sleep_until(moment).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(moment);
        loop {
            tokio::select! {
                wish = self.wish.wait_for(|wish| *wish == wanted) => return wish.is_ok(),
                () = &mut moment => return true,
                order = self.orders.recv() => match order {
                    Some(Order::Run { answer, .. }) => {
                        let _ = answer.send(Err(Fault::of_worker("the engine is not running")));
                    }
                    Some(Order::Cancel { .. }) => {}
                    None => return false,
                },
            }
        }
    }

    async fn one_child(&mut self) -> End {
        let died = |reason: String, was_ready| End::Died { reason, was_ready };
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(error) => return died(format!("it could not be started: {error}"), false),
        };
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return died("its pipes are missing".to_owned(), false);
        };
        tokio::spawn(pass_on_lines(self.name.clone(), stderr));
        // Both queues are bounded by the jobs on the device; frames to a child that does not read wait here, not in the keeper.
        let (to_child, frames_out) = mpsc::unbounded_channel();
        let writer = tokio::spawn(write_frames(stdin, frames_out));
        let (events_in, mut events) = mpsc::channel(64);
        let reader = tokio::spawn(read_frames::<O>(stdout, events_in));

        let end = self.serve(&to_child, &mut events).await;
        drop(to_child);
        let status = match &end {
            // Closing the pipe is the polite way; a busy engine exits on it at once.
            End::Unwanted | End::Forgotten | End::Refused(_) => end_child(&mut child, Some(FAREWELL)).await,
            End::Died { .. } => end_child(&mut child, None).await,
        };
        writer.abort();
        reader.abort();
        match end {
            End::Died { reason, was_ready } if reason.is_empty() => died(format!("it ended ({status})"), was_ready),
            other => other,
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let mut command = Command::new(&self.command.program);
        // An engine needs no key: whatever the supervisor was given in its environment stays there.
        for (name, _) in std::env::vars_os() {
            let upper = name.to_string_lossy().to_ascii_uppercase();
            if ["KEY", "TOKEN", "SECRET", "PASSWORD"]
                .iter()
                .any(|secret| upper.ends_with(secret))
            {
                command.env_remove(name);
            }
        }
        // A group of its own: Ctrl-C at the terminal is for the supervisor, which lets the running job end.
        command
            .process_group(0)
            .args(&self.command.args)
            .envs(self.command.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
    }

    /// Drives one child from its `Load` frame to its end. An empty reason of death means: ask the exit status.
    async fn serve(
        &mut self,
        to_child: &mpsc::UnboundedSender<Vec<u8>>,
        events: &mut mpsc::Receiver<Result<FromEngine<O>, String>>,
    ) -> End {
        let mut jobs: HashMap<u64, Running<O>> = HashMap::new();
        let mut ready = false;
        let load_by = self.command.load_timeout.map(|timeout| Instant::now() + timeout);
        match frames::encode(&ToEngine::<()>::Load {
            config: self.command.config.clone(),
        }) {
            Ok(frame) => drop(to_child.send(frame)),
            Err(error) => {
                return End::Died {
                    reason: error.to_string(),
                    was_ready: false,
                };
            }
        }
        let end = loop {
            let kill_at = jobs.values().filter_map(|job| job.kill_at).min();
            let alarm = if ready { kill_at } else { load_by };
            tokio::select! {
                event = events.recv() => match event {
                    Some(Ok(FromEngine::Ready(report))) => {
                        ready = true;
                        self.told.send_replace(DeviceState::Ready(report));
                    }
                    Some(Ok(FromEngine::Refused(error))) => break End::Refused(error),
                    Some(Ok(FromEngine::Progress { job, done, total, phase })) => {
                        if let Some(job) = jobs.get(&job) {
                            let phase = phase.chars().take(40).collect();
                            job.progress.send_replace(Progress { done, total, phase });
                        }
                    }
                    Some(Ok(FromEngine::Done { job, result })) => {
                        if let Some(job) = jobs.remove(&job) {
                            let _ = job.answer.send(result);
                        }
                    }
                    Some(Err(reason)) => break End::Died { reason, was_ready: ready },
                    None => break End::Died { reason: String::new(), was_ready: ready },
                },
                order = self.orders.recv() => match order {
                    Some(Order::Run { job, work, progress, answer }) if ready => {
                        match frames::encode(&ToEngine::Run { job, work }) {
                            Ok(frame) => {
                                jobs.insert(job, Running { progress, answer, kill_at: None });
                                let _ = to_child.send(frame);
                            }
                            Err(error) => drop(answer.send(Err(Fault::of_job(format!("the work is too large: {error}"))))),
                        }
                    }
                    Some(Order::Run { answer, .. }) => drop(answer.send(Err(Fault::of_worker("the engine is still loading")))),
                    Some(Order::Cancel { job: number }) => {
                        if let Some(job) = jobs.get_mut(&number) {
                            job.kill_at = Some(Instant::now() + RUNG);
                            if let Ok(frame) = frames::encode(&ToEngine::<()>::Cancel { job: number }) {
                                let _ = to_child.send(frame);
                            }
                        }
                    }
                    None => break End::Forgotten,
                },
                wish = self.wish.wait_for(|wish| !wish) => break if wish.is_ok() { End::Unwanted } else { End::Forgotten },
                () = until(alarm) => {
                    let reason = if ready { "it did not stop when told to" } else { "it did not load in time" };
                    break End::Died { reason: reason.to_owned(), was_ready: ready };
                }
            }
        };
        for (_, job) in jobs {
            let _ = job.answer.send(Err(match end {
                End::Died { .. } => Fault::of_worker("the engine died"),
                _ => Fault::of_job("the engine was stopped"),
            }));
        }
        end
    }
}

struct Running<O> {
    progress: watch::Sender<Progress>,
    answer: oneshot::Sender<RunResult<O>>,
    kill_at: Option<Instant>,
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn write_frames(mut pipe: ChildStdin, mut frames: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        // A broken pipe shows on the reading side as the end of the child.
        if pipe.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn read_frames<O: DeserializeOwned>(pipe: ChildStdout, events: mpsc::Sender<Result<FromEngine<O>, String>>) {
    let mut pipe = BufReader::with_capacity(1 << 16, pipe);
    loop {
        let event = match frames::read(&mut pipe).await {
            Ok(Some(body)) => frames::decode(&body).map_err(|error| error.to_string()),
            Ok(None) => return,
            Err(error @ frames::FrameError::TooLong(_)) => Err(error.to_string()),
            // A pipe that breaks inside a frame is a child that died: the exit status says more.
            Err(_) => return,
        };
        let last = event.is_err();
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

/// Passes what the child prints on to the log, line by line, cut and escaped. Engines never print prompts.
async fn pass_on_lines(device: String, pipe: ChildStderr) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut pipe).take(LONGEST_LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let text = horde_client::error::plain(text.trim_end(), LONGEST_LINE_BYTES as usize);
                match leveled(&text) {
                    (_, "") => {}
                    (Level::ERROR, text) => tracing::error!(target: "engine", device, "{text}"),
                    (Level::WARN, text) => tracing::warn!(target: "engine", device, "{text}"),
                    (Level::DEBUG, text) => tracing::debug!(target: "engine", device, "{text}"),
                    (_, text) => tracing::info!(target: "engine", device, "{text}"),
                }
            }
        }
    }
}

/// A line of an engine's log without its level, which stands in front (`worker-app` writes it so); what any library prints
/// has none and is information.
fn leveled(line: &str) -> (Level, &str) {
    let (first, rest) = line.trim_start().split_once(' ').unwrap_or_default();
    match first {
        "ERROR" => (Level::ERROR, rest),
        "WARN" => (Level::WARN, rest),
        "INFO" => (Level::INFO, rest),
        "DEBUG" | "TRACE" => (Level::DEBUG, rest),
        _ => (Level::INFO, line),
    }
}

/// Ends a child for good: waits for `farewell`, then SIGTERM, then SIGKILL. Says how it ended.
async fn end_child(child: &mut Child, farewell: Option<Duration>) -> String {
    if let Some(farewell) = farewell
        && let Ok(status) = tokio::time::timeout(farewell, child.wait()).await
    {
        return told(status);
    }
    if let Ok(Some(status)) = child.try_wait() {
        return told(Ok(status));
    }
    if farewell.is_none()
        && let Ok(status) = tokio::time::timeout(Duration::from_millis(200), child.wait()).await
    {
        return told(status);
    }
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
    if let Ok(status) = tokio::time::timeout(RUNG, child.wait()).await {
        return told(status);
    }
    let _ = child.start_kill();
    told(child.wait().await)
}

fn told(status: std::io::Result<std::process::ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_in_front_of_an_engine_s_line_is_taken_and_whatever_else_is_printed_is_information() {
        assert_eq!(leveled("ERROR a model is broken"), (Level::ERROR, "a model is broken"));
        assert_eq!(leveled(" WARN memory is short"), (Level::WARN, "memory is short"));
        assert_eq!(leveled(" INFO more is offered"), (Level::INFO, "more is offered"));
        assert_eq!(leveled("DEBUG a detail"), (Level::DEBUG, "a detail"));
        for printed in ["ERRORS happen", "WARN", "llama: loaded", ""] {
            assert_eq!(leveled(printed), (Level::INFO, printed));
        }
    }
}
