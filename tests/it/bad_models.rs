//! Checkpoints that are damaged before the start or under the running worker: refused by name, handed back, and nobody else
//! suffers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::demo::dreamer::{MODEL, settings};
use e2e::demo::stage::start_worker;
use e2e::programs::built;
use local_horde::{Horde, WORKER_KEY, http};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::bad_jobs::{End, ended, script};
use crate::scripted;

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);

fn tiny(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path);
    std::fs::read(path).expect("it is part of the repository")
}

/// Puts a checkpoint into the folder and into its `models.toml`.
fn put(models: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = models.join(format!("{name}.safetensors"));
    std::fs::write(&path, bytes).expect("the folder can be written");
    let entry = format!(
        "[[model]]\nname = \"{name}\"\nkind = \"image\"\nbaseline = \"stable_diffusion_1\"\n\
         [[model.file]]\npath = \"{name}.safetensors\"\nlocal_path = {:?}\n",
        path.display().to_string()
    );
    let list = models.join("models.toml");
    let known = std::fs::read_to_string(&list).unwrap_or_default();
    std::fs::write(list, known + &entry).expect("the folder can be written");
    path
}

/// Damaged files by what is wrong with them.
fn damaged() -> Vec<(&'static str, Vec<u8>)> {
    let whole = tiny("tiny-shapes-sd15/tiny-shapes-sd15.safetensors");
    let header = |bytes: u64, rest: &[u8]| [&bytes.to_le_bytes()[..], rest].concat();
    let twice = br#"{"a":{"dtype":"F16","shape":[4611686018427387904,4],"data_offsets":[0,8]}}"#;
    vec![
        ("half", whole[..whole.len() / 2].to_vec()),
        ("half-a-header", whole[..1000].to_vec()),
        ("nothing", Vec::new()),
        ("endless-header", header(1 << 63, &whole[8..2000])),
        (
            "more-than-all-memory",
            header(twice.len() as u64, &[&twice[..], &[0; 8]].concat()),
        ),
        ("no-json", header(16, &[b'x'; 64])),
        ("a-page", b"<!doctype html><html>404</html>".to_vec()),
        ("a-pickle", [b"PK\x03\x04archive/data.pkl", &[0u8; 400][..]].concat()),
        ("another-network", tiny("tiny-shapes-blip/model.safetensors")),
    ]
}

/// `dreamer run` with the settings of demos and these beside them.
fn dreamer(models: &Path, base: &str, state: &Path, served: &str) -> Command {
    let mut command = Command::new(built("dreamer").expect("it is built"));
    command
        .arg("run")
        .envs(settings(models).expect("the tiny model is part of the repository"))
        .env("HORDE_URL", base)
        .env("HORDE_API_KEY", WORKER_KEY)
        .env("HORDE_WORKER_NAME", "a dreamer with damaged files")
        .env("HORDE_STATE_DIR", state)
        .env("XDG_CONFIG_HOME", state)
        .env("DREAMER_UNCHECKED_ON_LOOPBACK", "true")
        .env("DREAMER_MODELS", served);
    command
}

#[test]
fn a_damaged_checkpoint_is_refused_by_its_name_with_what_to_do() {
    for (name, bytes) in damaged() {
        let (models, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut command = dreamer(models.path(), "http://127.0.0.1:9/api", state.path(), name);
        // The settings wrote a list of their own.
        put(models.path(), name, &bytes);
        let output = command.output().expect("it runs");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(66), "{name}: {errors}");
        let said = errors
            .lines()
            .find(|line| line.starts_with("error: "))
            .unwrap_or_default();
        assert!(said.contains(&format!("`{name}`")), "{name}: {errors}");
        assert!(
            errors.lines().any(|line| line.starts_with("hint: ")),
            "{name}: {errors}"
        );
        assert!(!errors.contains("panicked"), "{name}: {errors}");
    }
}

