//! Tunes the thresholds of the content check on a labelled set. `docs/SAFETY.md` says how.

mod print;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use imaging::Limits;
use vision::Device;
use vision::safety::calibrate::{Embedder, LabelledSet, Want, labels_of, report, tune};
use vision::safety::{Group, Lists};

const USAGE: &str = "usage: safety-calibrate embed  --clip FILE --pictures FOLDER --out SET
       safety-calibrate report --clip FILE --set SET [--lists FILE] [--fpr RATE] [--recall GROUP=RATE]... [--json]
       safety-calibrate tune   as `report`, with --out LISTS

embed   makes a set of vectors and labels; nothing else of a picture is kept. The folders below FOLDER name the
        labels: `person+explicit`, `person+?suggestive` (`?`: nobody knows), `none`
report  measures every phrase and group, and what thresholds would reach the wanted rates
tune    writes lists with these thresholds

--clip    CLIP ViT-L/14 as safetensors
--lists   default: the lists of this build
--fpr     highest false-positive rate of a group, default 0.01
--recall  lowest recall of a group instead, default under_age=0.99
--cache   folder for vectors of phrases, default: the system's temporary folder";

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(64)
        }
    }
}

struct Options {
    clip: PathBuf,
    pictures: Option<PathBuf>,
    set: Option<PathBuf>,
    lists: Option<PathBuf>,
    out: Option<PathBuf>,
    cache: PathBuf,
    want: Want,
    json: bool,
}

fn run(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let command = args.next().ok_or(USAGE)?;
    let options = options(args)?;
    match command.as_str() {
        "embed" => embed(&options),
        "report" => measure(&options, false),
        "tune" => measure(&options, true),
        _ => Err(USAGE.into()),
    }
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut clip = None;
    let mut options = Options {
        clip: PathBuf::new(),
        pictures: None,
        set: None,
        lists: None,
        out: None,
        cache: std::env::temp_dir(),
        want: Want {
            fpr: 0.01,
            recall: BTreeMap::from([(Group::UnderAge, 0.99)]),
        },
        json: false,
    };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("`{arg}` needs a value\n{USAGE}"));
        match arg.as_str() {
            "--clip" => clip = Some(PathBuf::from(value()?)),
            "--pictures" => options.pictures = Some(value()?.into()),
            "--set" => options.set = Some(value()?.into()),
            "--lists" => options.lists = Some(value()?.into()),
            "--out" => options.out = Some(value()?.into()),
            "--cache" => options.cache = value()?.into(),
            "--fpr" => options.want.fpr = rate(&value()?)?,
            "--recall" => {
                let value = value()?;
                let (group, wanted) = value
                    .split_once('=')
                    .ok_or("`--recall` needs GROUP=RATE, for example under_age=0.99")?;
                let group = Group::from_name(group).ok_or(format!("`{group}` is no group"))?;
                options.want.recall.insert(group, rate(wanted)?);
            }
            "--json" => options.json = true,
            _ => return Err(USAGE.into()),
        }
    }
    options.clip = clip.ok_or(format!("`--clip` is missing\n{USAGE}"))?;
    Ok(options)
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| format!("`{text}` is no rate between 0 and 1"))
}

fn named<'a>(path: &'a Option<PathBuf>, option: &str) -> Result<&'a Path, String> {
    path.as_deref().ok_or(format!("`{option}` is missing\n{USAGE}"))
}

/// One picture is in memory at a time, and nothing of it but its vector is kept.
fn embed(options: &Options) -> Result<(), String> {
    let folder = named(&options.pictures, "--pictures")?;
    let out = named(&options.out, "--out")?;
    let folders: Vec<_> = entries(folder)?
        .into_iter()
        .filter(|path| path.is_dir())
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            Ok((labels_of(&name).map_err(|e| e.to_string())?, path))
        })
        .collect::<Result<_, String>>()?;
    let embedder = Embedder::open(&options.clip, &Device::Cpu).map_err(|e| e.to_string())?;
    let mut set = LabelledSet::new(embedder.sha256());
    let mut n_refused = 0usize;
    for (labels, path) in folders {
        for file in entries(&path)?.into_iter().filter(|path| path.is_file()) {
            let bytes = std::fs::read(&file).map_err(|e| format!("`{}`: {e}", file.display()))?;
            let Ok(picture) = imaging::decode(&bytes, &Limits::image_job()) else {
                n_refused += 1;
                continue;
            };
            let row = embedder.picture(&picture).map_err(|e| e.to_string())?;
            set.push(row, labels.clone()).map_err(|e| e.to_string())?;
        }
    }
    if set.is_empty() {
        return Err(format!(
            "no picture below `{}` ({n_refused} files were refused)\nhint: it needs folders such as `person+explicit` and `none`",
            folder.display()
        ));
    }
    set.write(out).map_err(|e| e.to_string())?;
    println!("{} pictures, {n_refused} files refused", set.len());
    Ok(())
}

/// In the order of their names, so that a set does not depend on the disk.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let broken = |e: std::io::Error| format!("`{}`: {e}", folder.display());
    let mut paths = std::fs::read_dir(folder)
        .map_err(broken)?
        .map(|entry| Ok(entry.map_err(broken)?.path()))
        .collect::<Result<Vec<_>, String>>()?;
    paths.sort();
    Ok(paths)
}

fn measure(options: &Options, writes: bool) -> Result<(), String> {
    let set = LabelledSet::open(named(&options.set, "--set")?).map_err(|e| e.to_string())?;
    let lists = match &options.lists {
        Some(path) => Lists::open(path),
        None => Lists::builtin(),
    }
    .map_err(|e| e.to_string())?;
    let out = if writes {
        Some(named(&options.out, "--out")?)
    } else {
        None
    };
    let embedder = Embedder::open(&options.clip, &Device::Cpu).map_err(|e| e.to_string())?;
    if embedder.sha256() != set.clip_sha256 {
        return Err("the set was made with other weights than `--clip`".into());
    }
    let places = embedder.phrases(&lists, &options.cache).map_err(|e| e.to_string())?;
    let made = match out {
        Some(out) => {
            let (tuned, made) = tune(&lists, &places, &set, &options.want).map_err(|e| e.to_string())?;
            let json = tuned.to_json().map_err(|e| e.to_string())?;
            std::fs::write(out, json + "\n").map_err(|e| format!("`{}`: {e}", out.display()))?;
            made
        }
        None => report(&lists, &places, &set, &options.want).map_err(|e| e.to_string())?,
    };
    if options.json {
        println!("{}", serde_json::to_string_pretty(&made).map_err(|e| e.to_string())?);
    } else {
        print::report(&made);
    }
    Ok(())
}
