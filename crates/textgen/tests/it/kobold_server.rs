//! A real KoboldCpp, where `KOBOLDCPP` names one: its program, or its `koboldcpp.py` beside the built library.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server. Dropping it ends it.
pub struct KoboldServer {
    child: Child,
    arguments: Vec<OsString>,
    port: u16,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

/// Loading a small model, with room for a program that unpacks itself first.
const PATIENCE: Duration = Duration::from_secs(120);

impl KoboldServer {
    /// Serves `model` with 1024 tokens of context on one thread of a free loopback port, `more` on its command line.
    pub fn start(model: &Path, more: &[&str]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log.txt");
        let arguments: Vec<OsString> = [OsStr::new("--model"), model.as_os_str()]
            .into_iter()
            .chain(
                [
                    "--host",
                    "127.0.0.1",
                    "--port",
                    &port.to_string(),
                    "--contextsize",
                    "1024",
                ]
                .map(OsStr::new),
            )
            .chain(["--threads", "1", "--skiplauncher", "--quiet"].map(OsStr::new))
            .chain(more.iter().map(OsStr::new))
            .map(OsStr::to_owned)
            .collect();
        let server = Self {
            child: spawn(&arguments, &log),
            arguments,
            port,
            log,
            _folder: folder,
        };
        server.ready()
    }

    /// Starts it anew at the same address after it was killed.
    pub fn restart(&mut self) {
        self.child = spawn(&self.arguments, &self.log);
        self.wait();
    }

    fn ready(mut self) -> Self {
        self.wait();
        self
    }

    fn wait(&mut self) {
        let start = Instant::now();
        while !self
            .get("/api/v1/model")
            .is_some_and(|answer| answer.contains("koboldcpp/"))
        {
            let ended = self.child.try_wait().expect("it can be looked at");
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "{}", self.said());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What it printed so far.
    pub fn said(&self) -> String {
        let mut bytes = Vec::new();
        File::open(&self.log)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .expect("its log");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ends it without a word, as the kernel does when memory is short.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be ended");
        self.child.wait().expect("it ends");
    }

    /// The body of what it answers to a GET; `None` while it does not.
    pub fn get(&self, path: &str) -> Option<String> {
        ask(&self.url(), &format!("GET {path} HTTP/1.0\r\n\r\n"))
    }

    /// The body of what it answers to `body`.
    pub fn post(&self, path: &str, body: &str) -> Option<String> {
        post(&self.url(), path, body)
    }
}

/// The body of what the server at `url` answers to `body`.
pub fn post(url: &str, path: &str, body: &str) -> Option<String> {
    let length = body.len();
    ask(
        url,
        &format!("POST {path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n{body}"),
    )
}

fn ask(url: &str, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

fn spawn(arguments: &[OsString], log: &Path) -> Child {
    let program = std::env::var_os("KOBOLDCPP").map(PathBuf::from);
    let program = program.expect("`KOBOLDCPP` is set (`just check-kobold PATH` does)");
    let mut command = if program.extension().is_some_and(|extension| extension == "py") {
        let mut command = Command::new("python3");
        command.arg("-u").arg(&program);
        command
    } else {
        Command::new(&program)
    };
    let file = File::options().create(true).append(true).open(log).expect("a log");
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file.try_clone().expect("a second handle"))
        .stderr(file)
        .spawn()
        .unwrap_or_else(|error| panic!("`{}`: {error}", program.display()))
}

impl Drop for KoboldServer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
