//! Networks of one engine: read when first needed, kept, and never tried again once one could not be read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use model_store::stamp::Stamp;
use vision::background::BackgroundRemover;
use vision::blip::{Blip, BlipConfig, Captioner};
use vision::clip::{
    AestheticHead, AestheticScorer, Clip, ClipConfig, ClipTokenizer, ClipVision, Interrogator, PlaceCache, WordList,
};
use vision::face::{FaceDetector, FaceParser, FaceRestorer};
use vision::nsfw::{OpenNsfw, SdSafetyChecker};
use vision::upscale::Upscaler;
use vision::{Device, VisionError, Weights};
use worker_runtime::backend::Fault;

use crate::forms::Task;

/// All networks of an engine.
pub(super) struct Networks {
    device: Device,
    stamps: BTreeMap<PathBuf, Stamp>,
    cache_dir: PathBuf,
    loaded: Mutex<BTreeMap<PathBuf, Slot>>,
}

/// A network that is read once, by whoever needs it first; a failure is kept too.
type Slot = Arc<OnceLock<Result<Network, String>>>;

#[derive(Clone)]
enum Network {
    Upscaler(Arc<Upscaler>),
    Detector(Arc<FaceDetector>),
    Restorer(Arc<FaceRestorer>),
    Remover(Arc<BackgroundRemover>),
    Captioner(Arc<Captioner>),
    Interrogator(Arc<Interrogator>),
    Checker(Arc<SdSafetyChecker>),
    OpenNsfw(Arc<OpenNsfw>),
    Scorer(Arc<AestheticScorer>),
}

/// One accessor per kind: the network at a path, read by the expression where it is not there yet.
macro_rules! accessor {
    ($name:ident, $variant:ident, $network:ty, |$it:ident, $path:ident| $load:expr) => {
        pub(super) fn $name(&self, $path: &Path) -> Result<Arc<$network>, Fault> {
            let found = self.get($path, |$it| Ok(Network::$variant(Arc::new($load))))?;
            match found {
                Network::$variant(network) => Ok(network),
                _ => Err(Fault::of_worker("one file is used for two kinds of network")),
            }
        }
    };
}

impl Networks {
    /// None read yet. `stamps` is how verified files looked; `cache_dir` keeps places of words.
    pub(super) fn new(device: Device, stamps: BTreeMap<PathBuf, Stamp>, cache_dir: PathBuf) -> Self {
        Self {
            device,
            stamps,
            cache_dir,
            loaded: Mutex::default(),
        }
    }

    accessor!(upscaler, Upscaler, Upscaler, |it, path| Upscaler::load(
        &it.weights(path)?
    )?);
    accessor!(detector, Detector, FaceDetector, |it, path| FaceDetector::load(
        &it.weights(path)?
    )?);
    accessor!(remover, Remover, BackgroundRemover, |it, path| BackgroundRemover::load(
        &it.weights(path)?
    )?);
    accessor!(open_nsfw, OpenNsfw, OpenNsfw, |it, path| OpenNsfw::load(
        &it.weights(path)?
    )?);
    accessor!(checker, Checker, SdSafetyChecker, |it, path| SdSafetyChecker::load(
        &it.weights(path)?,
        &ClipConfig::default()
    )?);
    accessor!(captioner, Captioner, Captioner, |it, folder| {
        let config = config_json(folder)?.map_or_else(|| Ok(BlipConfig::default()), |c| BlipConfig::from_json(&c))?;
        let blip = Blip::load(&it.weights(&folder.join("model.safetensors"))?, &config)?;
        Captioner::new(blip, &folder.join("tokenizer.json"))?
    });

    /// A restorer, with what tells face from hair where that is there.
    pub(super) fn restorer(&self, path: &Path, parser: Option<&Path>) -> Result<Arc<FaceRestorer>, Fault> {
        let load = |it: &Self| {
            let restorer = FaceRestorer::load(&it.weights(path)?)?;
            Ok(Network::Restorer(Arc::new(match parser {
                Some(path) => restorer.with_parser(FaceParser::load(&it.weights(path)?)?),
                None => restorer,
            })))
        };
        match self.get(path, load)? {
            Network::Restorer(network) => Ok(network),
            _ => Err(Fault::of_worker("one file is used for two kinds of network")),
        }
    }

