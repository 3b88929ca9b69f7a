//! The engine: one form in, one result out. Networks are read when a form first needs them and kept.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use horde_client::alchemy::Form;
use imaging::{Limits, Picture, WebpOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use vision::background::{BackgroundRemover, MattingSettings};
use vision::blip::{Blip, BlipConfig, CaptionSettings, Captioner, Search};
use vision::clip::{Clip, ClipConfig, ClipTokenizer, Interrogator, WordList};
use vision::face::{FaceDetector, FaceParser, FaceRestorer, RestoreSettings, restore_faces};
use vision::nsfw::{OpenNsfw, SdSafetyChecker};
use vision::upscale::Upscaler;
use vision::{Device, VisionError, Weights};
use worker_runtime::backend::{Engine, EngineReport, Fault, JobContext};

use crate::forms::{Task, installed};
use crate::work::{Options, Output, Work};

/// What the child needs to load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineSettings {
    /// Where models lie.
    pub models_dir: PathBuf,
    /// Where places of word lists are kept.
    pub cache_dir: PathBuf,
    /// Wanted forms; empty is all.
    pub forms: Vec<String>,
    /// Largest source, in tiles of 512×512.
    pub max_tiles: u32,
    /// Forms at once.
    pub threads: usize,
    /// See the configuration.
    pub nsfw_threshold: f32,
}

/// Alchemy on one device.
pub struct AlchemyEngine {
    settings: EngineSettings,
    device: Device,
    tasks: BTreeMap<String, Task>,
    loaded: Mutex<BTreeMap<PathBuf, Slot>>,
}

/// A network that is read once, by whoever needs it first; a failure is kept too.
type Slot = Arc<OnceLock<Result<Network, String>>>;

enum Network {
    Upscaler(Upscaler),
    Detector(FaceDetector),
    Restorer(FaceRestorer),
    Remover(BackgroundRemover),
    Captioner(Captioner),
    Interrogator(Interrogator),
    Checker(SdSafetyChecker),
    OpenNsfw(OpenNsfw),
}

impl AlchemyEngine {
    /// Finds the forms whose files are there and can be opened.
    pub fn new(settings: EngineSettings, device: Device) -> Self {
        let (found, _) = installed(&settings.forms, &settings.models_dir);
        let tasks = found.into_iter().filter(|(form, task)| readable(form, task, &device));
        let tasks = tasks.map(|(form, task)| (form.as_str().to_owned(), task)).collect();
        Self {
            settings,
            device,
            tasks,
            loaded: Mutex::default(),
        }
    }

