//! Finds models in other programs' folders and links them: reGen, ComfyUI, A1111, KoboldCpp, LM Studio by what is in
//! the files, Ollama by its manifests and blobs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Sha256Sum;
use crate::formats::convert::ConversionKind;
use crate::formats::{Format, gguf};
use crate::reference::{Catalogue, Model, ModelFile};
use crate::stamp::Stamp;
use crate::store::{State, Store};

/// Deepest folder that is looked into.
const MAX_DEPTH: usize = 12;
/// Smallest file that can be a model of the reference.
const MIN_BYTES: u64 = 100_000;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ImportReport {
    /// Files of known models, now in the store.
    pub linked: Vec<Linked>,
    /// Models that were in the store already.
    pub already_there: Vec<String>,
    /// Sound files that no reference knows.
    pub unknown: Vec<Unknown>,
    /// Files that could not be read or linked, in words.
    pub problems: Vec<String>,
}

/// A file of a known model.
#[derive(Clone, Debug, Serialize)]
pub struct Linked {
    /// The model.
    pub model: String,
    /// Where it was found.
    pub from: PathBuf,
    /// Where it stands now.
    pub to: PathBuf,
    /// Was it converted instead of linked?
    pub converted: bool,
}

/// A file that no reference knows; `models_toml` makes it usable.
#[derive(Clone, Debug, Serialize)]
pub struct Unknown {
    /// Where it is.
    pub path: PathBuf,
    /// Its sum.
    pub sha256: Sha256Sum,
    /// A name: the manifest's, the file's own, or the file name.
    pub name: String,
    /// `llama` and the like, for GGUF files.
    pub architecture: Option<String>,
    /// Lines for models.toml.
    pub models_toml: String,
}

/// Looks through `dir`. `on_file` is told every file before it is read, since reading takes a while.
pub fn import(
    dir: &Path,
    catalogue: &Catalogue,
    store: &Store,
    on_file: &mut dyn FnMut(&Path),
) -> io::Result<ImportReport> {
    let mut report = ImportReport::default();
    let by_sum = known_sums(catalogue);
    let names = ollama_names(dir);
    let mut files = Vec::new();
    walk(dir, 0, &mut HashSet::new(), &mut files)?;
    for path in files {
        on_file(&path);
        let sum = match Stamp::read(&path).map_or_else(|| Sha256Sum::of_file(&path), |stamp| Ok(stamp.sha256)) {
            Ok(sum) => sum,
            Err(error) => {
                report.problems.push(format!("{}: {error}", path.display()));
                continue;
            }
        };
        match by_sum.get(&sum) {
            Some(uses) => {
                for (model, file) in uses {
                    match take(store, model, file, &path, sum) {
                        Ok(Some(linked)) => report.linked.push(linked),
                        Ok(None) => report.already_there.push(model.name.clone()),
                        Err(problem) => report.problems.push(format!("{}: {problem}", path.display())),
                    }
                }
            }
            None => report.unknown.extend(describe(&path, sum, &names)),
        }
    }
    report.already_there.sort();
    report.already_there.dedup();
    Ok(report)
}

/// Sums of all files and of everything files are made of.
fn known_sums(catalogue: &Catalogue) -> HashMap<Sha256Sum, Vec<(&Model, &ModelFile)>> {
    let mut by_sum: HashMap<_, Vec<_>> = HashMap::new();
    for model in catalogue.models() {
        for file in model.files.iter().filter(|file| file.local_path.is_none()) {
            // Only what is made of a single file can be made of a single find.
            let made_of = file
                .conversion
                .iter()
                .filter(|conversion| conversion.kind == ConversionKind::Pickle);
            let inputs = made_of.flat_map(|conversion| conversion.inputs.iter().filter_map(|input| input.sha256));
            for sum in file.sha256.into_iter().chain(inputs) {
                by_sum.entry(sum).or_default().push((model, file));
            }
        }
    }
    by_sum
}

fn take(store: &Store, model: &Model, file: &ModelFile, from: &Path, sum: Sha256Sum) -> Result<Option<Linked>, String> {
    let to = store.path_of(model, file);
    if matches!(store.file_state(model, file), State::Verified | State::Present) {
        return Ok(None);
    }
    let converted = file.sha256 != Some(sum);
    if converted {
        store
            .convert_from(model, file, from)
            .map_err(|error| error.to_string())?;
    } else {
        if let Some(format) = Format::of(&to) {
            format.precheck(from).map_err(|refusal| refusal.to_string())?;
        }
        link(from, &to).map_err(|error| error.to_string())?;
        if let Ok(stamp) = Stamp::new(&to, sum) {
            stamp.write(&to);
        }
    }
    Ok(Some(Linked {
        model: model.name.clone(),
        from: from.to_owned(),
        to,
        converted,
    }))
}

