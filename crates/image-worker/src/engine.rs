//! The engine: one job in, its checked pictures out.

use std::sync::Mutex;
use std::time::Instant;

use diffusion::adapter::{self, Applied, Lora};
use diffusion::embedding::Embedding;
use diffusion::{Error, Request};
use horde_client::metadata::{Metadata, MetadataType, MetadataValue};
use imaging::Picture;
use serde::{Deserialize, Serialize};
use vision::{VisionError, post};
use worker_app::Stop;
use worker_runtime::backend::{Engine, EngineReport, Fault, JobContext};

use crate::checked::{About, Gate, Policy};
use crate::facts::{Facts, Pace};
use crate::hires;
use crate::models::Served;
use crate::networks::{Installed, PostFiles};
use crate::resident::{Loaded, Refused, Resident};
use crate::room::{self, Offer, Room, SMALLEST_PIXELS};
use crate::sources;
use crate::work::{LoraFile, Made, Output, Work};

/// What the child needs to load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineSettings {
    /// What may be asked for.
    pub models: Vec<Served>,
    /// Models kept in memory at once, at least 1.
    pub models_in_memory: usize,
    /// Networks of post-processing.
    pub post: PostFiles,
    /// What the owner offers; memory may allow less.
    pub ceiling: Offer,
}

/// Pictures on one device.
pub struct DreamerEngine {
    resident: Mutex<Resident>,
    pace: Mutex<Pace>,
    offer: Mutex<Offer>,
    begun_with: Offer,
    ceiling: Offer,
    networks: Installed,
    gate: Gate,
}

const HINT_FILES: &str =
    "`dreamer models list` shows what is there, `dreamer models pull NAME` fetches a model of the Horde's reference";
const HINT_MEMORY: &str = "end other programs, serve a smaller model, lower `dreamer.max_power`, raise `dreamer.memory_mb` where it is set, or on a card set `dreamer.check_on_cpu`";

impl DreamerEngine {
    /// Plans what fits into memory, loads the first model that can be loaded and makes a small picture with it, which
    /// shows that it works here and how fast.
    ///
    /// # Errors
    /// No model fits or can be loaded, or the device gives no picture.
    pub fn new(settings: EngineSettings, room: Room, gate: Gate) -> Result<Self, Stop> {
        let none = |why: String| Stop::no_model(format!("no model can be used: {why}"));
        let networks = Installed::new(settings.post, room.device.clone());
        let plan = room::plan(&room, &settings.models, settings.ceiling, 0).map_err(|why| {
            let hint = if why.contains("memory") {
                HINT_MEMORY
            } else {
                HINT_FILES
            };
            none(why).hint(hint)
        })?;
        let mut resident = Resident::new(settings.models, settings.models_in_memory, room);
        for (name, why) in &plan.left_out {
            tracing::error!(model = name, why, "a model cannot be used and is not offered");
            resident.forget(name);
        }
        if plan.offer != settings.ceiling {
            let Offer { pixels, batch } = plan.offer;
            tracing::warn!(pixels, batch, "memory is short: less is offered than is configured");
        }
        let mut pace = Pace::default();
        let mut why = "there is no model to serve".to_owned();
        for name in resident.names() {
            match tried(&mut resident, &name, &mut pace) {
                Ok(()) => {
                    return Ok(Self {
                        resident: Mutex::new(resident),
                        pace: Mutex::new(pace),
                        offer: Mutex::new(plan.offer),
                        begun_with: plan.offer,
                        ceiling: settings.ceiling,
                        networks,
                        gate,
                    });
                }
                Err(error) => {
                    tracing::error!(model = name, error, "a model cannot be used and is not offered");
                    why = format!("`{name}`: {error}");
                    resident.forget(&name);
                }
            }
        }
        Err(none(why).hint(HINT_FILES))
    }

