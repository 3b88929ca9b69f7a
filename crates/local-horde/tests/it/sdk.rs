//! Software not written here drives the server: horde-sdk, as a client and as a worker, for all three kinds.

use std::path::{Path, PathBuf};
use std::process::Command;

use local_horde::{Horde, Settings, http};

/// Interpreters, the preferred first: the newest SDK needs Python 3.12.
fn interpreters() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    if let Some(home) = std::env::home_dir()
        && let Ok(versions) = std::fs::read_dir(home.join(".pyenv/versions"))
    {
        found.extend(
            versions
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("3.12"))
                .map(|entry| entry.path().join("bin/python3")),
        );
    }
    found.extend(["python3.12", "python3.13", "python3"].map(PathBuf::from));
    found
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!("{command:?} ended with {}\n{text}", output.status))
    }
}

/// A virtual environment with the SDK, made once beside the other caches.
fn python_with_sdk() -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/requirements.txt");
    let cache = std::env::var_os("HORDE_WORKERS_CACHE").map(PathBuf::from);
    let cache = cache
        .or_else(|| Some(std::env::home_dir()?.join(".cache/horde-workers")))
        .expect("a home folder");
    let venv = cache.join("venvs/horde-sdk");
    let (python, ready) = (venv.join("bin/python"), venv.join("ready.txt"));
    let wanted = std::fs::read_to_string(&requirements).expect("the requirements");
    if std::fs::read_to_string(&ready).is_ok_and(|made| made == wanted) {
        return python;
    }
    std::fs::create_dir_all(cache.join("venvs")).expect("a cache folder");
    let made = interpreters()
        .iter()
        .any(|interpreter| run(Command::new(interpreter).args(["-m", "venv", "--clear"]).arg(&venv)).is_ok());
    assert!(
        made,
        "no Python 3 with `venv` was found\nhint: apt-get install python3-venv"
    );
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(&requirements))
    .expect("horde-sdk installs");
    std::fs::write(ready, wanted).expect("the cache can be written");
    python
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn horde_sdk_drives_it_as_client_and_as_worker_for_all_three_kinds() {
    let python = tokio::task::spawn_blocking(python_with_sdk)
        .await
        .expect("a virtual environment");
    let running = http::serve(
        Horde::new(Settings::default()),
        "127.0.0.1:0".parse().expect("an address"),
    )
    .await
    .expect("a server");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk/drive.py");
    let base = format!("{}/", running.base());
    let folder = tempfile::tempdir().expect("a folder");
    let driven = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(python);
        command
            .arg(script)
            .current_dir(folder.path())
            .env("AI_HORDE_URL", base)
            .env("AIWORKER_CACHE_HOME", folder.path())
            .env("LOGFIRE_IGNORE_NO_CONFIG", "1");
        run(&mut command)
    });
    let said = driven.await.expect("it ran").unwrap_or_else(|error| panic!("{error}"));
    for part in ["text", "image", "alchemy", "around"] {
        assert!(said.contains(&format!("{part} held")), "{said}");
    }
}
