//! The program as its user runs it: killed at any moment, limited, asked for nonsense.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use model_store::digest::Sha256Sum;

use crate::server::{Reply, Server, noise};

fn models_toml(dir: &tempfile::TempDir, server: &Server, file: &[u8]) -> std::path::PathBuf {
    let path = dir.path().join("models.toml");
    let text = format!(
        "[[model]]\nname = \"big\"\nkind = \"text\"\n[[model.file]]\npath = \"big.bin\"\nsha256 = \"{}\"\nsize_bytes = {}\nurls = [\"{}\"]\n",
        Sha256Sum::of(file),
        file.len(),
        server.url("/big.bin")
    );
    std::fs::write(&path, text).unwrap();
    path
}

fn pull(dir: &tempfile::TempDir, models: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_model-store"));
    command
        .args(["pull", "big", "--json", "--private-network", "--floor", "0", "--models"])
        .arg(models)
        .arg("--to")
        .arg(dir.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_the_next_start_goes_on_and_the_sum_is_right() {
    let file = noise(24 << 20);
    let served = file.clone();
    let server = Server::start(move |seen| Reply {
        drip: Duration::from_millis(8),
        ..Reply::file(seen, &served)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let models = models_toml(&dir, &server, &file);
    let dest = dir.path().join("text/big.bin");
    let mut kills = 0;
    for round in 0u64.. {
        assert!(round < 60, "no end in sight");
        let mut child = pull(&dir, &models).spawn().unwrap();
        let life = Duration::from_millis(150 + (round * 7919) % 400);
        tokio::time::sleep(life).await;
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        assert!(
            !dest.exists() || Sha256Sum::of_file(&dest).unwrap() == Sha256Sum::of(&file),
            "half a file stands under the final name"
        );
        if dest.exists() {
            break;
        }
    }
    assert!(kills >= 2, "the program was too quick to be killed");
    assert!(pull(&dir, &models).status().unwrap().success());
    assert_eq!(Sha256Sum::of_file(&dest).unwrap(), Sha256Sum::of(&file));
    assert!(
        server.sent() < 4 * file.len() as u64,
        "{} bytes were sent for {}",
        server.sent(),
        file.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_named_and_leaves_no_file() {
    let file = noise(4 << 20);
    let served = file.clone();
    let server = Server::start(move |seen| Reply::file(seen, &served)).await;
    let dir = tempfile::tempdir().unwrap();
    let models = models_toml(&dir, &server, &file);
    // A file size limit stands for the full disk: writes fail in the same place, for every user and without a mount.
    let inner = pull(&dir, &models);
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\""])
        .arg(inner.get_program())
        .args(inner.get_args());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        text.contains("no space left") && text.contains("hint: free some space"),
        "{text}"
    );
    assert!(!dir.path().join("text/big.bin").exists());
}

#[test]
fn an_unknown_name_gets_the_nearest_one_as_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_model-store"))
        .args(["pull", "smollm2-135-instruct", "--to"])
        .arg(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("did you mean `smollm2-135m-instruct`"), "{text}");
}

#[test]
fn the_names_are_listed() {
    let mut out = String::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_model-store"))
        .arg("list")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(out.lines().any(|line| line.starts_with("realesrgan-x4plus ")), "{out}");
}
