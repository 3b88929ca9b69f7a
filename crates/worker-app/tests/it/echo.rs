//! The `echo` example as a real process in a home of its own, and a Horde on loopback for it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use local_horde::http::Running;
use local_horde::{Horde, Settings, WORKER_KEY};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Longest wait for anything; only a failing test waits that long.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The program in a home of its own.
pub struct Echo {
    pub home: tempfile::TempDir,
    pub horde_url: String,
    env: Vec<(String, String)>,
}

pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Echo {
    pub fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            // Nothing listens there.
            horde_url: "http://127.0.0.1:9/api".to_owned(),
            env: Vec::new(),
        }
    }

    pub fn at(base: &str) -> Self {
        let mut echo = Self::new();
        echo.horde_url = base.to_owned();
        echo.env("HORDE_API_KEY", WORKER_KEY)
            .env("ECHO_WORKER_NAME", "echo-tester")
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(args)
            .env_clear()
            .env("HOME", self.home.path())
            .env("HORDE_URL", &self.horde_url)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    pub fn output(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn state_dir(&self) -> PathBuf {
        self.home.path().join(".local/state/horde-workers/echo")
    }

    pub fn start(&self) -> Worker {
        self.start_with(&[])
    }

    pub fn start_with(&self, args: &[&str]) -> Worker {
        let log = self.home.path().join("log");
        let child = self
            .command(&[&["--log", "json"], args].concat())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Worker { child, log }
    }

    pub fn status(&self) -> Value {
        let output = self.output(&["status", "--json"]);
        serde_json::from_str(&output.stdout).unwrap_or_default()
    }

    pub fn wait_for(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if is_so(&status) {
                return status;
            }
            assert!(Instant::now() < give_up, "never: {what}; last status {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

pub struct Worker {
    pub child: Child,
    log: PathBuf,
}

impl Worker {
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the end; the exit code and everything logged.
    pub fn end(mut self) -> (i32, String) {
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code().unwrap_or(-1), std::fs::read_to_string(&self.log).unwrap());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!(
            "the worker did not end: {}",
            std::fs::read_to_string(&self.log).unwrap()
        );
    }

    pub fn engines(&self) -> Vec<u32> {
        children(self.child.id())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|pids| {
            pids.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Cargo puts examples beside the test binaries.
fn binary() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let path = deps.ancestors().nth(2).unwrap().join("examples/echo");
    assert!(
        path.exists(),
        "`cargo build -p worker-app --example echo` makes {}",
        path.display()
    );
    path
}

/// A Horde on a free port, and the runtime that serves it.
pub struct Hosted {
    pub horde: Horde,
    pub running: Running,
    _runtime: tokio::runtime::Runtime,
}

impl Hosted {
    pub fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let horde = Horde::new(Settings::default());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let running = runtime
            .block_on(local_horde::http::serve(horde.clone(), address))
            .unwrap();
        Self {
            horde,
            running,
            _runtime: runtime,
        }
    }

    pub fn echo(&self) -> Echo {
        Echo::at(&self.running.base())
    }

    pub fn ask(&self, prompt: &str) {
        let body = json!({
            "prompt": prompt,
            "params": { "max_length": 16, "max_context_length": 80 },
            "models": ["echo/one"],
        });
        self.horde.file("generate/text/async", &body).unwrap();
    }
}
