//! Times U-Net steps, VAE decoding and text encoding with random weights beside torch with diffusers and stable-diffusion.cpp.
//!
//! `just bench-diffusion [--json] [--stage NAME].. [--threads N].. [--no-sdcpp]`. Every engine runs each stage in a process
//! of its own, so that peaks of memory are its own; processor seconds are the least of a few repeats.

mod shapes;

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use clap::Parser;
use diffusion::{
    nn::{
        clip::{Clip, ClipConfig},
        unet::{Conditions, Heads, UNet, UNetConfig},
        vae::Vae,
    },
    tokens,
    weights::{Loader, Params, Part, Weights},
};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

/// Our engine beside torch and stable-diffusion.cpp.
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
    /// Python with torch, diffusers and transformers; without it ours runs alone.
    #[arg(long, env = "BENCH_PYTHON")]
    python: Option<PathBuf>,
    /// Python with cyllama (stable-diffusion.cpp).
    #[arg(long, env = "BENCH_SDCPP_PYTHON")]
    sdcpp_python: Option<PathBuf>,
    /// Leave stable-diffusion.cpp out, which takes minutes.
    #[arg(long)]
    no_sdcpp: bool,
    /// Where the random checkpoints (4 GB) are kept.
    #[arg(long, env = "BENCH_DIR")]
    dir: PathBuf,
    /// Run one stage of ours and print its figures (what the bench starts itself with).
    #[arg(long, hide = true)]
    alone: bool,
}

/// What is measured, against whom, and what must be reached.
#[derive(Clone, Copy)]
struct Stage {
    name: &'static str,
    what: &'static str,
    repeats: usize,
    /// Ours / torch in processor seconds.
    torch: Option<f64>,
    /// Ours / torch in peak memory.
    memory: Option<f64>,
    /// Ours / stable-diffusion.cpp in processor seconds.
    sdcpp: Option<f64>,
}

const STAGES: [Stage; 5] = [
    Stage {
        name: "text",
        what: "CLIP-L, 2 prompts",
        repeats: 6,
        torch: Some(1.0),
        memory: Some(0.8),
        sdcpp: None,
    },
    Stage {
        name: "unet-sd15",
        what: "SD 1.5 U-Net, 64x64, batch 2",
        repeats: 2,
        torch: Some(0.8),
        memory: Some(0.8),
        sdcpp: Some(0.35),
    },
    Stage {
        name: "unet-sdxl",
        what: "SDXL-shaped U-Net, 64x64, batch 2",
        repeats: 2,
        torch: Some(0.8),
        memory: Some(0.8),
        sdcpp: None,
    },
    Stage {
        name: "vae",
        what: "VAE decode, 512x512",
        repeats: 2,
        torch: Some(0.55),
        memory: Some(0.8),
        sdcpp: None,
    },
    Stage {
        name: "vae-small",
        what: "VAE decode, 256x256",
        repeats: 2,
        torch: None,
        memory: None,
        sdcpp: Some(0.35),
    },
];

/// Two threads must be this much faster than one.
const TWO_THREADS: f64 = 1.7;