    /// What is offered follows the memory: less after a job that did not fit, and more again when there is more.
    fn offer_anew(&self, resident: &Resident, was_refused: bool) {
        let mut offer = self.offer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !was_refused && *offer == self.begun_with {
            return;
        }
        let least = Offer {
            pixels: SMALLEST_PIXELS.min(self.ceiling.pixels),
            batch: 1,
        };
        // Where nothing fits, small jobs are what shows that there is room again.
        let held = resident.held_bytes();
        let now = room::plan(resident.room(), resident.models(), self.ceiling, held).map_or(least, |plan| plan.offer);
        if now != *offer {
            tracing::warn!(
                pixels = now.pixels,
                batch = now.batch,
                "what is offered follows the memory that is left"
            );
            *offer = now;
        }
    }

    fn work(&self, work: &Work, job: &dyn JobContext) -> Result<Vec<Result<Output, Fault>>, Fault> {
        let begun = Instant::now();
        let mut notes = work.notes.clone();
        let mut resident = self.resident.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !resident.has(&work.model) {
            job.progress(0, work.order.steps, "load");
        }
        let had_room = match resident.get(&work.model, &planned(work)) {
            Ok(_) => Ok(()),
            Err(refused) => Err(refused),
        };
        self.offer_anew(&resident, matches!(had_room, Err(Refused::Memory(_))));
        had_room.map_err(|refused| Fault::of_worker(refused.to_string()))?;
        let loaded = resident
            .latest()
            .ok_or_else(|| Fault::of_worker("no model is in memory"))?;
        self.note_load(loaded);
        let mut steps = Steps::new(job);
        let pictures = self.generate(loaded, work, &mut notes, &mut steps)?;
        let (served_nsfw, style) = (loaded.served.nsfw, loaded.served.style.clone());
        drop(resident);
        self.learn(work, &steps);
        let pictures = post::chain(
            &work.post,
            pictures,
            &self.networks,
            work.face_strength,
            &mut |done, total| {
                job.progress(done as u32, total as u32, "post");
                !job.is_cancelled()
            },
        )
        .map_err(post_fault)?;
        let said = said(work);
        let about = About {
            prompt: &said,
            is_nsfw_model: served_nsfw,
            style: &style,
        };
        let policy = Policy {
            censors: work.censors,
            has_censored_word: work.has_censored_word,
        };
        let made = Made {
            seed: work.order.seed,
            steps: f64::from(work.order.steps),
            megapixel_steps: work.order.pixels() / 1e6 * f64::from(work.order.steps),
            seconds: begun.elapsed().as_secs_f64() / pictures.len().max(1) as f64,
        };
        job.progress(work.order.steps, work.order.steps, "check");
        let several = pictures.len() > 1;
        let each = pictures.into_iter().enumerate().map(|(index, picture)| {
            let mut notes = notes.clone();
            if several {
                let index = index.to_string();
                notes.push(Metadata::new(
                    MetadataType::BatchIndex,
                    MetadataValue::SeeRef,
                    Some(&index),
                ));
            }
            self.gate.pass(picture, about, policy)?.into_output(notes, made)
        });
        Ok(each.collect())
    }

    /// Puts LoRAs and inversions on, makes the pictures, and takes both off again, whatever happens.
    fn generate(
        &self,
        loaded: &mut Loaded,
        work: &Work,
        notes: &mut Vec<Metadata>,
        steps: &mut Steps<'_>,
    ) -> Result<Vec<Picture>, Fault> {
        let request = self.request(loaded, work, notes);
        let mut applied = Vec::new();
        for lora in &work.loras {
            match put_on(loaded, lora) {
                Ok(one) => applied.push(one),
                Err(value) => notes.push(Metadata::new(MetadataType::Lora, value, Some(&lora.name))),
            }
        }
        self.give_embeddings(loaded, work, notes);
        let pictures = loaded.pipeline.generate(&request, steps);
        loaded.pipeline.embeddings = Box::new(|_, _| None);
        for one in applied {
            if let Err(error) = adapter::take_off(loaded.pipeline.model(), one) {
                tracing::error!(%error, "a LoRA could not be taken off; the model is read again for the next job");
                loaded.is_spoiled = true;
            }
        }
        pictures.map_err(fault)
    }

