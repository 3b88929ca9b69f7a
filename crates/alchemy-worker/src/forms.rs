//! Which files serve which form. A form is offered only while all its files are there.

use std::path::{Path, PathBuf};

use horde_client::alchemy::Form;

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
}

/// Every form this worker has a network for.
pub const KNOWN: [Form; 17] = [
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
    Form::ModernSpanimationV12x,
    Form::Gfpgan,
    Form::GfpganV13,
    Form::RestoreFormer,
];

/// The task of a form with the files found below `models`, or the first file that is missing.
pub fn task(form: &Form, models: &Path) -> Result<Task, PathBuf> {
    let present = |path: PathBuf| if path.is_file() { Ok(path) } else { Err(path) };
    let first = |names: &[&str]| {
        let mut paths = names.iter().map(|name| models.join(name));
        let wanted = paths.next().unwrap_or_default();
        if wanted.is_file() {
            Ok(wanted)
        } else {
            paths.find(|p| p.is_file()).ok_or(wanted)
        }
    };
    let folder = |name: &str| -> Result<PathBuf, PathBuf> {
        let folder = models.join(name);
        present(folder.join("model.safetensors"))?;
        Ok(folder)
    };
    let faces = |restorer: &str| -> Result<Task, PathBuf> {
        let detector = first(&[
            "gfpgan/detection_Resnet50_Final.safetensors",
            "gfpgan/retinaface_mobilenet0.25.safetensors",
        ])?;
        Ok(Task::Faces {
            detector,
            restorer: present(models.join(restorer))?,
        })
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
        Form::StripBackground => first(&[
            "rembg/u2net.safetensors",
            "rembg/isnet.safetensors",
            "rembg/u2netp.safetensors",
        ])
        .map(Task::Strip),
        Form::Gfpgan => faces("gfpgan/GFPGANv1.4.safetensors"),
        Form::GfpganV13 => faces("gfpgan/GFPGANv1.3.safetensors"),
        Form::RestoreFormer => faces("gfpgan/RestoreFormer.safetensors"),
        Form::RealEsrganX4Plus
        | Form::RealEsrganX2Plus
        | Form::RealEsrganX4PlusAnime6B
        | Form::NmkdSiax
        | Form::AnimeSharp4x
        | Form::Nomos8kSc4x
        | Form::LsdirPlus4x
        | Form::NomosWebPhotoRealPlksr4x
        | Form::Nomos2RealPlksrDysample4x
        | Form::ModernSpanimationV12x => {
            present(models.join(format!("esrgan/{}.safetensors", form.as_str()))).map(Task::Upscale)
        }
        other => Err(PathBuf::from(format!("a network for `{other}`"))),
    }
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
