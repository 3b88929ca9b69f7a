//! Our downloads against aria2c, on a loopback server that gives 200 MB/s in all and answers after 20 ms; then killed
//! at random points, again and again: `cargo run -p model-store --example bench-download -- [--json] [--mib N] [--runs N] [--kills N]`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use model_store::digest::Sha256Sum;
use model_store::fetch::{Control, Downloader, FetchPlan, FetchSettings, HttpSettings, Silent};
use serde_json::json;

const RATE: f64 = 200e6;
const LATENCY: Duration = Duration::from_millis(20);
const STEP: usize = 64 << 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [word, url, dest, sum, bytes] if word == "--fetch" => fetch(url, Path::new(dest), sum, bytes),
        arguments => bench(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(arguments: &[String]) -> anyhow::Result<()> {
    let number = |name: &str, default: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(Ok(default), |at| {
            arguments
                .get(at + 1)
                .context("a number is missing")?
                .parse()
                .context("not a number")
        })
    };
    let bytes = number("--mib", 512)? << 20;
    let (runs, kills) = (number("--runs", 3)?.max(1), number("--kills", 50)?);
    let file = Arc::new(noise(bytes));
    let sum = Sha256Sum::of(&file);
    let url = serve(file)?;
    let dir = std::env::temp_dir().join(format!("bench-download-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let outcome = (|| {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            ours.push(timed(
                &mut our_command(&url, &dir.join("ours"), sum, bytes)?,
                &dir.join("ours"),
                sum,
            )?);
            theirs.push(timed(&mut aria2c(&url, &dir, sum), &dir.join("theirs"), sum)?);
        }
        let killed = kill_at_random(&url, &dir.join("killed"), sum, bytes, kills)?;
        let (ours, theirs) = (median(&mut ours), median(&mut theirs));
        let ratio = ours / theirs;
        if arguments.iter().any(|argument| argument == "--json") {
            println!(
                "{}",
                json!({"bytes": bytes, "ours_s": ours, "aria2c_s": theirs, "ratio": ratio, "target": 1.1, "runs": runs, "kills": kills, "finished_downloads": killed})
            );
        } else {
            println!(
                "{} MiB at 200 MB/s and 20 ms, median of {runs}: {ours:.2} s, aria2c {theirs:.2} s, ratio {ratio:.3} (target ≤ 1.1)",
                bytes >> 20
            );
            println!("killed {kills} times: {killed} downloads finished in between, every sum right");
        }
        Ok(())
    })();
    std::fs::remove_dir_all(&dir)?;
    outcome
}

fn our_command(url: &str, dest: &Path, sum: Sha256Sum, bytes: usize) -> anyhow::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("--fetch")
        .arg(url)
        .arg(dest)
        .arg(sum.to_string())
        .arg(bytes.to_string());
    Ok(command)
}

fn aria2c(url: &str, dir: &Path, sum: Sha256Sum) -> Command {
    let mut command = Command::new("aria2c");
    command
        .args([
            "-q",
            "-x6",
            "-s6",
            "-k1M",
            "--allow-overwrite=true",
            "-o",
            "theirs",
            "-d",
        ])
        .arg(dir);
    command.arg(format!("--checksum=sha-256={sum}")).arg(url);
    command
}

fn timed(command: &mut Command, dest: &Path, sum: Sha256Sum) -> anyhow::Result<f64> {
    let start = Instant::now();
    let program = command.get_program().to_owned();
    let status = command
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("starting `{}`", program.display()))?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(status.success(), "`{}` failed", program.display());
    ensure!(
        Sha256Sum::of_file(dest)? == sum,
        "`{}` left other bytes",
        program.display()
    );
    for path in [dest.to_owned(), dest.with_file_name(".ours.sum")] {
        let _ = std::fs::remove_file(path);
    }
    Ok(seconds)
}

