//! Times the networks of the vision room beside torch, ncnn and onnxruntime, and compares their numbers, in one run.
//!
//! `just bench-vision [--json] [--stage NAME].. [--threads N].. [--rounds N]`. Real weights where packages carry them, random ones for
//! CLIP and BLIP. Every engine runs each stage in a process of its own, so that peaks of memory are its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use imaging::{Filter, Limits, Picture, encode_png};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};
use vision::background::BackgroundRemover;
use vision::blip::{Blip, BlipConfig};
use vision::clip::{Clip, ClipConfig};
use vision::face::FaceDetector;
use vision::nsfw::OpenNsfw;
use vision::upscale::Upscaler;
use vision::{Device, Weights};

/// Our networks beside others'.
#[derive(Parser)]
struct Args {
    /// Print one JSON object per line instead of a table.
    #[arg(long)]
    json: bool,
    /// Only these stages.
    #[arg(long, value_parser = STAGES.map(|stage| stage.name))]
    stage: Vec<String>,
    /// Only these thread counts.
    #[arg(long, default_values_t = [1, 2])]
    threads: Vec<usize>,
    /// How often each engine runs, all in turn; its least times count.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    /// Python with torch, spandrel, transformers, onnxruntime and ncnn; without it ours runs alone.
    #[arg(long, env = "BENCH_PYTHON")]
    python: Option<PathBuf>,
    /// Models directory.
    #[arg(long, env = "HORDE_WORKERS_MODELS")]
    models: PathBuf,
    /// Where random weights (2 GB), results and, in `wheels`, the packages that peers read are kept.
    #[arg(long, env = "BENCH_DIR")]
    dir: PathBuf,
    /// Run one stage of ours and write its numbers here (what the bench starts itself with).
    #[arg(long, hide = true)]
    alone: Option<PathBuf>,
    /// More repeats of the stage, for a profiler.
    #[arg(long, hide = true)]
    repeats: Option<usize>,
}

/// What is measured, against whom, and what must be reached.
#[derive(Clone, Copy)]
struct Stage {
    name: &'static str,
    what: &'static str,
    /// Photograph, left and upper edge, size; cut out before it is resized to the last.
    picture: (&'static str, [u32; 4], (u32, u32)),
    weights: &'static str,
    /// With the most processor seconds as a share of theirs, where that is a goal.
    peers: &'static [(&'static str, Option<f64>)],
    /// Largest difference of a number from every peer's.
    apart: f64,
}

const STAGES: [Stage; 7] = [
    Stage {
        name: "rrdb",
        what: "Real-ESRGAN x4plus, 128x128",
        picture: ("astronaut", [160, 50, 128, 128], (128, 128)),
        weights: "esrgan/RealESRGAN_x4plus.safetensors",
        peers: &[("torch", Some(0.8)), ("ncnn", Some(1.0))],
        apart: 2e-3,
    },
    Stage {
        name: "compact",
        what: "animevideov3, 1280x720",
        picture: ("chelsea", [0, 0, 451, 254], (1280, 720)),
        weights: "esrgan/realesr-animevideov3.safetensors",
        peers: &[("torch", Some(1.0)), ("ncnn", Some(1.0))],
        apart: 2e-3,
    },
    Stage {
        name: "u2netp",
        what: "U2-Net p, 320x320",
        picture: ("chelsea", [0, 0, 451, 300], (451, 300)),
        weights: "rembg/u2netp.safetensors",
        peers: &[("torch", Some(1.0)), ("onnx", None)],
        apart: 2e-2,
    },
    Stage {
        name: "open-nsfw",
        what: "open_nsfw",
        picture: ("coffee", [0, 0, 600, 400], (600, 400)),
        weights: "nsfw/open_nsfw.safetensors",
        peers: &[("torch", Some(1.0)), ("onnx", None)],
        apart: 2e-3,
    },
    Stage {
        name: "retinaface",
        what: "RetinaFace mobilenet0.25, 512x512",
        picture: ("astronaut", [0, 0, 512, 512], (512, 512)),
        weights: "gfpgan/retinaface_mobilenet0.25.safetensors",
        peers: &[("torch", Some(1.0)), ("onnx", None)],
        apart: 1e-3,
    },
    Stage {
        name: "clip-l",
        what: "CLIP ViT-L/14 (random)",
        picture: ("chelsea", [75, 0, 300, 300], (224, 224)),
        weights: "",
        peers: &[("torch", Some(1.0))],
        apart: 1e-3,
    },
    Stage {
        name: "blip",
        what: "BLIP base, 384x384 (random)",
        picture: ("chelsea", [75, 0, 300, 300], (384, 384)),
        weights: "",
        peers: &[("torch", Some(1.0))],
        apart: 5e-3,
    },
];

/// The figures of one engine in one stage.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Figures {
    cpu_s: f64,
    wall_s: f64,
    peak_bytes: u64,
}