/// The figures of one engine in one stage.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
struct Figures {
    cpu_s: f64,
    wall_s: f64,
    peak_bytes: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.alone {
        return alone(&args);
    }
    std::fs::create_dir_all(&args.dir).with_context(|| format!("creating `{}`", args.dir.display()))?;
    let stages: Vec<Stage> = STAGES
        .into_iter()
        .filter(|stage| args.stage.is_empty() || args.stage.iter().any(|name| name == stage.name))
        .collect();
    for stage in &stages {
        let path = checkpoint(&args.dir, stage.name);
        if !path.is_file() {
            eprintln!("writing random weights to `{}`", path.display());
            let shapes = match stage.name {
                "unet-sdxl" => shapes::unet(&shapes::SDXL),
                _ => [shapes::unet(&shapes::SD15), shapes::vae(), shapes::clip_l()].concat(),
            };
            shapes::write(&shapes, &path)?;
        }
    }
    let mut report = Report {
        json: args.json,
        missed: 0,
    };
    let mut single = Vec::new();
    for &threads in &args.threads {
        for stage in &stages {
            let ours = measure(&args, stage, threads, Engine::Ours)?;
            if threads == 1 {
                single.push((stage.name, ours.wall_s));
            }
            report.figures(stage, threads, "ours", ours);
            if stage.torch.is_some() && args.python.is_some() {
                let torch = measure(&args, stage, threads, Engine::Torch)?;
                report.figures(stage, threads, "torch", torch);
                report.ratio(stage, threads, "cpu ours/torch", ours.cpu_s / torch.cpu_s, stage.torch);
                report.ratio(stage, threads, "wall ours/torch", ours.wall_s / torch.wall_s, None);
                let ratio = ours.peak_bytes as f64 / torch.peak_bytes as f64;
                report.ratio(stage, threads, "memory ours/torch", ratio, stage.memory);
            }
            // Its speed per processor second does not depend on the threads.
            if stage.sdcpp.is_some() && threads == 1 && !args.no_sdcpp && args.sdcpp_python.is_some() {
                let sdcpp = measure(&args, stage, threads, Engine::SdCpp)?;
                report.figures(stage, threads, "sd.cpp", sdcpp);
                report.ratio(stage, threads, "cpu ours/sd.cpp", ours.cpu_s / sdcpp.cpu_s, stage.sdcpp);
            }
            if threads == 2
                && let Some((_, wall_s)) = single.iter().find(|(name, _)| *name == stage.name)
            {
                report.speed_up(stage, wall_s / ours.wall_s);
            }
        }
    }
    if report.missed > 0 {
        eprintln!("{} goals missed", report.missed);
    }
    Ok(())
}

