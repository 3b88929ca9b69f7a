//! Which files serve which form. A form is offered only while all its files are there.

use std::path::{Path, PathBuf};

use horde_client::alchemy::Form;
use vision::post::{Kind, NAMES, PostFiles};

/// What a form does with a picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Enlarge with these weights.
    Upscale(PathBuf),
    /// Repair faces.
    Faces {
        /// Finds them.
        detector: PathBuf,
        /// Repairs them.
        restorer: PathBuf,
        /// Tells face from hair, where it is there.
        parser: Option<PathBuf>,
    },
    /// Make the background transparent.
    Strip(PathBuf),
    /// One sentence, from a folder of weights, `config.json` and `tokenizer.json`.
    Caption(PathBuf),
    /// Ranked words.
    Interrogate {
        /// Folder of the weights.
        clip: PathBuf,
        /// Folder of the lists, one `NAME.txt` each.
        words: PathBuf,
    },
    /// One boolean, by Stable Diffusion's safety checker.
    NsfwChecker(PathBuf),
    /// One boolean, by Yahoo's open_nsfw.
    NsfwScore(PathBuf),
    /// A drawing in SVG; needs no file.
    Vectorize,
    /// The colours that make up the picture; needs no file.
    Palette,
    /// Size, format and fingerprints; needs no file.
    Describe,
    /// How much people would like it, by a head on CLIP's vision half.
    Aesthetic {
        /// Folder of the weights.
        clip: PathBuf,
        /// The head.
        head: PathBuf,
    },
    /// A control picture; needs no file.
    Annotate,
}

/// Which of the two engines does a form, so that a slow one never holds up a quick one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// On the configured device.
    Device,
    /// On the processor, beside the device.
    Light,
}

/// Every form this worker has a network for.
pub const KNOWN: [Form; 24] = [
    Form::Caption,
    Form::Interrogation,
    Form::Nsfw,
    Form::StripBackground,
    Form::RealEsrganX4Plus,
    Form::RealEsrganX2Plus,
    Form::RealEsrganX4PlusAnime6B,
    Form::NmkdSiax,
    Form::AnimeSharp4x,
    Form::Nomos8kSc4x,
    Form::LsdirPlus4x,
    Form::NomosWebPhotoRealPlksr4x,
    Form::Nomos2RealPlksrDysample4x,
    Form::Nomos2HqDat24x,
    Form::ModernSpanimationV12x,
    Form::Gfpgan,
    Form::GfpganV13,
    Form::RestoreFormer,
    Form::CodeFormers,
    Form::Vectorize,
    Form::Palette,
    Form::Describe,
    Form::Aesthetic,
    Form::Annotation,
];

/// Forms whose result's shape no document of the Horde gives; only served where the owner says so.
pub const UNCONFIRMED: [Form; 3] = [Form::Palette, Form::Describe, Form::Aesthetic];

/// Annotators that need no network, as the pop names them.
pub const ANNOTATORS: [&str; 2] = ["canny", "scribble"];

/// Which forms are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// As the Horde spells them; empty for all.
    pub named: Vec<String>,
    /// Those of [`UNCONFIRMED`] too.
    pub unconfirmed: bool,
    /// `annotation` too.
    pub annotation: bool,
}

impl Wanted {
    /// Whether this form is wanted.
    pub fn has(&self, form: &Form) -> bool {
        let named = self.named.is_empty() || self.named.iter().any(|name| name == form.as_str());
        let allowed = match form {
            Form::Annotation => self.annotation,
            form => self.unconfirmed || !UNCONFIRMED.contains(form),
        };
        named && allowed
    }
}