    /// CLIP with the places of all words, which may take long where they were never computed: `progress(done, total)`
    /// counts words and ends it with `false`.
    pub(super) fn interrogator(
        &self,
        folder: &Path,
        words: &Path,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Arc<Interrogator>, Fault> {
        let load = |it: &Self| {
            let weights = folder.join("model.safetensors");
            let clip = Clip::load(&it.weights(&weights)?, &clip_config(folder)?)?;
            let tokenizer = ClipTokenizer::beside(&weights)?;
            let cache = it.place_cache(folder);
            let lists = WordList::read_folder(words)?;
            Ok(Network::Interrogator(Arc::new(Interrogator::new(
                clip,
                &tokenizer,
                lists,
                Some(&cache),
                progress,
            )?)))
        };
        match self.get(folder, load)? {
            Network::Interrogator(network) => Ok(network),
            _ => Err(Fault::of_worker("one file is used for two kinds of network")),
        }
    }

    /// CLIP's vision half with the head that scores.
    pub(super) fn scorer(&self, folder: &Path, head: &Path) -> Result<Arc<AestheticScorer>, Fault> {
        let load = |it: &Self| {
            let read = AestheticHead::load(&it.weights(head)?)?;
            let clip = it.weights(&folder.join("model.safetensors"))?;
            let vision = ClipVision::load(&clip, &clip_config(folder)?)?;
            Ok(Network::Scorer(Arc::new(AestheticScorer::new(vision, read))))
        };
        match self.get(head, load)? {
            Network::Scorer(network) => Ok(network),
            _ => Err(Fault::of_worker("one file is used for two kinds of network")),
        }
    }

    /// Whether the places of all words are on disk.
    pub(super) fn has_places(&self, folder: &Path, words: &Path) -> bool {
        WordList::read_folder(words).is_ok_and(|lists| self.place_cache(folder).has(&lists))
    }

    fn place_cache(&self, folder: &Path) -> PlaceCache {
        PlaceCache {
            folder: self.cache_dir.clone(),
            model: self.sum_of(&folder.join("model.safetensors")),
        }
    }

    /// The verified sum of a file; for one that was never verified, something else that changes with it.
    pub(super) fn sum_of(&self, path: &Path) -> String {
        match self.stamps.get(path) {
            Some(stamp) => stamp.sha256.to_string(),
            None => {
                let facts = std::fs::metadata(path).ok();
                let modified = facts.as_ref().and_then(|facts| facts.modified().ok());
                format!("{} {:?} {modified:?}", path.display(), facts.map(|facts| facts.len()))
            }
        }
    }

    /// Whether a network of the form could not be read.
    pub(super) fn is_broken(&self, task: &Task) -> bool {
        let loaded = self.lock();
        slots_of(task)
            .into_iter()
            .any(|path| loaded.get(path).is_some_and(|slot| matches!(slot.get(), Some(Err(_)))))
    }

    /// Paths of the networks that are in memory.
    pub(super) fn held(&self) -> BTreeSet<PathBuf> {
        let loaded = self.lock();
        let held = loaded.iter().filter(|(_, slot)| matches!(slot.get(), Some(Ok(_))));
        held.map(|(path, _)| path.clone()).collect()
    }

    /// Gives up every network but those in `kept`; what a job is using goes when it ends. Failures stay.
    pub(super) fn keep_only(&self, kept: &BTreeSet<PathBuf>) {
        self.lock()
            .retain(|path, slot| kept.contains(path) || matches!(slot.get(), Some(Err(_))));
    }

    fn get(&self, path: &Path, load: impl FnOnce(&Self) -> Result<Network, VisionError>) -> Result<Network, Fault> {
        let cell = self.lock().entry(path.to_owned()).or_default().clone();
        let mut cancelled = false;
        let read = || {
            load(self).map_err(|error| {
                cancelled = matches!(error, VisionError::Cancelled);
                error.to_string()
            })
        };
        let found = cell.get_or_init(read).clone();
        if cancelled {
            self.lock().remove(path);
            return Err(Fault::of_worker("cancelled"));
        }
        found.map_err(|reason| Fault::of_worker(format!("its network could not be loaded: {reason}")))
    }

    fn weights(&self, path: &Path) -> Result<Weights, VisionError> {
        if self.stamps.get(path).is_some_and(|stamp| !stamp.holds(path)) {
            return Err(VisionError::Unreadable {
                path: path.display().to_string(),
                reason: "it has changed since it was verified; a new start looks at it anew".into(),
            });
        }
        Weights::open(path, &self.device)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Slot>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the networks of a form are kept under.
fn slots_of(task: &Task) -> Vec<&PathBuf> {
    match task {
        Task::Faces { detector, restorer, .. } => vec![detector, restorer],
        Task::Interrogate { clip: path, .. }
        | Task::Aesthetic { head: path, .. }
        | Task::Caption(path)
        | Task::Upscale(path)
        | Task::Strip(path)
        | Task::NsfwChecker(path)
        | Task::NsfwScore(path) => vec![path],
        Task::Vectorize | Task::Palette | Task::Describe | Task::Annotate => Vec::new(),
    }
}

/// What `config.json` beside the weights says; where it is not there, what every published CLIP has.
fn clip_config(folder: &Path) -> Result<ClipConfig, VisionError> {
    config_json(folder)?.map_or_else(|| Ok(ClipConfig::default()), |text| ClipConfig::from_json(&text))
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