/// Kills the download `kills` times at random moments; counts the downloads that finished in between.
fn kill_at_random(url: &str, dest: &Path, sum: Sha256Sum, bytes: usize, kills: usize) -> anyhow::Result<usize> {
    let (mut killed, mut finished, mut rounds) = (0, 0, 0usize);
    let mut state = 0x1234_5678_9abc_def1u64;
    while killed < kills || finished == 0 {
        rounds += 1;
        ensure!(rounds < 20 * (kills + 1), "downloads make no progress between kills");
        let mut child = our_command(url, dest, sum, bytes)?.spawn()?;
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let life = Duration::from_millis(50 + state % 600);
        let start = Instant::now();
        let status = loop {
            match child.try_wait()? {
                Some(status) => break Some(status),
                None if killed < kills && start.elapsed() >= life => break None,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        match status {
            None => {
                child.kill()?;
                child.wait()?;
                killed += 1;
            }
            Some(status) if status.success() => {
                ensure!(Sha256Sum::of_file(dest)? == sum, "other bytes after {killed} kills");
                finished += 1;
                std::fs::remove_file(dest)?;
            }
            Some(_) => bail!("a download failed after {killed} kills"),
        }
    }
    Ok(finished)
}

fn fetch(url: &str, dest: &Path, sum: &str, bytes: &str) -> anyhow::Result<()> {
    let plan = FetchPlan {
        sha256: Some(sum.parse()?),
        size_bytes: Some(bytes.parse()?),
        ..FetchPlan::new("bench", dest)
    }
    .url(url.parse()?);
    let settings = FetchSettings {
        http: HttpSettings {
            private_network: true,
            ..HttpSettings::default()
        },
        floor_bytes: 0,
        ..FetchSettings::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        Downloader::new(settings)?
            .fetch(&plan, &Silent, &Control::default())
            .await
    })?;
    Ok(())
}

/// Starts the limited server; it ends with the process.
fn serve(file: Arc<Vec<u8>>) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/file.bin", listener.local_addr()?);
    let line = Arc::new(Mutex::new(Instant::now()));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (file, line) = (file.clone(), line.clone());
            std::thread::spawn(move || {
                // A client that goes away is part of the bench.
                let _ = answer(stream, &file, &line);
            });
        }
    });
    Ok(url)
}

fn answer(mut stream: TcpStream, file: &[u8], line: &Mutex<Instant>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut range, mut head_only, mut first) = (None, false, true);
        loop {
            let mut text = String::new();
            if reader.read_line(&mut text)? == 0 {
                return Ok(());
            }
            if first {
                head_only = text.starts_with("HEAD");
                first = false;
            }
            let text = text.trim().to_ascii_lowercase();
            if text.is_empty() {
                break;
            }
            if let Some((start, last)) = text.strip_prefix("range: bytes=").and_then(|text| text.split_once('-')) {
                let start: usize = start.parse().unwrap_or(0).min(file.len());
                let end = last
                    .parse::<usize>()
                    .map_or(file.len(), |last| (last + 1).min(file.len()));
                range = Some((start, end.max(start)));
            }
        }
        std::thread::sleep(LATENCY);
        let (start, end) = range.unwrap_or((0, file.len()));
        let mut head = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/octet-stream\r\naccept-ranges: bytes\r\ncontent-length: {}\r\n",
            if range.is_some() {
                "206 Partial Content"
            } else {
                "200 OK"
            },
            end - start
        );
        if range.is_some() {
            head.push_str(&format!(
                "content-range: bytes {start}-{}/{}\r\n",
                end.saturating_sub(1),
                file.len()
            ));
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if head_only {
            continue;
        }
        for step in file[start..end].chunks(STEP) {
            let until = {
                let mut line = line.lock().expect("no holder of this lock panics");
                // The line may fall behind by a few milliseconds, as sleeps are coarse, but never saves up more.
                let now = Instant::now();
                let begin = (*line).max(now.checked_sub(Duration::from_millis(5)).unwrap_or(now));
                *line = begin + Duration::from_secs_f64(step.len() as f64 / RATE);
                *line
            };
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            stream.write_all(step)?;
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}