    fn request(&self, loaded: &Loaded, work: &Work, notes: &mut Vec<Metadata>) -> Request {
        let order = &work.order;
        let mut request = order.request(work.prompt.clone());
        let model = loaded.pipeline.model();
        let mut has_mask = false;
        if let (Some(usage), Some(bytes)) = (order.source, &work.source) {
            match sources::decode(bytes, work.mask.as_ref().map(|mask| mask.as_slice()), usage) {
                Ok(source) => {
                    if source.is_mask_broken {
                        notes.push(Metadata::new(
                            MetadataType::SourceMask,
                            MetadataValue::ParseFailed,
                            None,
                        ));
                    }
                    has_mask = source.mask.is_some();
                    request.source = Some(diffusion::Source {
                        picture: source.picture,
                        mask: source.mask,
                        // Models with channels for the mask see the picture with a hole.
                        inpaint: model.unet.in_channels() == 2 * model.vae.latent_channels() + 1,
                        denoise: order.denoise,
                    });
                }
                Err(error) => {
                    tracing::info!(%error, "a source is no picture; the job goes on without");
                    notes.push(Metadata::new(
                        MetadataType::SourceImage,
                        MetadataValue::ParseFailed,
                        None,
                    ));
                }
            }
        }
        if order.hires && !has_mask {
            let size = (order.width, order.height);
            request.hires = hires::passes(model.family, size, order.steps as usize, order.hires_denoise);
        }
        request
    }

    fn give_embeddings(&self, loaded: &mut Loaded, work: &Work, notes: &mut Vec<Metadata>) {
        let model = loaded.pipeline.model();
        let widths = [model.token_width(false), model.token_width(true)];
        let mut known = Vec::new();
        for (name, path) in &work.embeddings {
            let opened = Embedding::open(path);
            let fits = |embedding: &Embedding| {
                [false, true]
                    .into_iter()
                    .zip(widths)
                    .any(|(big, width)| width.is_some_and(|width| embedding.vectors(big, width).is_some()))
            };
            let note = match &opened {
                Ok(embedding) if fits(embedding) => None,
                Ok(_) => Some(MetadataValue::BaselineMismatch),
                Err(_) => Some(MetadataValue::ParseFailed),
            };
            match (opened, note) {
                (Ok(embedding), None) => known.push((name.clone(), embedding)),
                (_, note) => notes.extend(note.map(|value| Metadata::new(MetadataType::Ti, value, Some(name)))),
            }
        }
        loaded.pipeline.embeddings = Box::new(move |name, big| {
            let (_, embedding) = known.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
            embedding.vectors(big, widths[usize::from(big)]?)
        });
    }

    fn note_load(&self, loaded: &Loaded) {
        let mut pace = self.pace.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pace.loaded(loaded.seconds);
    }

    fn learn(&self, work: &Work, steps: &Steps<'_>) {
        if let (Some(seconds), None) = (steps.seconds_each(), work.order.source) {
            let calls = f64::from(work.order.sampler().calls_per_step());
            let each = work.order.pixels() / 1e6 * calls * f64::from(work.order.batch);
            let mut pace = self.pace.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if !work.order.hires {
                pace.learn(&work.model, each / seconds);
            }
        }
    }
}

impl Engine for DreamerEngine {
    type Work = Work;
    type Output = Output;

    fn report(&self) -> EngineReport {
        // A job may hold the models for minutes; what they are does not change meanwhile.
        let pace = self
            .pace
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        let resident = self.resident.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let offer = *self.offer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Facts::new(resident.names(), resident.in_memory(), offer, pace).report()
    }

