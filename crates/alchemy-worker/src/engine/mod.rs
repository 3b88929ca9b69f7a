//! The engine: one form in, one result out. Networks are read when a form first needs them and kept; a form is offered once
//! its time is known.

mod annotate;
mod describe;
mod measure;
mod networks;
mod palette;
mod perform;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use horde_client::alchemy::Form;
use imaging::Limits;
use model_store::stamp::Stamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vision::{Device, Weights};
use worker_runtime::backend::{Engine, EngineReport, Fault, JobContext};

use self::networks::Networks;
use self::perform::{Made, Source, encode, perform};
use crate::forms::{self, Task};
use crate::pace::{self, Pace, Paces};
use crate::work::{Output, Work};

/// What the child needs to load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineSettings {
    /// Where models lie.
    pub models_dir: PathBuf,
    /// Where places of word lists are kept.
    pub cache_dir: PathBuf,
    /// Where measured times are kept.
    pub pace_file: PathBuf,
    /// Forms to serve, all of whose files were verified.
    pub forms: Vec<String>,
    /// Whether the owner named the forms: then one that is too slow for a whole tile is offered too.
    pub is_named: bool,
    /// How verified files looked; one that looks otherwise is not read any more.
    pub stamps: BTreeMap<PathBuf, Stamp>,
    /// Largest source, in tiles of 512×512.
    pub max_tiles: u32,
    /// Forms at once.
    pub threads: usize,
    /// See the configuration.
    pub nsfw_threshold: f32,
}

/// Alchemy on one device.
pub struct AlchemyEngine {
    shared: Arc<Shared>,
    measuring: Mutex<Option<JoinHandle<()>>>,
}

/// What jobs and measurements share.
struct Shared {
    settings: EngineSettings,
    device_name: String,
    networks: Networks,
    tasks: BTreeMap<String, Task>,
    open: Mutex<BTreeMap<String, Pace>>,
    paces: Mutex<Paces>,
    is_leaving: AtomicBool,
}

impl AlchemyEngine {
    /// Finds the forms whose files are there and can be opened, and begins to measure them. `device_name` is what
    /// measured times belong to.
    pub fn new(settings: EngineSettings, device: Device, device_name: &str) -> Self {
        let wanted = forms::Wanted {
            named: settings.forms.clone(),
            unconfirmed: true,
            annotation: true,
        };
        let found = if settings.forms.is_empty() {
            Vec::new()
        } else {
            forms::installed(&wanted, &settings.models_dir).0
        };
        let tasks = found.into_iter().filter(|(form, task)| readable(form, task, &device));
        let tasks = tasks.map(|(form, task)| (form.as_str().to_owned(), task)).collect();
        let shared = Arc::new(Shared {
            networks: Networks::new(device, settings.stamps.clone(), settings.cache_dir.clone()),
            paces: Mutex::new(Paces::open(&settings.pace_file)),
            device_name: device_name.to_owned(),
            settings,
            tasks,
            open: Mutex::default(),
            is_leaving: AtomicBool::new(false),
        });
        let measured = Arc::clone(&shared);
        let measuring = std::thread::Builder::new()
            .name("measure".into())
            .stack_size(16 << 20)
            .spawn(move || measure::open_all(&measured))
            .ok();
        Self {
            shared,
            measuring: Mutex::new(measuring),
        }
    }

    /// Forms whose files can be read.
    pub fn readable(&self) -> impl Iterator<Item = &str> {
        self.shared.tasks.keys().map(String::as_str)
    }

    /// Forms that can be served now, with their paces: measured, and their networks sound as far as they were read.
    pub fn forms(&self) -> BTreeMap<String, Pace> {
        let shared = &self.shared;
        let is_sound = |form: &String| {
            shared
                .tasks
                .get(form)
                .is_some_and(|task| !shared.networks.is_broken(task))
        };
        let open = shared.open();
        open.iter()
            .filter(|(form, _)| is_sound(form))
            .map(|(form, pace)| (form.clone(), *pace))
            .collect()
    }

