//! A peer: a script in a Python that has its package, one line of JSON in, one line of JSON out.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::de::DeserializeOwned;
use textgen::TextError;

use crate::failed;

/// A package that drives llama.cpp from Python.
pub struct Package {
    /// Its name, for the import and for the folder of its environment.
    pub name: &'static str,
    /// The release that is compared.
    pub version: &'static str,
}

/// A script that answers line by line until its input ends.
pub struct Peer {
    child: Child,
    jobs: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// Starts `script` with `arguments`; the package is installed first where it is missing.
    pub fn start(package: &Package, script: &str, arguments: &[&str]) -> Result<Self, TextError> {
        let mut child = Command::new(python(package)?)
            .args(["-c", script])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let (jobs, answers) = (child.stdin.take(), child.stdout.take());
        let answers = BufReader::new(answers.ok_or_else(|| TextError::Failed("the peer has no output".into()))?);
        Ok(Self { child, jobs, answers })
    }

    /// Hands `job` in and waits for its answer.
    pub fn ask<T: DeserializeOwned>(&mut self, job: &serde_json::Value) -> Result<T, TextError> {
        let jobs = self
            .jobs
            .as_mut()
            .ok_or_else(|| TextError::Failed("the peer has no input".into()))?;
        writeln!(jobs, "{job}").map_err(failed)?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(failed)?;
        serde_json::from_str(&line).map_err(|_| TextError::Failed("the peer ended before it answered".into()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.jobs.take());
        let _ = self.child.wait();
    }
}

/// A Python that has the package, in an environment of its own that is made once.
fn python(package: &Package) -> Result<PathBuf, TextError> {
    let home = std::env::var_os("HOME").ok_or_else(|| TextError::Failed("`HOME` is not set".into()))?;
    let folder = PathBuf::from(home)
        .join(".cache/horde-workers/venvs")
        .join(package.name);
    let python = folder.join("bin/python");
    let import = format!("import {}", package.name);
    let has_it = |python: &PathBuf| {
        let asked = Command::new(python).args(["-c", &import]).output();
        asked.is_ok_and(|output| output.status.success())
    };
    if !has_it(&python) {
        let pinned = format!("{}=={}", package.name, package.version);
        eprintln!("installing {pinned} into {}", folder.display());
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--no-deps", &pinned]))?;
    }
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), TextError> {
    // Nothing but the bench's own lines belongs on standard output.
    let output = command.output().map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(TextError::Failed(format!("{command:?}: {why}")))
}
