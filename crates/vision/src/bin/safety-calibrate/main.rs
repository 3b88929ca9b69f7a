//! Tunes the thresholds of the content check on a labelled set. `docs/SAFETY.md` says how.

mod print;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use imaging::Limits;
use vision::Device;
use vision::safety::calibrate::{Embedder, LabelledSet, Want, labels_of, made_up, report, tune};
use vision::safety::{Group, Lists};

const USAGE: &str = "usage: safety-calibrate embed   --clip FILE --pictures FOLDER --out SET
       safety-calibrate made-up --clip FILE --out SET [--each N] [--lists FILE]
       safety-calibrate report  --clip FILE --set SET... [--lists FILE] [--fpr RATE] [--recall GROUP=RATE]... [--json]
       safety-calibrate tune    as `report`, with --out LISTS

embed    makes a set of vectors and labels; nothing else of a picture is kept. The folders below FOLDER name the
         labels: `person+explicit`, `person+?suggestive` (`?`: nobody knows), `none`
made-up  makes a set of vectors of no pictures, to try the other commands on; lists from it never count as calibrated
report   measures every phrase, every group and the check as a whole, now and with thresholds that would reach the
         wanted rates; brackets hold where the true rate lies with 95 % confidence
tune     writes lists with these thresholds

--clip    CLIP ViT-L/14 as safetensors
--set     several are joined
--lists   default: the lists of this build
--fpr     highest false-positive rate of a group, default 0.01
--recall  lowest recall of a group instead, default under_age=0.99
--each    vectors of each label, default 300
--cache   folder for vectors of phrases, default: the system's temporary folder
--json    the report as JSON

docs/SAFETY.md says how to make a set, what the numbers mean and when lists count as calibrated.";

/// Most made-up vectors of one label.
const MOST_MADE_UP: usize = 100_000;

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
    sets: Vec<PathBuf>,
    n_each: usize,
    lists: Option<PathBuf>,
    out: Option<PathBuf>,
    cache: PathBuf,
    want: Want,
    json: bool,
}

fn run(mut args: impl Iterator<Item = String>) -> Result<(), String> {
    let command = args.next().ok_or(USAGE)?;
    let args: Vec<String> = args.collect();
    if command == "help"
        || [&command]
            .into_iter()
            .chain(&args)
            .any(|arg| arg == "--help" || arg == "-h")
    {
        println!("{USAGE}");
        return Ok(());
    }
    if !["embed", "made-up", "report", "tune"].contains(&command.as_str()) {
        return Err(format!("`{command}` is no command\n{USAGE}"));
    }
    let options = options(args.into_iter())?;
    match command.as_str() {
        "embed" => embed(&options),
        "report" => measure(&options, false),
        "made-up" => make_up(&options),
        _ => measure(&options, true),
    }
}

fn options(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut clip = None;
    let mut options = Options {
        clip: PathBuf::new(),
        pictures: None,
        sets: Vec::new(),
        n_each: 300,
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
            "--set" => options.sets.push(value()?.into()),
            "--each" => {
                let value = value()?;
                let n = value.parse().ok().filter(|n| (1..=MOST_MADE_UP).contains(n));
                options.n_each = n.ok_or(format!("`--each {value}` is no number from 1 to {MOST_MADE_UP}"))?;
            }
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
            _ => return Err(format!("`{arg}` is no option\n{USAGE}")),
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

fn lists(options: &Options) -> Result<Lists, String> {
    let lists = match &options.lists {
        Some(path) => Lists::open(path),
        None => Lists::builtin(),
    };
    lists.map_err(|e| e.to_string())
}

fn make_up(options: &Options) -> Result<(), String> {
    let out = named(&options.out, "--out")?;
    let lists = lists(options)?;
    let embedder = Embedder::open(&options.clip, &Device::Cpu).map_err(|e| e.to_string())?;
    let places = embedder.phrases(&lists, &options.cache).map_err(|e| e.to_string())?;
    let set = made_up(embedder.sha256(), &lists, &places, options.n_each).map_err(|e| e.to_string())?;
    set.write(out).map_err(|e| e.to_string())?;
    println!("{} made-up vectors, which say nothing about pictures", set.len());
    Ok(())
}

fn measure(options: &Options, writes: bool) -> Result<(), String> {
    let (first, more) = options
        .sets
        .split_first()
        .ok_or(format!("`--set` is missing\n{USAGE}"))?;
    let mut set = LabelledSet::open(first).map_err(|e| e.to_string())?;
    for path in more {
        let other = LabelledSet::open(path).map_err(|e| e.to_string())?;
        set.extend(other).map_err(|e| format!("`{}`: {e}", path.display()))?;
    }
    let lists = lists(options)?;
    let out = if writes {
        Some(named(&options.out, "--out")?)
    } else {
        None
    };
    let embedder = Embedder::open(&options.clip, &Device::Cpu).map_err(|e| e.to_string())?;
    if embedder.sha256() != set.clip_sha256 {
        return Err(
            "the set was made with other weights than `--clip`\nhint: `sha256sum` of that file must be the set's `clip_sha256`; make the set anew with `embed`"
                .into(),
        );
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