    /// Waits until every form was measured.
    pub fn measured(&self) {
        let handle = self.measuring.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(handle) = handle {
            let _ = handle.join();
        }
    }

    fn is_measuring(&self) -> bool {
        let handle = self.measuring.lock().unwrap_or_else(PoisonError::into_inner);
        handle.as_ref().is_some_and(|handle| !handle.is_finished())
    }
}

impl Drop for AlchemyEngine {
    fn drop(&mut self) {
        self.shared.is_leaving.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, BTreeMap<String, Pace>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paces(&self) -> MutexGuard<'_, Paces> {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a pace belongs to: the device and the form's files.
    fn measured_of(&self, task: &Task) -> String {
        let sums = task
            .weights()
            .iter()
            .map(|path| self.networks.sum_of(path))
            .collect::<Vec<_>>();
        format!("{} {}", self.device_name, sums.join(" ")).trim_end().to_owned()
    }

    fn do_form(&self, mut work: Work, job: &dyn JobContext) -> Result<Output, Fault> {
        let task = self
            .tasks
            .get(&work.form)
            .ok_or_else(|| Fault::of_worker("the form is not served here"))?;
        let refused = |e: imaging::DecodeError| Fault::of_job(format!("the source was refused: {e}"));
        let format = imaging::probe(&work.source).map_err(refused)?.format.to_string();
        let picture = imaging::decode(&work.source, &Limits::tiles(self.settings.max_tiles)).map_err(refused)?;
        // The bytes are not needed beside the picture.
        work.source = serde_bytes::ByteBuf::new();
        work.options.nsfw_threshold = self.settings.nsfw_threshold;
        let tiles = f64::from(picture.width().div_ceil(512)) * f64::from(picture.height().div_ceil(512));
        let source = Source {
            picture: &picture,
            format: &format,
        };
        let started = Instant::now();
        let made = perform(task, &self.networks, &source, &work.options, job)?;
        let output = match made {
            Made::Picture(made) => Output::Picture {
                form: work.form.clone(),
                webp: serde_bytes::ByteBuf::from(encode(&made)?),
                tiles,
            },
            Made::Value(value) => Output::Value {
                result: json!({ &work.form: value }).to_string(),
                tiles,
            },
        };
        self.learn(
            &work.form,
            task,
            started,
            pace::tiles(picture.width(), picture.height()),
        );
        Ok(output)
    }

    /// The next estimate knows how long this job took.
    fn learn(&self, form: &str, task: &Task, started: Instant, tiles: f64) {
        let seconds = started.elapsed().as_secs_f64();
        let mut open = self.open();
        let Some(pace) = open.get_mut(form) else { return };
        *pace = pace.after(seconds, tiles);
        let now = *pace;
        drop(open);
        self.paces().set(form, &self.measured_of(task), now);
    }
}

impl Engine for AlchemyEngine {
    type Work = Work;
    type Output = Output;

    fn report(&self) -> EngineReport {
        EngineReport {
            capacity: self.shared.settings.threads.max(1),
            facts: json!({ "forms": self.forms(), "measuring": self.is_measuring() }),
        }
    }

    fn run(&self, work: Work, job: &dyn JobContext) -> Result<Vec<Result<Output, Fault>>, Fault> {
        job.progress(0, 1, "decode");
        let done = self.shared.do_form(work, job);
        vision::allocator::give_back();
        Ok(vec![done])
    }
}

/// Whether the files of a form have headers that can be read; the owner is told which have not.
fn readable(form: &Form, task: &Task, device: &Device) -> bool {
    let broken = task.weights().iter().find_map(|path| Weights::open(path, device).err());
    if let Some(error) = &broken {
        tracing::warn!("{} is not offered: {error}", form.as_str());
    }
    broken.is_none()
}