    /// Forms that can be served.
    pub fn forms(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    fn network(&self, path: &Path, load: impl FnOnce(&Self) -> Result<Network, VisionError>) -> Result<Slot, Fault> {
        let mut loaded = self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let cell = loaded.entry(path.to_owned()).or_default().clone();
        drop(loaded);
        match cell.get_or_init(|| load(self).map_err(|e| e.to_string())) {
            Ok(_) => Ok(cell),
            Err(reason) => Err(Fault::of_worker(format!("its network could not be loaded: {reason}"))),
        }
    }

    fn weights(&self, path: &Path) -> Result<Weights, VisionError> {
        Weights::open(path, &self.device)
    }

    fn do_form(&self, work: &Work, job: &dyn JobContext) -> Result<Output, Fault> {
        let task = self
            .tasks
            .get(&work.form)
            .ok_or_else(|| Fault::of_worker("the form is not served here"))?;
        let picture = imaging::decode(&work.source, &Limits::tiles(self.settings.max_tiles))
            .map_err(|e| Fault::of_job(format!("the source was refused: {e}")))?;
        let tiles = f64::from(picture.width().div_ceil(512)) * f64::from(picture.height().div_ceil(512));
        let mut progress = |done: usize, total: usize| {
            job.progress(done as u32, total as u32, "work");
            !job.is_cancelled()
        };
        let value = |value: Value| Output::Value {
            result: json!({ &work.form: value }).to_string(),
            tiles,
        };
        let made = match task {
            Task::Caption(folder) => return Ok(value(json!(self.caption(folder, &picture, &work.options, job)?))),
            Task::Interrogate(folder) => {
                return Ok(value(self.interrogate(folder, &picture, work.options.top_count)?));
            }
            Task::NsfwChecker(path) => {
                let cell = self.network(path, |e| {
                    Ok(Network::Checker(SdSafetyChecker::load(
                        &e.weights(path)?,
                        &ClipConfig::default(),
                    )?))
                })?;
                let Some(Ok(Network::Checker(net))) = cell.get() else {
                    return Err(mixed_up());
                };
                return Ok(value(json!(net.check(&picture).map_err(fault)?.flagged)));
            }
            Task::NsfwScore(path) => {
                let cell = self.network(path, |e| Ok(Network::OpenNsfw(OpenNsfw::load(&e.weights(path)?)?)))?;
                let Some(Ok(Network::OpenNsfw(net))) = cell.get() else {
                    return Err(mixed_up());
                };
                let score = net.score(&picture).map_err(fault)?;
                return Ok(value(json!(score >= self.settings.nsfw_threshold)));
            }
            Task::Vectorize => {
                let svg = vision::vectorize::vectorize(&picture, &mut progress).map_err(fault)?;
                return Ok(value(json!(svg)));
            }
            Task::Upscale(path) => {
                let cell = self.network(path, |e| Ok(Network::Upscaler(Upscaler::load(&e.weights(path)?)?)))?;
                let Some(Ok(Network::Upscaler(net))) = cell.get() else {
                    return Err(mixed_up());
                };
                net.upscale(&picture, net.tiling(), &mut progress).map_err(fault)?
            }
            Task::Strip(path) => {
                let cell = self.network(path, |e| {
                    Ok(Network::Remover(BackgroundRemover::load(&e.weights(path)?)?))
                })?;
                let Some(Ok(Network::Remover(net))) = cell.get() else {
                    return Err(mixed_up());
                };
                net.cut_out(&picture, &MattingSettings::default()).map_err(fault)?
            }
            Task::Faces {
                detector,
                restorer,
                parser,
            } => {
                let found = self.network(detector, |e| {
                    Ok(Network::Detector(FaceDetector::load(&e.weights(detector)?)?))
                })?;
                let repaired = self.network(restorer, |e| {
                    let restorer = FaceRestorer::load(&e.weights(restorer)?)?;
                    Ok(Network::Restorer(match parser {
                        Some(path) => restorer.with_parser(FaceParser::load(&e.weights(path)?)?),
                        None => restorer,
                    }))
                })?;
                let (Some(Ok(Network::Detector(detector))), Some(Ok(Network::Restorer(restorer)))) =
                    (found.get(), repaired.get())
                else {
                    return Err(mixed_up());
                };
                let settings = RestoreSettings {
                    strength: work.options.face_strength,
                    ..RestoreSettings::default()
                };
                restore_faces(&picture, detector, restorer, &settings, &mut progress).map_err(fault)?
            }
        };
        let webp = imaging::encode_webp(&made, WebpOptions::default())
            .map_err(|e| Fault::of_worker(format!("the result could not be encoded: {e}")))?;
        Ok(Output::Picture {
            form: work.form.clone(),
            webp: serde_bytes::ByteBuf::from(webp),
            tiles,
        })
    }

    fn caption(
        &self,
        folder: &Path,
        picture: &Picture,
        options: &Options,
        job: &dyn JobContext,
    ) -> Result<String, Fault> {
        let cell = self.network(folder, |e| {
            let config =
                config_json(folder)?.map_or_else(|| Ok(BlipConfig::default()), |c| BlipConfig::from_json(&c))?;
            let blip = Blip::load(&e.weights(&folder.join("model.safetensors"))?, &config)?;
            Ok(Network::Captioner(Captioner::new(
                blip,
                &folder.join("tokenizer.json"),
            )?))
        })?;
        let Some(Ok(Network::Captioner(net))) = cell.get() else {
            return Err(mixed_up());
        };
        let settings = CaptionSettings {
            search: Search::Beams(options.num_beams),
            min_length: options.min_length,
            max_length: options.max_length,
            repetition_penalty: options.repetition_penalty,
            ..CaptionSettings::default()
        };
        net.caption(picture, &settings, &|| job.is_cancelled()).map_err(fault)
    }

    fn interrogate(&self, folder: &Path, picture: &Picture, top: usize) -> Result<Value, Fault> {
        let cell = self.network(folder, |e| {
            let config =
                config_json(folder)?.map_or_else(|| Ok(ClipConfig::default()), |c| ClipConfig::from_json(&c))?;
            let path = folder.join("model.safetensors");
            let clip = Clip::load(&e.weights(&path)?, &config)?;
            let tokenizer = ClipTokenizer::beside(&path)?;
            let lists = WordList::read_folder(&folder.join("words"))?;
            let model = stamp(&path);
            let cache = Some((e.settings.cache_dir.as_path(), model.as_str()));
            Ok(Network::Interrogator(Interrogator::new(
                clip, &tokenizer, lists, cache,
            )?))
        })?;
        let Some(Ok(Network::Interrogator(net))) = cell.get() else {
            return Err(mixed_up());
        };
        let lists = net.interrogate(picture, top).map_err(fault)?;
        let tags = |tags: Vec<vision::clip::Tag>| -> Value {
            tags.into_iter()
                .map(|t| json!({ "text": t.text, "confidence": t.confidence }))
                .collect()
        };
        Ok(Value::Object(
            lists
                .into_iter()
                .map(|(name, found)| (name, tags(found)))
                .collect::<Map<_, _>>(),
        ))
    }
}

impl Engine for AlchemyEngine {
    type Work = Work;
    type Output = Output;

