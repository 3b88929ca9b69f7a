//! Runs the networks on numerical fixtures and has the fixtures' own script judge the results.

mod runner;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use runner::{Case, Made};

const USAGE: &str = "usage: vision-fidelity FIXTURES [--out FOLDER] [--python PROGRAM]
FIXTURES  folder with manifest.json, models/, cases/, inputs/ and compare.py";

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(64)
        }
    }
}

fn run(mut args: impl Iterator<Item = String>) -> Result<bool, String> {
    let mut root: Option<PathBuf> = None;
    let mut out = std::env::temp_dir().join("vision-fidelity");
    let mut python = "python3".to_owned();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--out" => out = args.next().ok_or(USAGE)?.into(),
            "--python" => python = args.next().ok_or(USAGE)?,
            _ if root.is_none() && !arg.starts_with('-') => root = Some(arg.into()),
            _ => return Err(USAGE.into()),
        }
    }
    let root = root.ok_or(USAGE)?;
    let mut whole = true;
    for case in runner::cases::<Case>(&root)? {
        match runner::run(&root, &case).and_then(|made| write(&made, &out, &case)) {
            Ok(()) => println!("ran  {}/{}", case.group, case.id),
            Err(reason) => {
                whole = false;
                println!("FAIL {}/{}: {reason}", case.group, case.id);
            }
        }
    }
    let status = Command::new(&python)
        .arg(root.join("compare.py"))
        .arg(&root)
        .arg(&out)
        .args(["--groups", &runner::GROUPS.join(","), "-v"])
        .status()
        .map_err(|e| format!("cannot start `{python}` (it needs numpy and Pillow; --python names another): {e}"))?;
    Ok(whole && status.success())
}

/// Writes `GROUP/ID.safetensors` and `GROUP/ID.png`.
fn write(made: &Made, out: &Path, case: &Case) -> Result<(), String> {
    let base = out.join(&case.group).join(&case.id);
    std::fs::create_dir_all(out.join(&case.group)).map_err(|e| e.to_string())?;
    if !made.tensors.is_empty() {
        candle_core::safetensors::save(&made.tensors, base.with_extension("safetensors")).map_err(|e| e.to_string())?;
    }
    if let Some(png) = &made.png {
        std::fs::write(base.with_extension("png"), png).map_err(|e| e.to_string())?;
    }
    Ok(())
}
