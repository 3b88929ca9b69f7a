//! Whole workers: the `echo` example as a real process with a real engine child, against a Horde on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use local_horde::http::Running;
use local_horde::{Horde, Settings, WORKER_KEY};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Longest wait for anything; only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The program in a home of its own.
pub struct Echo {
    home: tempfile::TempDir,
    horde_url: String,
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

    fn at(base: &str) -> Self {
        let mut echo = Self::new();
        echo.horde_url = base.to_owned();
        echo.env("HORDE_API_KEY", WORKER_KEY)
            .env("ECHO_WORKER_NAME", "echo-tester")
    }

    fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    fn command(&self, args: &[&str]) -> Command {
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

    fn state_dir(&self) -> PathBuf {
        self.home.path().join(".local/state/horde-workers/echo")
    }

    fn start(&self) -> Worker {
        let log = self.home.path().join("log");
        let child = self
            .command(&["--log", "json"])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Worker { child, log }
    }

    fn status(&self) -> Value {
        let output = self.output(&["status", "--json"]);
        serde_json::from_str(&output.stdout).unwrap_or_default()
    }

    fn wait_for(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
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

struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Waits for the end; the exit code and everything logged.
    fn end(mut self) -> (i32, String) {
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

    fn engines(&self) -> Vec<u32> {
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
struct Hosted {
    horde: Horde,
    running: Running,
    _runtime: tokio::runtime::Runtime,
}

impl Hosted {
    fn new() -> Self {
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

    fn echo(&self) -> Echo {
        Echo::at(&self.running.base())
    }

    fn ask(&self, prompt: &str) {
        let body = json!({
            "prompt": prompt,
            "params": { "max_length": 16, "max_context_length": 80 },
            "models": ["echo/one"],
        });
        self.horde.file("generate/text/async", &body).unwrap();
    }
}

#[test]
fn a_worker_starts_serves_pauses_resumes_and_finishes() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let started = Instant::now();
    let worker = echo.start();
    echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    // The promise is one second; a busy machine gets the tenfold.
    assert!(started.elapsed() < Duration::from_secs(10));
    for _ in 0..3 {
        hosted.ask("CANARYPROMPT hello");
    }
    let status = echo.wait_for("three deliveries", |status| {
        status["status"]["totals"]["submitted"] == 3
    });
    assert_eq!(status["worker_name"], "echo-tester");
    assert_eq!(worker.engines().len(), 1);

    let paused = echo.output(&["pause", "2h"]);
    assert_eq!(paused.code, 0);
    assert!(paused.stdout.contains("pauses for 2 h 00 min"), "{}", paused.stdout);
    echo.wait_for("the pause", |status| {
        status["status"]["devices"][0]["state"] == "stopped"
    });
    assert!(worker.engines().is_empty(), "a pause gives all device memory back");
    assert_eq!(echo.output(&["resume"]).code, 0);
    echo.wait_for("serving again", |status| {
        status["status"]["devices"][0]["state"] == "ready"
    });

    assert_eq!(echo.output(&["finish"]).code, 0);
    let (code, log) = worker.end();
    assert_eq!(code, 0, "{log}");
    assert!(!log.contains("CANARYPROMPT") && !log.contains(WORKER_KEY), "{log}");
    let told = std::fs::read_to_string(echo.state_dir().join("status.json")).unwrap();
    assert!(!told.contains("CANARYPROMPT") && !told.contains(WORKER_KEY));
    assert!(
        log.lines()
            .filter(|line| line.starts_with('{'))
            .all(|line| serde_json::from_str::<Value>(line).is_ok())
    );
    assert_eq!(echo.status(), json!({ "running": false }));
}

#[test]
fn nothing_listens_and_the_key_is_not_handed_on() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let worker = echo.start();
    let status = echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    let engines = worker.engines();
    assert_eq!(engines.len(), 1);
    for pid in engines.iter().chain([&worker.child.id()]) {
        match listening(*pid) {
            Some(sockets) => assert_eq!(sockets, Vec::<String>::new(), "pid {pid}"),
            // Only root may look into a supervisor that has closed its memory; then the kernel's word must do.
            None => assert_eq!(status["sandbox"], "listening on TCP is denied by the kernel (Landlock)"),
        }
        let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&command_line).contains(WORKER_KEY));
    }
    let environment = std::fs::read(format!("/proc/{}/environ", engines[0])).unwrap();
    assert!(
        !String::from_utf8_lossy(&environment).contains(WORKER_KEY),
        "the engine must not get the key"
    );
}

/// Sockets of `pid` that listen: inodes of its descriptors found in LISTEN state. `None` when it may not be looked into.
fn listening(pid: u32) -> Option<Vec<String>> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let inodes: Vec<String> = links
        .filter_map(|link| std::fs::read_link(link.path()).ok())
        .filter_map(|target| {
            Some(
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .trim_end_matches(']')
                    .to_owned(),
            )
        })
        .collect();
    let listening = ["tcp", "tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok())
        .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .filter(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(3) == Some(&"0A") && fields.get(9).is_some_and(|inode| inodes.iter().any(|own| own == inode))
        })
        .collect();
    Some(listening)
}

#[test]
fn f078_a_second_instance_is_75_and_names_the_first() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let worker = echo.start();
    echo.wait_for("the start", |status| status["running"] == true);
    let second = echo.output(&["--log", "text"]);
    assert_eq!(second.code, 75);
    assert!(
        second.stderr.contains(&format!("pid {}", worker.child.id())),
        "{}",
        second.stderr
    );
}

