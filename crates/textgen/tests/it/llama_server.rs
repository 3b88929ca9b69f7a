//! A backend that was not written here: llama.cpp's own server from a pinned package, in an environment made once.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

/// A running server. Dropping it ends it.
pub struct LlamaServer {
    child: Child,
    /// It ends with its input, also when this process is killed.
    _input: ChildStdin,
    address: String,
}

impl LlamaServer {
    /// Serves `model` with `slots` of `context` tokens each on one thread, on a free loopback port.
    pub fn start(model: &Path, slots: u32, context: u32) -> Self {
        Self::start_at(model, slots, context, 0)
    }

    /// As [`Self::start`], on a port of the caller's choice.
    pub fn start_at(model: &Path, slots: u32, context: u32, port: u16) -> Self {
        let mut child = Command::new(python())
            .arg(fixture("llama_server.py"))
            .arg(model)
            .args([slots, slots * context, 1, u32::from(port)].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("Python starts");
        let input = child.stdin.take().expect("it has an input");
        let mut address = String::new();
        BufReader::new(child.stdout.take().expect("it has an output"))
            .read_line(&mut address)
            .expect("its output can be read");
        let address = address.trim().to_owned();
        assert!(address.starts_with("http://127.0.0.1:"), "`{address}` is no address");
        Self {
            child,
            _input: input,
            address,
        }
    }

    /// Its address, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> &str {
        &self.address
    }

    /// Ends it without a word, as the kernel does when memory is short.
    pub fn kill(&mut self) {
        self.child.kill().expect("it can be ended");
        self.child.wait().expect("it ends");
    }

    /// How many of its slots work at this moment, by its own word.
    pub fn busy_slots(&self) -> usize {
        let host = self.address.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host).expect("it listens");
        write!(
            stream,
            "GET /slots HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        )
        .expect("it hears");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let busy = |text: &str| text.matches("\"is_processing\":true").count();
        assert!(answer.contains("\"is_processing\":"), "{answer}");
        busy(&answer)
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn fixture(name: &str) -> PathBuf {
    // This file is also part of the tests of whole workers, whose folder is another one.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = [
        here.join("tests/fixtures"),
        here.join("../crates/textgen/tests/fixtures"),
    ];
    let found = places
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("`{name}` lies in crates/textgen/tests/fixtures"))
}

/// A virtual environment with the server, made once beside the other caches; the wheel's hash is pinned.
fn python() -> PathBuf {
    let requirements = fixture("llama_server.txt");
    let cache = std::env::var_os("HORDE_WORKERS_CACHE").map(PathBuf::from);
    let cache = cache
        .or_else(|| Some(std::env::home_dir()?.join(".cache/horde-workers")))
        .expect("a home folder");
    let folder = cache.join("venvs");
    std::fs::create_dir_all(&folder).expect("a cache folder");
    // Tests are processes of their own: one makes the environment, the others wait.
    let lock = File::create(folder.join("xllamacpp.lock")).expect("the cache can be written");
    lock.lock().expect("the cache can be locked");
    let venv = folder.join("xllamacpp");
    let (python, ready) = (venv.join("bin/python"), venv.join("ready.txt"));
    let wanted = std::fs::read_to_string(&requirements).expect("the requirements");
    if std::fs::read_to_string(&ready).is_ok_and(|made| made == wanted) {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    run(Command::new(&python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ])
        .args(["--only-binary=:all:", "--require-hashes", "-r"])
        .arg(&requirements));
    std::fs::write(ready, wanted).expect("the cache can be written");
    python
}

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}\nhint: apt-get install python3-venv"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{said}",
        output.status
    );
}