    fn run(&self, work: Work, job: &dyn JobContext) -> Result<Vec<Result<Output, Fault>>, Fault> {
        let done = self.work(&work, job);
        diffusion::allocator::give_back();
        done
    }
}

/// Loads a model and makes a small picture with it.
fn tried(resident: &mut Resident, name: &str, pace: &mut Pace) -> Result<(), String> {
    const SIDE: u32 = 256;
    let request = Request {
        steps: 3,
        ..Request::new("a photo", SIDE, SIDE)
    };
    let loaded = resident.get(name, &request).map_err(|refused| refused.to_string())?;
    pace.loaded(loaded.seconds);
    let mut steps = Steps::new(&Nobody);
    loaded
        .pipeline
        .generate(&request, &mut steps)
        .map_err(|error| error.to_string())?;
    if let Some(seconds) = steps.seconds_each() {
        pace.learn(name, f64::from(SIDE * SIDE) / 1e6 / seconds);
    }
    Ok(())
}

/// A request that needs as much memory as the job: a hires fix ends at the job's size, and where a source turns out to be
/// none, less is needed.
fn planned(work: &Work) -> Request {
    let source = work.source.as_ref().map(|_| diffusion::Source {
        picture: Picture::filled(8, 8, [0; 3]),
        mask: None,
        inpaint: false,
        denoise: 1.0,
    });
    Request {
        source,
        ..work.order.request(work.prompt.clone())
    }
}

fn put_on(loaded: &Loaded, lora: &LoraFile) -> Result<Applied, MetadataValue> {
    let put = Lora::open(&lora.path, lora.model, lora.clip)
        .and_then(|opened| adapter::apply(loaded.pipeline.model(), std::slice::from_ref(&opened)));
    put.map_err(|error| {
        tracing::info!(%error, "a LoRA is left out");
        match error {
            Error::Adapter { .. } => MetadataValue::BaselineMismatch,
            _ => MetadataValue::ParseFailed,
        }
    })
}

fn fault(error: Error) -> Fault {
    match error {
        Error::Request(_) => Fault::of_job(error.to_string()),
        Error::Cancelled => Fault::of_worker("cancelled"),
        _ => Fault::of_worker(error.to_string()),
    }
}

fn post_fault(error: VisionError) -> Fault {
    match error {
        VisionError::Input(_) => Fault::of_job(error.to_string()),
        _ => Fault::of_worker(error.to_string()),
    }
}

/// Nobody is told.
struct Nobody;

impl JobContext for Nobody {
    fn progress(&self, _: u32, _: u32, _: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Passes steps on and takes their time.
struct Steps<'a> {
    job: &'a dyn JobContext,
    times: Vec<Instant>,
}

impl<'a> Steps<'a> {
    fn new(job: &'a dyn JobContext) -> Self {
        Self { job, times: Vec::new() }
    }

    /// Mean seconds of a step; `None` where fewer than two were seen.
    fn seconds_each(&self) -> Option<f64> {
        let (first, last) = (self.times.first()?, self.times.last()?);
        let count = self.times.len() - 1;
        let seconds = last.duration_since(*first).as_secs_f64() / count as f64;
        (count > 0 && seconds > 0.0).then_some(seconds)
    }
}

impl diffusion::Progress for Steps<'_> {
    fn step(&mut self, step: usize, total: usize) {
        self.times.push(Instant::now());
        self.job.progress(step as u32, total as u32, "sample");
    }

    fn is_cancelled(&self) -> bool {
        self.job.is_cancelled()
    }
}

/// All words of a job: what its LoRAs and inversions are called says as much as its prompt.
fn said(work: &Work) -> String {
    let loras = work.loras.iter().map(|lora| lora.name.as_str());
    let names = loras.chain(work.embeddings.iter().map(|(name, _)| name.as_str()));
    // No name may turn what follows it into a negative prompt.
    let mut said: String = names.map(|name| name.replace('#', " ") + " , ").collect();
    said.push_str(&work.prompt);
    said
}