/// A Horde that hands out these jobs in turn; their ids.
async fn horde(jobs: &[Value]) -> (Horde, http::Running, Vec<String>) {
    let (horde, running) = scripted::horde().await;
    let ids = jobs.iter().map(|change| script(&horde, change)).collect();
    (horde, running, ids)
}

async fn outcome(horde: &Horde, id: &str, until: Instant) -> End {
    scripted::outcome("a job", until, || ended(horde, id)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_checkpoints_beside_a_sound_one_are_left_out_by_name_and_the_sound_one_is_served() {
    let (horde, running, ids) = horde(&[json!({}), json!({ "model": "half" }), json!({})]).await;
    let (models, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names: Vec<&str> = damaged().into_iter().map(|(name, _)| name).collect();
    let served = format!("{},{MODEL}", names.join(","));
    let command = dreamer(models.path(), &running.base(), state.path(), &served);
    for (name, bytes) in damaged() {
        put(models.path(), name, &bytes);
    }
    let log = state.path().join("errors");
    let to = std::fs::File::create(&log).unwrap();
    let mut worker = tokio::process::Command::from(command);
    let mut worker = worker
        .stdin(Stdio::null())
        .stderr(to)
        .kill_on_drop(true)
        .spawn()
        .expect("it runs");
    let until = Instant::now() + PATIENCE;
    let mut ends = Vec::new();
    for id in &ids {
        ends.push(outcome(&horde, id, until).await);
    }
    let made = || End::Made((64, 64), vec![]);
    assert_eq!(ends, [made(), End::HandedBack, made()]);
    let pid = worker.id().and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(worker.wait().await.unwrap().success());
    let log = std::fs::read_to_string(log).unwrap();
    let told = |name: &str| {
        let is_told = |line: &str| line.contains(name) && (line.contains("ERROR") || line.contains("WARN"));
        log.lines().any(is_told)
    };
    for name in names {
        assert!(told(name), "{name} is not told: {log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_damaged_under_the_running_worker_costs_its_own_jobs_and_no_others() {
    const SECOND: &str = "second";
    let of_second = || json!({ "model": SECOND });
    let (horde, running, ids) = horde(&[of_second()]).await;
    let (models, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let usual = settings(models.path()).expect("the tiny model is part of the repository");
    let path = put(
        models.path(),
        SECOND,
        &tiny("tiny-shapes-sd15/tiny-shapes-sd15.safetensors"),
    );
    let served = format!("{MODEL},{SECOND}");
    let more = [
        ("DREAMER_UNCHECKED_ON_LOOPBACK", "true"),
        ("DREAMER_MODELS", served.as_str()),
    ];
    let environment: Vec<_> = usual
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .chain(more)
        .collect();
    let mut worker = start_worker("dreamer", &running.base(), state.path(), &environment).expect("dreamer starts");
    let until = Instant::now() + PATIENCE;
    let made = || End::Made((64, 64), vec![]);
    assert_eq!(outcome(&horde, &ids[0], until).await, made());
    let before = horde.state().objects.look(&format!("{}.webp", ids[0])).cloned();

    // In place, as a full disk or a careless copy does it: what the engine has mapped of it is gone.
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(50_000).unwrap();
    for (model, is_sound) in [(SECOND, false), (MODEL, true), (SECOND, false), (MODEL, true)] {
        let change = json!({ "model": model });
        let id = script(&horde, &change);
        let end = outcome(&horde, &id, until).await;
        let picture = horde.state().objects.look(&format!("{id}.webp")).cloned();
        // What lies in memory may be used on, if it is what it was.
        let is_same = end == made() && picture == before;
        assert!(
            if is_sound {
                end == made()
            } else {
                end == End::HandedBack || is_same
            },
            "{model}: {end:?}"
        );
        assert!(worker.ended().expect("it can be asked").is_none(), "the worker lives");
    }
    scripted::drained(&horde, worker).await;
}
