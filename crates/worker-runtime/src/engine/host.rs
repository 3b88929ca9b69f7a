//! What the hidden `engine` verb runs: one engine behind a pair of pipes. Knows no network; ends with its supervisor.

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::frames::{self, FrameError, FromEngine, ToEngine};
use crate::backend::{Engine, EngineReport, Fault, JobContext, LoadError};

/// Stack of a job's thread: model code recurses deeper than the 2 MiB default of a thread allows.
const JOB_STACK_BYTES: usize = 16 << 20;

/// How often an idle engine is asked whether what it can do has changed: memory may have fallen free, or what it does beside
/// its jobs may be done.
const LOOK: Duration = Duration::from_millis(500);

/// Serves one engine over this process's stdin and stdout until the supervisor closes the pipe.
///
/// `build` is called once, with the opaque configuration of the `Load` frame, on a thread of its own. Stdout belongs to
/// the frames: whatever else is printed goes to stderr. Sandboxing is the caller's business and must come before this
/// call, as it starts threads. The process exits when the pipe closes, even in the middle of a job.
pub fn serve<E: Engine>(build: impl FnOnce(serde_json::Value) -> Result<E, LoadError> + Send + 'static) -> ExitCode {
    let pipes = match take_pipes() {
        Ok(pipes) => pipes,
        Err(error) => {
            eprintln!("the engine's pipes cannot be set up: {error}");
            return ExitCode::FAILURE;
        }
    };
    // When memory runs out the engine goes, not the supervisor that has to hand its job back.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    let (mut input, output) = pipes;
    let host = Arc::new(Host::<E> {
        output: Mutex::new(output),
        engine: OnceLock::new(),
        told: Mutex::new(None),
        cancels: Mutex::new(HashMap::new()),
    });
    let mut build = Some(build);
    loop {
        match frames::read_blocking(&mut input).and_then(|body| body.map(|body| frames::decode(&body)).transpose()) {
            Ok(Some(ToEngine::Load { config })) => {
                let Some(build) = build.take() else {
                    return ExitCode::FAILURE;
                };
                let host = Arc::clone(&host);
                spawn("engine-load", move || host.load(build, config));
            }
            Ok(Some(ToEngine::Run { job, work })) => host.clone().start(job, work),
            Ok(Some(ToEngine::Cancel { job })) => {
                if let Some(cancel) = lock(&host.cancels).get(&job) {
                    cancel.store(true, Ordering::Relaxed);
                }
            }
            // The supervisor is gone or wants us gone: a job in the middle of a step must not keep the device.
            Ok(None) => std::process::exit(0),
            Err(error) => {
                eprintln!("the engine leaves: {error}");
                std::process::exit(1);
            }
        }
    }
}

struct Host<E: Engine> {
    output: Mutex<std::fs::File>,
    engine: OnceLock<E>,
    told: Mutex<Option<EngineReport>>,
    cancels: Mutex<HashMap<u64, Arc<AtomicBool>>>,
}

impl<E: Engine> Host<E> {
    fn load(&self, build: impl FnOnce(serde_json::Value) -> Result<E, LoadError>, config: serde_json::Value) {
        let built = catch_unwind(AssertUnwindSafe(|| build(config)));
        match built {
            Ok(Ok(engine)) => {
                let _ = self.engine.set(engine);
                self.tell_report();
                loop {
                    std::thread::sleep(LOOK);
                    // A job tells the report itself when it ends.
                    if lock(&self.cancels).is_empty() {
                        self.tell_report();
                    }
                }
            }
            Ok(Err(error)) => self.send(&FromEngine::Refused(error)),
            // The message of the panic is on stderr already; the supervisor sees a dead child and tries again.
            Err(_) => std::process::exit(101),
        }
    }

    fn start(self: Arc<Self>, job: u64, work: E::Work) {
        let cancel = Arc::new(AtomicBool::new(false));
        let capacity = lock(&self.told).as_ref().map_or(0, |report| report.capacity.max(1));
        let over = {
            let mut cancels = lock(&self.cancels);
            let over = cancels.len() >= capacity;
            if !over {
                cancels.insert(job, Arc::clone(&cancel));
            }
            over
        };
        if over {
            let fault = Fault::of_worker("the engine was given more jobs than it can run");
            return self.send(&FromEngine::Done {
                job,
                result: Err(fault),
            });
        }
        spawn("engine-job", move || {
            let line = Line {
                host: &self,
                job,
                cancel,
            };
            let result = match self.engine.get() {
                Some(engine) => catch_unwind(AssertUnwindSafe(|| engine.run(work, &line)))
                    .unwrap_or_else(|_| Err(Fault::of_worker("the engine panicked"))),
                None => Err(Fault::of_worker("the engine is not loaded")),
            };
            lock(&self.cancels).remove(&job);
            self.send(&FromEngine::Done { job, result });
            self.tell_report();
        });
    }

    /// Tells the report where it differs from the one told last.
    fn tell_report(&self) {
        let Some(report) = self.engine.get().map(Engine::report) else {
            return;
        };
        let mut told = lock(&self.told);
        if told.as_ref() != Some(&report) {
            *told = Some(report.clone());
            drop(told);
            self.send(&FromEngine::Ready(report));
        }
    }

    fn send(&self, message: &FromEngine<E::Output>) {
        let frame = frames::encode(message).or_else(|error| match message {
            FromEngine::Done { job, .. } => {
                let fault = Fault::of_worker(format!("the result cannot be handed over: {error}"));
                frames::encode(&FromEngine::<E::Output>::Done {
                    job: *job,
                    result: Err(fault),
                })
            }
            _ => Err(error),
        });
        let written = frame.and_then(|frame| {
            let mut output = lock(&self.output);
            output
                .write_all(&frame)
                .and_then(|()| output.flush())
                .map_err(FrameError::from)
        });
        if written.is_err() {
            std::process::exit(0);
        }
    }
}

struct Line<'a, E: Engine> {
    host: &'a Host<E>,
    job: u64,
    cancel: Arc<AtomicBool>,
}

impl<E: Engine> JobContext for Line<'_, E> {
    fn progress(&self, done: u32, total: u32, phase: &str) {
        self.host.send(&FromEngine::Progress {
            job: self.job,
            done,
            total,
            phase: phase.to_owned(),
        });
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// Moves the pipes to descriptors of their own: stdin becomes empty, stdout becomes stderr, so that no library's print
/// can land between two frames. Also asks the kernel to end this process with its parent.
fn take_pipes() -> Result<(std::io::BufReader<std::fs::File>, std::fs::File), std::io::Error> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    let input: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned()?;
    let output: OwnedFd = std::io::stdout().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    nix::unistd::dup2_stdout(std::io::stderr())?;
    Ok((std::io::BufReader::with_capacity(1 << 16, input.into()), output.into()))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) {
    let started = std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(JOB_STACK_BYTES)
        .spawn(body);
    if let Err(error) = started {
        // Without threads nothing can be served; the supervisor starts a fresh child.
        eprintln!("the engine leaves: no thread can be started: {error}");
        std::process::exit(1);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
