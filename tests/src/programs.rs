//! Starts the programs people run, from the folder this program itself was built into, and ends them again.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A started program. Dropping it kills it.
pub struct Program {
    name: &'static str,
    child: Child,
}

/// Where cargo put the program `name`: the folder of this executable, or the one above it for tests.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("this program has no path")?;
    here.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("`{name}` is not built\nhint: cargo build -p {name}"))
}

impl Program {
    /// Starts `command`, which must run the program called `name`.
    pub fn start(name: &'static str, mut command: Command) -> anyhow::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("could not start `{name}`"))?;
        Ok(Self { name, child })
    }

    /// Starts `local-horde` on a free port and returns it with its base address, such as `http://127.0.0.1:40123/api`.
    pub async fn local_horde(arguments: &[&str]) -> anyhow::Result<(Self, String)> {
        let mut command = Command::new(built("local-horde")?);
        command
            .args(["--port", "0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut program = Self::start("local-horde", command)?;
        let stdout = program.child.stdout.take().context("local-horde has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let address = tokio::time::timeout(Duration::from_secs(20), async {
            while let Some(line) = lines.next_line().await? {
                if let Some(start) = line.find("http://") {
                    return Ok(line[start..]
                        .split_whitespace()
                        .next()
                        .unwrap_or_default()
                        .trim_end_matches('/')
                        .to_owned());
                }
            }
            bail!("local-horde ended without telling its address")
        })
        .await
        .context("local-horde did not tell its address within 20 s")??;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let base = if address.ends_with("/api") {
            address
        } else {
            format!("{address}/api")
        };
        Ok((program, base))
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = self.pid().with_context(|| format!("`{}` has ended", self.name))?;
        kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("could not signal `{}`", self.name))
    }

    /// Waits for its end.
    pub async fn wait(&mut self, at_most: Duration) -> anyhow::Result<ExitStatus> {
        let waited = tokio::time::timeout(at_most, self.child.wait()).await;
        Ok(waited.with_context(|| format!("`{}` did not end within {at_most:?}", self.name))??)
    }
}