#[test]
fn f060_f076_after_sigkill_the_engine_is_gone_and_a_new_start_is_free() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let worker = echo.start();
    echo.wait_for("a ready engine", |status| {
        status["status"]["devices"][0]["state"] == "ready"
    });
    let engine = worker.engines()[0];
    worker.signal(Signal::SIGKILL);
    drop(worker);
    let give_up = Instant::now() + PATIENCE;
    while is_alive(engine) {
        assert!(Instant::now() < give_up, "the engine outlives its supervisor");
        std::thread::sleep(Duration::from_millis(10));
    }
    let _next = echo.start();
    echo.wait_for("the next start", |status| status["running"] == true);
}

fn is_alive(pid: u32) -> bool {
    // A zombie that waits for its new parent has ended.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.trim_start().starts_with('Z'))
    })
}

#[test]
fn f057_f058_f059_signals_drain_then_hand_back_then_leave() {
    let hosted = Hosted::new();
    // It takes 100 s, which is within lease and grace: only handing back ends it soon.
    let echo = hosted
        .echo()
        .env("ECHO_WORD_MS", "100")
        .env("ECHO_WORDS", "1000")
        .env("HORDE_GRACE", "2m");
    let worker = echo.start();
    hosted.ask("a long answer");
    echo.wait_for("a running job", |status| {
        status["status"]["jobs"][0]["stage"] == "running"
    });
    worker.signal(Signal::SIGTERM);
    echo.wait_for("the drain", |status| status["status"]["state"] == "stopping");
    worker.signal(Signal::SIGINT);
    let (code, log) = worker.end();
    assert_eq!(code, 0, "{log}");
    let summary = hosted.horde.state().ledger.summary();
    assert_eq!(hosted.horde.state().ledger.open(), Vec::<&str>::new(), "{summary:?}");

    let worker = echo.start();
    echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    let asked = Instant::now();
    worker.signal(Signal::SIGQUIT);
    worker.end();
    assert!(asked.elapsed() < Duration::from_secs(5));
}

#[test]
fn without_a_network_the_worker_keeps_trying_and_says_so() {
    let echo = Echo::at("http://127.0.0.1:9/api");
    let worker = echo.start();
    let status = echo.wait_for("a failed pop", |status| {
        status["status"]["poll"]["failed"].as_u64() > Some(0)
    });
    let why = echo.wait_for("the reason", |status| status["status"]["idle"].is_string());
    assert!(
        why["status"]["idle"]
            .as_str()
            .unwrap()
            .contains("could not reach `127.0.0.1`"),
        "{status}"
    );
    worker.signal(Signal::SIGTERM);
    assert_eq!(worker.end().0, 0);
}

#[test]
fn each_reason_not_to_start_has_its_code_one_message_and_a_hint() {
    let hosted = Hosted::new();
    let base = hosted.running.base();
    let named = || Echo::at(&base);
    let cases: Vec<(&str, i32, Echo)> = vec![
        ("no key", 78, Echo::new().env("ECHO_WORKER_NAME", "echo-tester")),
        ("no name", 78, Echo::new().env("HORDE_API_KEY", WORKER_KEY)),
        (
            "unknown key",
            78,
            named().env("HORDE_API_KEY", "nobodyhasthiskey000000"),
        ),
        ("value out of range", 78, named().env("ECHO_WORDS", "0")),
        ("no model", 66, named().env("ECHO_MODELS", "[]")),
        ("broken model", 66, named().env("ECHO_FAIL", "model")),
        ("no such device", 69, named().env("HORDE_DEVICES", "cuda:7")),
        ("broken device", 69, named().env("ECHO_FAIL", "device")),
        (
            "no state directory",
            73,
            named().env("HORDE_STATE_DIR", "/proc/nowhere"),
        ),
    ];
    let mut told = String::new();
    for (what, code, echo) in cases {
        let output = echo.output(&["--log", "text", "--log-level", "off"]);
        let stderr = output.stderr.replace(&*echo.home.path().to_string_lossy(), "~");
        assert_eq!(output.code, code, "{what}: {stderr}");
        told.push_str(&format!("── {what}: exit {code}\n{stderr}"));
    }
    insta::assert_snapshot!(told);
}

