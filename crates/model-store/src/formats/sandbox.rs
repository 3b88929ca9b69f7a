//! The child that reads pickles: it gets one open file to read and one to write, and can reach nothing else.
//!
//! Landlock takes every path and port away, limits take memory, time, output and further files; the reader itself
//! ([`super::checkpoint`]) never calls anything. Where the kernel has no Landlock the limits remain.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus};
use nix::sys::resource::{Resource, setrlimit};

use super::{Refusal, checkpoint};

/// Memory of the child.
const MEMORY_BYTES: u64 = 1 << 30;
/// Processor seconds for a small file; larger ones get more, see [`Converter::run`].
const CPU_SECONDS: u64 = 20;

/// How the child is started.
#[derive(Clone, Debug)]
pub struct Converter {
    /// A command that ends up in [`child_main`], such as this program with `models convert-pickle`.
    pub command: Vec<OsString>,
}

impl Default for Converter {
    fn default() -> Self {
        let program = std::env::current_exe().unwrap_or_default();
        Self {
            command: vec![program.into_os_string(), "models".into(), "convert-pickle".into()],
        }
    }
}

impl Converter {
    /// Converts `input` to `output` in a child. Blocks; ends in bounded time.
    pub fn run(&self, input: &Path, output: &Path) -> Result<(), Refusal> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| Refusal::Malformed("no converter is set".into()))?;
        let source = File::open(input)?;
        let megabytes = source.metadata()?.len() >> 20;
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env(LIMIT, megabytes.to_string())
            .stdin(Stdio::from(source))
            .stdout(Stdio::from(File::create(output)?))
            .stderr(Stdio::piped())
            .spawn()?;
        let patience = Duration::from_secs(60 + megabytes / 10);
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if start.elapsed() > patience {
                child.kill()?;
                child.wait()?;
                return Err(Refusal::Malformed(format!(
                    "not converted within {} s",
                    patience.as_secs()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            let _ = stderr.take(4096).read_to_string(&mut said);
        }
        let said = said.lines().last().unwrap_or_default().trim().to_owned();
        Err(Refusal::Malformed(match (said.is_empty(), status.code()) {
            (false, _) => said,
            (true, Some(code)) => format!("the converter ended with code {code}"),
            (true, None) => "the converter hit one of its limits".to_owned(),
        }))
    }
}

const LIMIT: &str = "HORDE_WORKERS_CONVERT_MEGABYTES";

/// What the child does: standard input is the checkpoint, standard output the safetensors file. Returns the exit code.
pub fn child_main() -> i32 {
    // A thread of its own: Landlock holds the thread that asks for it and all that come after.
    let outcome = std::thread::spawn(|| {
        let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        let output = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
        confine()?;
        checkpoint::convert(input, output)
    });
    match outcome.join() {
        Ok(Ok(())) => 0,
        Ok(Err(refusal)) => {
            eprintln!("{refusal}");
            1
        }
        Err(_) => 2,
    }
}

fn confine() -> Result<RulesetStatus, Refusal> {
    let megabytes: u64 = std::env::var(LIMIT)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let limits = [
        (Resource::RLIMIT_AS, MEMORY_BYTES),
        (Resource::RLIMIT_CPU, CPU_SECONDS + megabytes / 50),
        (Resource::RLIMIT_FSIZE, (megabytes + 1).saturating_mul(4 << 20)),
        (Resource::RLIMIT_NOFILE, 32),
        (Resource::RLIMIT_CORE, 0),
    ];
    for (resource, limit) in limits {
        setrlimit(resource, limit, limit).map_err(std::io::Error::from)?;
    }
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V5)))
        .and_then(|ruleset| ruleset.create())
        .and_then(|ruleset| ruleset.restrict_self());
    ruleset
        .map(|restricted| restricted.ruleset)
        .map_err(|error| Refusal::Malformed(format!("the sandbox could not be built: {error}")))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const PROBE: &str = "MODEL_STORE_TEST_PROBE";

    /// What a reader that was taken over might try.
    fn attempts(place: &str) -> [(&'static str, std::io::Result<()>); 6] {
        let (dir, address) = place.split_once('=').unwrap();
        let dir = Path::new(dir);
        [
            ("open", File::open(dir.join("secret")).map(drop)),
            ("create", File::create(dir.join("new")).map(drop)),
            ("list", std::fs::read_dir(dir).map(drop)),
            ("remove", std::fs::remove_file(dir.join("new"))),
            ("run", Command::new("/bin/true").status().map(drop)),
            ("connect", TcpStream::connect(address).map(drop)),
        ]
    }

    /// This test starts itself again as the child, which is confined like the one that reads pickles.
    #[test]
    fn the_child_can_open_create_list_remove_run_and_connect_to_nothing() {
        if let Ok(place) = std::env::var(PROBE) {
            for (what, outcome) in attempts(&place) {
                assert!(outcome.is_ok(), "free: {what}: {outcome:?}");
            }
            std::fs::write(Path::new(place.split_once('=').unwrap().0).join("new"), "x").unwrap();
            let status = confine().unwrap();
            for (what, outcome) in attempts(&place) {
                eprintln!("{status:?} {what} {:?}", outcome.map_err(|error| error.kind()));
            }
            let memory = Vec::<u8>::new().try_reserve_exact(2 << 30);
            eprintln!("{status:?} memory {:?}", memory.map_err(drop));
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "x").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = format!("{}={}", dir.path().display(), listener.local_addr().unwrap());
        let name = "formats::sandbox::tests::the_child_can_open_create_list_remove_run_and_connect_to_nothing";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(PROBE, place)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{said}");
        assert!(said.contains(" memory Err(())"), "{said}");
        if said.contains("NotEnforced") {
            eprintln!("this kernel has no Landlock: only the limits were looked at");
            return;
        }
        for what in ["open", "create", "list", "remove", "run"] {
            assert!(said.contains(&format!(" {what} Err(PermissionDenied)")), "{said}");
        }
        // Ports came to Landlock with Linux 6.7; an older one confines files only.
        if said.contains("FullyEnforced") {
            assert!(said.contains(" connect Err(PermissionDenied)"), "{said}");
        }
    }
}