fn checkpoint(dir: &Path, stage: &str) -> PathBuf {
    dir.join(if stage == "unet-sdxl" {
        "sdxl-unet-2.safetensors"
    } else {
        "sd15.safetensors"
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Ours,
    Torch,
    SdCpp,
}

/// Runs one stage in a child process and reads the object it prints last.
fn measure(args: &Args, stage: &Stage, threads: usize, engine: Engine) -> Result<Figures> {
    let path = checkpoint(&args.dir, stage.name);
    let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bench-diffusion/peer.py");
    let mut command = match engine {
        Engine::Ours => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["--alone", "--stage", stage.name, "--dir"]).arg(&args.dir);
            command
        }
        Engine::Torch | Engine::SdCpp => {
            let (python, name) = match engine {
                Engine::Torch => (&args.python, "torch"),
                _ => (&args.sdcpp_python, "sdcpp"),
            };
            let mut command = Command::new(python.as_deref().context("a Python for the peer")?);
            command
                .arg(peer)
                .args([name, stage.name, &threads.to_string()])
                .arg(path);
            command
        }
    };
    let output = command
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find(|line| line.starts_with('{'));
    match last.map(serde_json::from_str) {
        Some(figures) => Ok(figures?),
        None => bail!(
            "{} gave no figures: {}",
            stage.name,
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

struct Report {
    json: bool,
    missed: usize,
}

impl Report {
    fn figures(&self, stage: &Stage, threads: usize, engine: &str, figures: Figures) {
        let Figures {
            cpu_s,
            wall_s,
            peak_bytes,
        } = figures;
        if self.json {
            let line = serde_json::json!({ "stage": stage.name, "threads": threads, "engine": engine,
                "cpu_s": cpu_s, "wall_s": wall_s, "peak_bytes": peak_bytes });
            println!("{line}");
        } else {
            let peak = peak_bytes as f64 / 1e6;
            let what = stage.what;
            println!(
                "{what:34} {threads} thread(s)  {engine:7} cpu {cpu_s:8.3} s  wall {wall_s:8.3} s  peak {peak:6.0} MB"
            );
        }
    }

    fn ratio(&mut self, stage: &Stage, threads: usize, name: &str, ratio: f64, goal: Option<f64>) {
        self.verdict(
            stage,
            threads,
            (name, ratio),
            goal.map(|goal| (ratio <= goal, format!("<= {goal}"))),
        );
    }

    fn speed_up(&mut self, stage: &Stage, factor: f64) {
        let goal = (factor >= TWO_THREADS, format!(">= {TWO_THREADS}"));
        self.verdict(stage, 2, ("wall 1 thread/2 threads", factor), Some(goal));
    }

    fn verdict(&mut self, stage: &Stage, threads: usize, (name, ratio): (&str, f64), goal: Option<(bool, String)>) {
        let verdict = match &goal {
            Some((true, _)) => "ok",
            Some((false, _)) => "MISSED",
            None => "",
        };
        self.missed += usize::from(verdict == "MISSED");
        let goal = goal.map(|(_, goal)| goal).unwrap_or_default();
        if self.json {
            let line = serde_json::json!({ "stage": stage.name, "threads": threads, "figure": name,
                "ratio": ratio, "goal": goal, "verdict": verdict });
            println!("{line}");
        } else {
            let what = stage.what;
            println!("{what:34} {threads} thread(s)  {name:24} {ratio:6.3}  {goal:8} {verdict}");
        }
    }
}

/// One stage of ours in this process.
fn alone(args: &Args) -> Result<()> {
    diffusion::allocator::keep_freed();
    let name = args.stage.first().context("a stage")?;
    let stage = STAGES
        .into_iter()
        .find(|stage| stage.name == name)
        .context("a known stage")?;
    let (device, params) = (Device::Cpu, Params::default());
    let mut weights = Weights::default();
    weights.add(&checkpoint(&args.dir, stage.name), Part::Whole)?;
    let loader = |prefix: &str| Loader::new(&weights, &params, prefix, DType::F32, &device);
    let noise = |shape: &[usize]| Tensor::randn(0f32, 1.0, shape, &device);
    let unet = |heads: Heads| {
        let config = UNetConfig { norm_groups: 32, heads };
        UNet::new(&loader("unet."), config)
    };
    let figures = match stage.name {
        "unet-sd15" => {
            let network = unet(Heads::Count(8))?;
            let (x, context) = (noise(&[2, 4, 64, 64])?, noise(&[2, 77, 768])?);
            let conditions = Conditions {
                context: &context,
                label: None,
                residuals: None,
                circular: false,
            };
            time(stage.repeats, || network.forward(&x, &[500.0], &conditions))?
        }
        "unet-sdxl" => {
            let network = unet(Heads::Size(64))?;
            let (x, context, label) = (noise(&[2, 4, 64, 64])?, noise(&[2, 77, 2048])?, noise(&[2, 2816])?);
            let conditions = Conditions {
                context: &context,
                label: Some(&label),
                residuals: None,
                circular: false,
            };
            time(stage.repeats, || network.forward(&x, &[500.0], &conditions))?
        }
        "text" => {
            let config = ClipConfig {
                heads: 12,
                activation: tensor_ops::Activation::QuickGelu,
            };
            let network = Clip::new(&loader("clip_l."), config)?;
            let prompts = ["a lighthouse at night, oil on canvas", "blurred"];
            let rows = prompts.map(|prompt| tokens::rows(prompt, tokens::END, &()));
            let rows = rows.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
            time(stage.repeats, || Ok(network.encode(&rows, 1, true)?.hidden))?
        }
        name => {
            let network = Vae::new(&loader("vae."), 32)?;
            let size = if name == "vae" { 64 } else { 32 };
            let latents = noise(&[1, 4, size, size])?;
            time(stage.repeats, || network.decode(&latents, false))?
        }
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// The least of `repeats` runs.
fn time(repeats: usize, mut work: impl FnMut() -> diffusion::Result<Tensor>) -> Result<Figures> {
    let (mut cpu_s, mut wall_s) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..repeats {
        let (start, before) = (Instant::now(), cpu_seconds()?);
        let result = work()?;
        cpu_s = cpu_s.min(cpu_seconds()? - before);
        wall_s = wall_s.min(start.elapsed().as_secs_f64());
        let mean = result.sqr()?.mean_all()?.to_scalar::<f32>()?;
        if !mean.is_finite() {
            bail!("the result is not finite");
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").context("the peak of memory is read from /proc")?;
    let peak = status.lines().find_map(|line| {
        line.strip_prefix("VmHWM:")?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    Ok(Figures {
        cpu_s,
        wall_s,
        peak_bytes: peak.context("no VmHWM in /proc/self/status")? * 1024,
    })
}

fn cpu_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(micros as f64 / 1e6)
}