impl Task {
    /// Which engine does it. What is light takes a second or two of one processor for a picture of a tile.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Strip(_) | Self::NsfwScore(_) | Self::Vectorize | Self::Palette | Self::Describe | Self::Annotate => {
                Lane::Light
            }
            Self::Upscale(_)
            | Self::Faces { .. }
            | Self::Caption(_)
            | Self::Interrogate { .. }
            | Self::NsfwChecker(_)
            | Self::Aesthetic { .. } => Lane::Device,
        }
    }

    /// Whether its time grows with the picture; what looks at a picture made small does not.
    pub fn is_per_tile(&self) -> bool {
        !matches!(
            self,
            Self::Caption(_)
                | Self::Interrogate { .. }
                | Self::NsfwChecker(_)
                | Self::NsfwScore(_)
                | Self::Aesthetic { .. }
        )
    }

    /// The weights it reads.
    pub fn weights(&self) -> Vec<PathBuf> {
        match self {
            Self::Faces {
                detector,
                restorer,
                parser,
            } => [Some(detector), Some(restorer), parser.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            Self::Caption(folder) | Self::Interrogate { clip: folder, .. } => vec![folder.join("model.safetensors")],
            Self::Aesthetic { clip, head } => vec![clip.join("model.safetensors"), head.clone()],
            Self::Upscale(path) | Self::Strip(path) | Self::NsfwChecker(path) | Self::NsfwScore(path) => {
                vec![path.clone()]
            }
            Self::Vectorize | Self::Palette | Self::Describe | Self::Annotate => Vec::new(),
        }
    }

    /// Everything it reads: weights, and what lies beside them.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = self.weights();
        if let Self::Caption(folder) | Self::Interrogate { clip: folder, .. } | Self::Aesthetic { clip: folder, .. } =
            self
        {
            let beside = ["tokenizer.json", "config.json"].map(|name| folder.join(name));
            files.extend(beside.into_iter().filter(|path| path.is_file()));
        }
        if let Self::Interrogate { words, .. } = self {
            files.extend(word_lists(words));
        }
        files
    }
}

/// Every word list of a folder, by name.
pub fn word_lists(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut lists: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    lists.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    lists.sort();
    lists
}

/// The task of a form with the files found below `models`, or the first file that is missing.
pub fn task(form: &Form, models: &Path) -> Result<Task, PathBuf> {
    let present = |path: PathBuf| if path.is_file() { Ok(path) } else { Err(path) };
    // The first of the folders that has weights; else the first of them is what is missing.
    let folder = |names: &[&str]| -> Result<PathBuf, PathBuf> {
        let mut folders = names.iter().map(|name| models.join(name));
        let found = folders
            .clone()
            .find(|folder| folder.join("model.safetensors").is_file());
        found
            .or(folders.next())
            .ok_or_else(PathBuf::new)
            .and_then(|folder| present(folder.join("model.safetensors")).map(|_| folder))
    };
    match form {
        Form::Caption => {
            let folder = folder(&["blip", "blip/large", "blip/base"])?;
            present(folder.join("tokenizer.json"))?;
            Ok(Task::Caption(folder))
        }
        Form::Interrogation => {
            let clip = folder(&["clip", "clip/vit-b-32"])?;
            let words = models.join("clip/words");
            if word_lists(&words).is_empty() {
                return Err(words.join("*.txt"));
            }
            Ok(Task::Interrogate { clip, words })
        }
        Form::Nsfw => match present(models.join("nsfw/safety_checker.safetensors")) {
            Ok(checker) => Ok(Task::NsfwChecker(checker)),
            Err(_) => present(models.join("nsfw/open_nsfw.safetensors")).map(Task::NsfwScore),
        },
        Form::Vectorize => Ok(Task::Vectorize),
        Form::Palette => Ok(Task::Palette),
        Form::Describe => Ok(Task::Describe),
        Form::Aesthetic => {
            let clip = folder(&["clip"])?;
            let head = present(models.join("clip/aesthetic.safetensors"))?;
            Ok(Task::Aesthetic { clip, head })
        }
        Form::Annotation => Ok(Task::Annotate),
        form => post(form.as_str(), models),
    }
}

/// The task of a post-processor.
fn post(name: &str, models: &Path) -> Result<Task, PathBuf> {
    let files = PostFiles::find(models);
    let kind = NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    let (Some(kind), Some(network)) = (kind, files.networks.get(name).cloned()) else {
        let unknown = || PathBuf::from(format!("a network for `{name}`"));
        return Err(files.lacks(name, models).unwrap_or_else(unknown));
    };
    Ok(match (kind, files.detector) {
        (Kind::Upscale, _) => Task::Upscale(network),
        (Kind::CutOut, _) => Task::Strip(network),
        (Kind::Faces, detector) => Task::Faces {
            // A restorer without a detector is not among the networks.
            detector: detector.unwrap_or_default(),
            restorer: network,
            parser: files.parser,
        },
    })
}

/// Forms with what serves them.
pub type Found = Vec<(Form, Task)>;
/// Forms with the first file that each lacks.
pub type Missing = Vec<(Form, PathBuf)>;

/// The wanted forms that can be served, and for each other one what is missing.
pub fn installed(wanted: &Wanted, models: &Path) -> (Found, Missing) {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for form in KNOWN.iter().filter(|form| wanted.has(form)) {
        match task(form, models) {
            Ok(task) => found.push((form.clone(), task)),
            Err(path) => missing.push((form.clone(), path)),
        }
    }
    (found, missing)
}