impl Figures {
    /// The least times and the highest peak of both.
    fn merge(&mut self, other: Self) {
        self.cpu_s = self.cpu_s.min(other.cpu_s);
        self.wall_s = self.wall_s.min(other.wall_s);
        self.peak_bytes = self.peak_bytes.max(other.peak_bytes);
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(result) = &args.alone {
        return alone(&args, result);
    }
    std::fs::create_dir_all(&args.dir).with_context(|| format!("creating `{}`", args.dir.display()))?;
    let mut missed = 0;
    for &threads in &args.threads {
        let chosen = STAGES
            .into_iter()
            .filter(|stage| args.stage.is_empty() || args.stage.iter().any(|name| name == stage.name));
        for stage in chosen {
            missed += stage_beside_peers(&args, &stage, threads)?;
        }
    }
    if missed > 0 {
        eprintln!("{missed} goals missed");
    }
    Ok(())
}

/// How many goals were missed.
fn stage_beside_peers(args: &Args, stage: &Stage, threads: usize) -> Result<usize> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (name, [left, top, width, height], (to_width, to_height)) = stage.picture;
    let photo = std::fs::read(here.join(format!("../../tests/photos/{name}.png")))?;
    let photo = imaging::decode(&photo, &Limits::image_job())?.to_rgb();
    let cut = photo
        .crop(left, top, width, height)
        .context("the photograph is smaller")?;
    let sized = if (width, height) == (to_width, to_height) {
        cut
    } else {
        cut.resized(to_width, to_height, Filter::Bicubic)
    };
    std::fs::write(picture(args, stage), encode_png(&sized)?)?;
    if stage.weights.is_empty() && !weights(args, stage).is_file() {
        let Some(python) = &args.python else {
            eprintln!(
                "{}: left out, its random weights are made by the peer's Python",
                stage.what
            );
            return Ok(0);
        };
        let made = Command::new(python)
            .arg(here.join("examples/bench-vision/peer.py"))
            .args(["make", stage.name])
            .arg(weights(args, stage))
            .status()?;
        if !made.success() {
            bail!("{}: its weights could not be made", stage.name);
        }
    }
    // In turn, so that what else the machine does meets every engine.
    let peers = if args.python.is_some() { stage.peers } else { &[] };
    let mut best = Vec::new();
    for _ in 0..args.rounds {
        let engines = std::iter::once(None).chain(peers.iter().map(|(peer, _)| Some(*peer)));
        for (place, engine) in engines.enumerate() {
            let (figures, numbers) = run(args, stage, threads, engine)?;
            match best.get_mut(place) {
                None => best.push((figures, numbers)),
                Some((least, _)) => least.merge(figures),
            }
        }
    }
    let mut best = best.into_iter();
    let (ours, numbers) = best.next().context("no round")?;
    report(args, stage, threads, "ours", ours);
    let mut missed = 0;
    for ((peer, goal), (theirs, expected)) in peers.iter().zip(best) {
        report(args, stage, threads, peer, theirs);
        let most = numbers
            .iter()
            .zip(&expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        let most = if numbers.len() == expected.len() {
            most
        } else {
            f32::INFINITY
        };
        missed += verdict(
            args,
            stage,
            threads,
            &format!("cpu ours/{peer}"),
            ours.cpu_s / theirs.cpu_s,
            *goal,
        );
        missed += verdict(
            args,
            stage,
            threads,
            &format!("wall ours/{peer}"),
            ours.wall_s / theirs.wall_s,
            None,
        );
        let memory = ours.peak_bytes as f64 / theirs.peak_bytes as f64;
        missed += verdict(args, stage, threads, &format!("memory ours/{peer}"), memory, Some(1.0));

        missed += verdict(
            args,
            stage,
            threads,
            &format!("difference from {peer}"),
            f64::from(most),
            Some(stage.apart),
        );
    }
    Ok(missed)
}

fn picture(args: &Args, stage: &Stage) -> PathBuf {
    args.dir.join(format!("vision-{}.png", stage.name))
}

fn weights(args: &Args, stage: &Stage) -> PathBuf {
    if stage.weights.is_empty() {
        args.dir.join(format!("vision-{}.safetensors", stage.name))
    } else {
        args.models.join(stage.weights)
    }
}

/// One engine in a child process: its figures and its numbers.
fn run(args: &Args, stage: &Stage, threads: usize, peer: Option<&str>) -> Result<(Figures, Vec<f32>)> {
    let result = args
        .dir
        .join(format!("vision-{}-{}.f32", stage.name, peer.unwrap_or("ours")));
    let mut command = match (peer, &args.python) {
        (Some(peer), Some(python)) => {
            let mut command = Command::new(python);
            command
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bench-vision/peer.py"))
                .args([peer, stage.name, &threads.to_string()])
                .args([&args.models, &picture(args, stage), &result, &weights(args, stage)]);
            command
        }
        _ => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--stage", stage.name, "--alone"]).arg(&result);
            command.arg("--models").arg(&args.models).arg("--dir").arg(&args.dir);
            command
        }
    };
    let output = command.env("RAYON_NUM_THREADS", threads.to_string()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(line) = text.lines().rev().find(|line| line.starts_with('{')) else {
        bail!(
            "{} gave no figures: {}",
            stage.name,
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let bytes = std::fs::read(&result)?;
    let numbers = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok((serde_json::from_str(line)?, numbers.collect()))
}

fn report(args: &Args, stage: &Stage, threads: usize, engine: &str, figures: Figures) {
    let Figures {
        cpu_s,
        wall_s,
        peak_bytes,
    } = figures;
    if args.json {
        let line = serde_json::json!({ "stage": stage.name, "threads": threads, "engine": engine,
            "cpu_s": cpu_s, "wall_s": wall_s, "peak_bytes": peak_bytes });
        println!("{line}");
    } else {
        let (what, peak) = (stage.what, peak_bytes as f64 / 1e6);
        println!(
            "{what:34} {threads} thread(s)  {engine:6} cpu {cpu_s:8.3} s  wall {wall_s:8.3} s  peak {peak:6.0} MB"
        );
    }
}

/// 1 where the goal was missed.
fn verdict(args: &Args, stage: &Stage, threads: usize, figure: &str, value: f64, goal: Option<f64>) -> usize {
    let is_missed = goal.is_some_and(|goal| value.is_nan() || value > goal);
    let word = match goal {
        None => "",
        Some(_) if is_missed => "MISSED",
        Some(_) => "ok",
    };
    if args.json {
        let line = serde_json::json!({ "stage": stage.name, "threads": threads, "figure": figure,
            "value": value, "goal": goal, "verdict": word });
        println!("{line}");
    } else {
        let goal = goal.map(|goal| format!("<= {goal}")).unwrap_or_default();
        println!(
            "{:34} {threads} thread(s)  {figure:24} {value:9.5}  {goal:9} {word}",
            stage.what
        );
    }
    usize::from(is_missed)
}

/// One stage of ours in this process.
fn alone(args: &Args, result: &Path) -> Result<()> {
    vision::allocator::keep_freed();
    let name = args.stage.first().context("a stage")?;
    let stage = STAGES
        .into_iter()
        .find(|stage| stage.name == name)
        .context("a known stage")?;
    let source: Picture = imaging::decode(&std::fs::read(picture(args, &stage))?, &Limits::image_job())?;
    let w = Weights::open(&weights(args, &stage), &Device::Cpu)?;
    let (figures, numbers) = match stage.name {
        "rrdb" | "compact" => {
            let net = Upscaler::load(&w)?;
            let planar = source.to_planar();
            let repeats = if stage.name == "compact" { 1 } else { 2 };
            time(args.repeats.unwrap_or(repeats), || {
                Ok(net.upscale_planar(&planar, net.tiling(), &mut |_, _| true)?.into_data())
            })?
        }
        "u2netp" => {
            let net = BackgroundRemover::load(&w)?;
            time(args.repeats.unwrap_or(3), || Ok(net.forward(&source)?.1))?
        }
        "open-nsfw" => {
            let net = OpenNsfw::load(&w)?;
            let pixels = net.pixels(&source)?;
            time(args.repeats.unwrap_or(20), || Ok(vec![net.forward(&pixels)?]))?
        }
        "retinaface" => {
            let net = FaceDetector::load(&w)?;
            time(args.repeats.unwrap_or(20), || Ok(net.forward(&source)?.scores))?
        }
        "clip-l" => {
            let clip = Clip::load(&w, &ClipConfig::default())?.vision;
            time(args.repeats.unwrap_or(3), || Ok(clip.embed(&source)?))?
        }
        _ => {
            let blip = Blip::load(&w, &BlipConfig::default())?;
            let pixels = blip.pixels(&source)?;
            time(args.repeats.unwrap_or(2), || {
                Ok(blip.look(&pixels)?.flatten_all()?.to_vec1::<f32>()?)
            })?
        }
    };
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    std::fs::write(result, bytes)?;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// The least of `repeats` runs, and the last one's numbers.
fn time(repeats: usize, mut work: impl FnMut() -> Result<Vec<f32>>) -> Result<(Figures, Vec<f32>)> {
    let (mut cpu_s, mut wall_s, mut numbers) = (f64::INFINITY, f64::INFINITY, Vec::new());
    for _ in 0..repeats {
        let (start, before) = (Instant::now(), cpu_seconds()?);
        numbers = work()?;
        cpu_s = cpu_s.min(cpu_seconds()? - before);
        wall_s = wall_s.min(start.elapsed().as_secs_f64());
    }
    let status = std::fs::read_to_string("/proc/self/status").context("the peak of memory is read from /proc")?;
    let peak = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    let figures = Figures {
        cpu_s,
        wall_s,
        peak_bytes: peak.context("no VmHWM in /proc/self/status")? * 1024,
    };
    Ok((figures, numbers))
}

fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e6)
}