#[test]
fn a_name_that_belongs_to_somebody_else_is_78_before_any_work_and_doctor_sees_it() {
    let hosted = Hosted::new();
    let pop = json!({ "name": "echo-tester", "models": ["echo/one"], "bridge_agent": "other:1:x" });
    hosted
        .horde
        .call("POST", "generate/text/pop", local_horde::CLIENT_KEY, &pop)
        .unwrap();
    let echo = hosted.echo();
    let output = echo.output(&["--log", "text", "--log-level", "off"]);
    assert_eq!(output.code, 78, "{}", output.stderr);
    assert!(
        output
            .stderr
            .contains("choose another `worker_name` than `echo-tester`"),
        "{}",
        output.stderr
    );
    let found = echo.output(&["doctor"]);
    assert_eq!(found.code, 78, "{}", found.stdout);
    assert!(
        found
            .stdout
            .contains("FAIL  worker name: `echo-tester` belongs to another account"),
        "{}",
        found.stdout
    );
}

#[test]
fn doctor_looks_at_everything_and_its_code_is_that_of_the_first_failure() {
    let hosted = Hosted::new();
    let output = hosted.echo().output(&["doctor", "--json"]);
    let found: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!((output.code, &found["exit_code"]), (0, &json!(0)), "{found:#}");
    let verdicts: Vec<String> = found["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["name"] != "sandbox" && check["name"] != "read speed (models)")
        .map(|check| {
            format!(
                "{}: {}",
                check["name"].as_str().unwrap(),
                check["verdict"].as_str().unwrap()
            )
        })
        .collect();
    insta::assert_snapshot!(verdicts.join("\n"));
    assert!(!output.stdout.contains(WORKER_KEY));

    let no_model = hosted.echo().env("ECHO_MODELS", "[]").output(&["doctor"]);
    assert_eq!(no_model.code, 66);
    assert!(
        no_model.stdout.contains("FAIL  models: no model is configured"),
        "{}",
        no_model.stdout
    );
    let bad_key = hosted
        .echo()
        .env("HORDE_API_KEY", "nobodyhasthiskey000000")
        .output(&["doctor"]);
    assert_eq!(bad_key.code, 78, "{}", bad_key.stdout);
    let offline = Echo::at("http://127.0.0.1:9/api").output(&["doctor"]);
    assert_eq!(offline.code, 1);
    assert!(
        offline.stdout.contains("FAIL  Horde: `127.0.0.1` cannot be used"),
        "{}",
        offline.stdout
    );
}

#[test]
fn setup_asks_four_things_and_what_it_writes_runs() {
    use std::io::Write;
    let hosted = Hosted::new();
    let mut echo = Echo::new();
    echo.horde_url = hosted.running.base();
    let mut child = echo
        .command(&["setup"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let answers = format!("0000000000\n{WORKER_KEY}\ncolab\nkitchen echo\n7\n1\n2\n");
    child.stdin.take().unwrap().write_all(answers.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!said.contains(WORKER_KEY));
    let config = echo.home.path().join(".config/horde-workers/echo.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("worker_name = \"kitchen echo\""), "{text}");
    assert!(
        text.contains("devices = [\"cpu\"]") && text.contains("models = [\"echo/two\"]"),
        "{text}"
    );
    for file in [
        config.as_path(),
        &echo.home.path().join(".config/horde-workers/api-key"),
    ] {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    assert_eq!(
        echo.output(&["setup"]).code,
        64,
        "an existing configuration is not overwritten"
    );
    assert_eq!(std::fs::read_to_string(&config).unwrap(), text);

    let worker = echo.start();
    let status = echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    assert_eq!(status["worker_name"], "kitchen echo");
    worker.signal(Signal::SIGINT);
    assert_eq!(worker.end().0, 0);
}

#[test]
fn setup_takes_over_what_a_python_worker_was_told() {
    use std::io::Write;
    let hosted = Hosted::new();
    let mut echo = Echo::new();
    echo.horde_url = hosted.running.base();
    let yaml = echo.home.path().join("bridgeData.yaml");
    let text = format!(
        "api_key: \"{WORKER_KEY}\"\nworker_name: 'old faithful'\npriority_usernames:\n  - friend#12\nnsfw: false\nmax_power: 8\n"
    );
    std::fs::write(&yaml, text).unwrap();
    let mut child = echo
        .command(&["setup", "--import", yaml.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"1\n1\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("Not taken over") && said.contains("max_power") && !said.contains(WORKER_KEY),
        "{said}"
    );
    let text = std::fs::read_to_string(echo.home.path().join(".config/horde-workers/echo.toml")).unwrap();
    for line in [
        "worker_name = \"old faithful\"",
        "priority_usernames = [\"friend#12\"]",
        "nsfw = false",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(echo.output(&["doctor"]).code, 0);
    let missing = echo.output(&["setup", "--import", "/nowhere.yaml"]);
    assert_eq!(missing.code, 64, "{}", missing.stderr);
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_supervisor_is_small() {
    let hosted = Hosted::new();
    let echo = hosted.echo();
    let worker = echo.start();
    echo.wait_for("the first pop", |status| {
        status["status"]["poll"]["pops"].as_u64() > Some(0)
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 64 * 1024, "{kib} KiB resident");
}