/// A hard link survives when the other program removes its name; across file systems a symbolic one must do.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    let from = fs::canonicalize(from)?;
    if to.symlink_metadata().is_ok() {
        fs::remove_file(to)?;
    }
    fs::hard_link(&from, to).or_else(|_| std::os::unix::fs::symlink(&from, to))
}

fn walk(dir: &Path, depth: usize, seen: &mut HashSet<(u64, u64)>, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let meta = fs::metadata(dir)?;
    if depth > MAX_DEPTH || !seen.insert((meta.dev(), meta.ino())) {
        return Ok(());
    }
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    entries.sort();
    for path in entries {
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() {
            // A folder that may not be read costs that folder only.
            let _ = walk(&path, depth + 1, seen, files);
        } else if meta.is_file()
            && meta.len() >= MIN_BYTES
            && looks_like_a_model(&path)
            && seen.insert((meta.dev(), meta.ino()))
        {
            files.push(path);
        }
    }
    Ok(())
}

fn looks_like_a_model(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default();
    let known = ["safetensors", "sft", "gguf", "ckpt", "pt", "pth", "bin", "onnx"];
    name.starts_with("sha256-")
        || name
            .rsplit_once('.')
            .is_some_and(|(_, extension)| known.contains(&extension))
}

fn describe(path: &Path, sum: Sha256Sum, names: &BTreeMap<String, String>) -> Option<Unknown> {
    let format = Format::of(path).or_else(|| {
        let mut magic = [0u8; 4];
        let file = fs::File::open(path).ok()?;
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut magic, 0).ok()?;
        (&magic == b"GGUF").then_some(Format::Gguf)
    })?;
    format.precheck(path).ok()?;
    let head = if format == Format::Gguf {
        gguf::read_head(path).ok()
    } else {
        None
    };
    let stem = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    let own = head.as_ref().and_then(|head| head.name.clone());
    let name = names.get(&sum.to_string()).cloned().or(own).unwrap_or(stem);
    let kind = if format == Format::Gguf { "text" } else { "image" };
    let file_name = format!(
        "{}.{}",
        &sum.to_string()[..16],
        if format == Format::Gguf { "gguf" } else { "safetensors" }
    );
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    Some(Unknown {
        models_toml: format!(
            "[[model]]\nname = {}\nkind = \"{kind}\"\n[[model.file]]\npath = \"{file_name}\"\nsha256 = \"{sum}\"\nlocal_path = {}\n",
            quoted(&name),
            quoted(&path.to_string_lossy()),
        ),
        path: path.to_owned(),
        sha256: sum,
        name,
        architecture: head.and_then(|head| head.architecture),
    })
}

/// Ollama's `manifests/<registry>/<library>/<name>/<tag>`: sum of the model's blob → `name:tag`.
fn ollama_names(dir: &Path) -> BTreeMap<String, String> {
    #[derive(Deserialize)]
    struct Manifest {
        #[serde(default)]
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layer {
        media_type: String,
        digest: String,
    }
    let mut names = BTreeMap::new();
    let mut manifests = Vec::new();
    for root in [dir.join("manifests"), dir.join("models/manifests")] {
        collect(&root, 0, &mut manifests);
    }
    for path in manifests {
        let manifest = fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
        let model = manifest.and_then(|manifest| {
            manifest
                .layers
                .into_iter()
                .find(|layer| layer.media_type == "application/vnd.ollama.image.model")
        });
        let part = |path: Option<&Path>| Some(path?.file_name()?.to_string_lossy().into_owned());
        if let (Some(model), Some(tag), Some(name)) = (model, part(Some(&path)), part(path.parent())) {
            names.insert(
                model.digest.trim_start_matches("sha256:").to_ascii_lowercase(),
                format!("{name}:{tag}"),
            );
        }
    }
    names
}

fn collect(dir: &Path, depth: usize, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() && depth < 6 => collect(&path, depth + 1, files),
            Ok(meta) if meta.is_file() && meta.len() < 1 << 20 => files.push(path),
            _ => {}
        }
    }
}