    fn report(&self) -> EngineReport {
        let forms: Vec<&str> = self.forms().collect();
        EngineReport {
            capacity: self.settings.threads.max(1),
            facts: json!({ "forms": forms }),
        }
    }

    fn run(&self, work: Work, job: &dyn JobContext) -> Result<Vec<Result<Output, Fault>>, Fault> {
        job.progress(0, 1, "decode");
        let done = self.do_form(&work, job);
        vision::allocator::give_back();
        Ok(vec![done])
    }
}

/// Whether the files of a form have headers that can be read; the owner is told which have not.
fn readable(form: &Form, task: &Task, device: &Device) -> bool {
    let paths = match task {
        Task::Faces {
            detector,
            restorer,
            parser,
        } => [Some(detector), Some(restorer), parser.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect(),
        Task::Vectorize => Vec::new(),
        Task::Caption(folder) | Task::Interrogate(folder) => vec![folder.join("model.safetensors")],
        Task::Upscale(path) | Task::Strip(path) | Task::NsfwChecker(path) | Task::NsfwScore(path) => vec![path.clone()],
    };
    let broken = paths.iter().find_map(|path| Weights::open(path, device).err());
    if let Some(error) = &broken {
        tracing::warn!(form = form.as_str(), %error, "a form is not offered");
    }
    broken.is_none()
}

/// A name that changes when the file does.
fn stamp(path: &Path) -> String {
    let facts = std::fs::metadata(path).ok();
    let modified = facts.as_ref().and_then(|f| f.modified().ok());
    format!("{} {:?} {modified:?}", path.display(), facts.map(|f| f.len()))
}

/// The configuration beside the weights, if there is one.
fn config_json(folder: &Path) -> Result<Option<String>, VisionError> {
    match std::fs::read_to_string(folder.join("config.json")) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(VisionError::Side {
            what: "config.json".into(),
            reason: e.to_string(),
        }),
    }
}

fn fault(error: VisionError) -> Fault {
    match error {
        VisionError::Cancelled => Fault::of_job("cancelled"),
        error if error.is_of_request() => Fault::of_job(error.to_string()),
        error => Fault::of_worker(error.to_string()),
    }
}

fn mixed_up() -> Fault {
    Fault::of_worker("one file is used for two kinds of network")
}
