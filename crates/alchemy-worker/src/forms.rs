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
    /// Ranked words, from a folder that has also `words/*.txt`.
    Interrogate(PathBuf),
    /// One boolean, by Stable Diffusion's safety checker.
    NsfwChecker(PathBuf),
    /// One boolean, by Yahoo's open_nsfw.
    NsfwScore(PathBuf),
    /// A drawing in SVG; needs no file.
    Vectorize,
}

/// Every form this worker has a network for.
pub const KNOWN: [Form; 20] = [
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
];

/// The task of a form with the files found below `models`, or the first file that is missing.
pub fn task(form: &Form, models: &Path) -> Result<Task, PathBuf> {
    let present = |path: PathBuf| if path.is_file() { Ok(path) } else { Err(path) };
    let folder = |name: &str| -> Result<PathBuf, PathBuf> {
        let folder = models.join(name);
        present(folder.join("model.safetensors"))?;
        Ok(folder)
    };
    match form {
        Form::Caption => {
            let folder = folder("blip")?;
            present(folder.join("tokenizer.json"))?;
            Ok(Task::Caption(folder))
        }
        Form::Interrogation => {
            let folder = folder("clip")?;
            let words = folder.join("words");
            let any = std::fs::read_dir(&words)
                .is_ok_and(|mut d| d.any(|e| e.is_ok_and(|e| e.path().extension().is_some_and(|x| x == "txt"))));
            if any {
                Ok(Task::Interrogate(folder))
            } else {
                Err(words.join("*.txt"))
            }
        }
        Form::Nsfw => match present(models.join("nsfw/safety_checker.safetensors")) {
            Ok(checker) => Ok(Task::NsfwChecker(checker)),
            Err(_) => present(models.join("nsfw/open_nsfw.safetensors")).map(Task::NsfwScore),
        },
        Form::Vectorize => Ok(Task::Vectorize),
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

/// The wanted forms that can be served, and for each other one what is missing. No wish means all.
pub fn installed(wanted: &[String], models: &Path) -> (Found, Missing) {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for form in KNOWN
        .iter()
        .filter(|f| wanted.is_empty() || wanted.iter().any(|w| w == f.as_str()))
    {
        match task(form, models) {
            Ok(task) => found.push((form.clone(), task)),
            Err(path) => missing.push((form.clone(), path)),
        }
    }
    (found, missing)
}
