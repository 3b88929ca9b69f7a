//! The engine: one job in, its checked pictures out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use diffusion::Request;
use horde_client::metadata::{Metadata, MetadataType, MetadataValue};
use imaging::Picture;
use serde::{Deserialize, Serialize};
use vision::VisionError;
use vision::post::{self, Kind, Networks};
use vision::upscale::Tiling;
use worker_app::Stop;
use worker_runtime::backend::{Engine, EngineReport, Fault, JobContext};

use crate::checked::{About, Gate, Policy};
use crate::drawing::draw;
use crate::facts::{Facts, Pace};
use crate::models::Served;
use crate::networks::{InTiles, Installed, PostFiles};
use crate::plan::{NoPlan, WhyNot, plan};
use crate::program::HINT_MODELS;
use crate::resident::{Refused, Resident};
use crate::room::{Offer, Room, SMALLEST_PIXELS, Shortage};
use crate::steps::{Nobody, Steps};
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
    /// Bytes there were when it was last weighed whether the offer fits them; see [`Room::most_bytes`].
    weighed_bytes: Mutex<Option<u64>>,
    ceiling: Offer,
    gate: Gate,
}

const HINT_MEMORY: &str = "end other programs, serve a smaller model, lower `dreamer.max_power`, raise `dreamer.memory_mb` where it is set, set `dreamer.allow_post_processing = false`, or on a card set `dreamer.check_on_cpu`";

impl DreamerEngine {
    /// Plans what fits into memory, loads the first model that can be loaded and makes a small picture with it, which
    /// shows that it works here and how fast.
    ///
    /// # Errors
    /// No model fits or can be loaded, or the device gives no picture.
    pub fn new(settings: EngineSettings, room: Room, gate: Gate) -> Result<Self, Stop> {
        let none = |why: &dyn std::fmt::Display| Stop::no_model(format!("no model can be used: {why}"));
        let networks = Arc::new(Installed::new(settings.post, room.device.clone()));
        let plan = plan(&room, &settings.models, settings.ceiling, &networks.need_of_all(), 0).map_err(|why| {
            let hint = match &why {
                NoPlan::Model(_, WhyNot::Memory(_) | WhyNot::SmallPictures(_)) => HINT_MEMORY,
                NoPlan::Model(_, WhyNot::Files(_)) | NoPlan::NoModel => HINT_MODELS,
            };
            none(&why).hint(hint)
        })?;
        let mut resident = Resident::new(settings.models, settings.models_in_memory, room, networks);
        for (name, why) in &plan.left_out {
            tracing::error!(model = name, %why, "a model cannot be used and is not offered");
            resident.forget(name);
        }
        if plan.offer != settings.ceiling {
            let Offer { pixels, batch } = plan.offer;
            tracing::warn!(pixels, batch, "memory is short: less is offered than is configured");
        }
        let mut pace = Pace::default();
        let mut stop = none(&NoPlan::NoModel).hint(HINT_MODELS);
        for name in resident.names() {
            match tried(&mut resident, &name, &mut pace) {
                Ok(()) => {
                    return Ok(Self {
                        resident: Mutex::new(resident),
                        pace: Mutex::new(pace),
                        offer: Mutex::new(plan.offer),
                        weighed_bytes: Mutex::default(),
                        ceiling: settings.ceiling,
                        gate,
                    });
                }
                Err(refused) => {
                    tracing::error!(model = name, error = %refused, "a model cannot be used and is not offered");
                    stop = none(&format!("`{name}`: {refused}")).hint(match refused {
                        Refused::Memory(_) => HINT_MEMORY,
                        Refused::Model(_) => HINT_MODELS,
                    });
                    resident.forget(&name);
                }
            }
        }
        Err(stop)
    }

    /// What memory suffices for now; where nothing fits, small jobs, as they are what shows that there is room again.
    fn fitting(&self, resident: &Resident) -> Offer {
        let least = Offer {
            pixels: SMALLEST_PIXELS.min(self.ceiling.pixels),
            batch: 1,
        };
        *lock(&self.weighed_bytes) = resident.room().most_bytes(resident.held_bytes());
        let post = resident.networks().need_of_all();
        let planned = plan(
            resident.room(),
            resident.models(),
            self.ceiling,
            &post,
            resident.held_bytes(),
        );
        planned.map_or(least, |plan| plan.offer)
    }

    /// A job did not fit: what is offered follows the memory that is left.
    fn offer_less(&self, resident: &Resident) {
        let Offer { pixels, batch } = self.fitting(resident);
        tracing::warn!(pixels, batch, "memory is short: less is offered than before");
        *lock(&self.offer) = Offer { pixels, batch };
    }

    /// Offers more where there is clearly more memory than when the offer was made.
    fn offer_more(&self, resident: &Resident) {
        let mut offer = lock(&self.offer);
        if *offer == self.ceiling || !self.has_grown(resident) {
            return;
        }
        let now = self.fitting(resident);
        if now.is_clearly_more_than(*offer, self.ceiling) {
            let Offer { pixels, batch } = now;
            tracing::info!(pixels, batch, "there is more memory: more is offered than before");
            *offer = now;
        }
    }

    /// Whether there is more memory than when it was last weighed: only then files' headers are worth another look.
    fn has_grown(&self, resident: &Resident) -> bool {
        let now = resident.room().most_bytes(resident.held_bytes());
        match (now, *lock(&self.weighed_bytes)) {
            (Some(now), Some(weighed)) => now > weighed,
            _ => true,
        }
    }

    fn work(&self, work: &Work, job: &dyn JobContext) -> Result<Vec<Result<Output, Fault>>, Fault> {
        let begun = Instant::now();
        let mut notes = work.notes.clone();
        let size = (work.order.width, work.order.height);
        let mut resident = lock(&self.resident);
        if !resident.has(&work.model) {
            job.progress(0, work.order.steps, "load");
        }
        let post = resident.networks().need(&work.post).need(size, work.order.batch);
        let ready = match resident.room().check(post, 0, resident.held_bytes()) {
            Ok(()) => resident.get(&work.model, &planned(work)),
            Err(shortage) => Err(Refused::Memory(shortage)),
        };
        let loaded = match ready {
            Ok(loaded) => loaded,
            Err(refused) => {
                match &refused {
                    Refused::Memory(_) => self.offer_less(&resident),
                    // Its files were sound at the start. Every further job of it would only be handed back.
                    Refused::Model(_) => {
                        tracing::error!(model = work.model, error = %refused, "a model cannot be used any more and is not offered");
                        resident.forget(&work.model);
                    }
                }
                return Err(Fault::of_worker(refused.to_string()));
            }
        };
        lock(&self.pace).loaded(loaded.seconds);
        let mut steps = Steps::new(job);
        let pictures = draw(loaded, work, &mut notes, &mut steps)?;
        let (served_nsfw, style) = (loaded.served.nsfw, loaded.served.style.clone());
        self.learn(work, &steps);
        let pictures = post_process(&mut resident, work, pictures, job)?;
        drop(resident);
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

    fn learn(&self, work: &Work, steps: &Steps<'_>) {
        if let (Some(seconds), None) = (steps.seconds_each(), work.order.source) {
            let calls = f64::from(work.order.sampler().calls_per_step());
            let each = work.order.pixels() / 1e6 * calls * f64::from(work.order.batch);
            if !work.order.hires {
                lock(&self.pace).learn(&work.model, each / seconds);
            }
        }
    }
}

impl Engine for DreamerEngine {
    type Work = Work;
    type Output = Output;

    fn report(&self) -> EngineReport {
        let pace = lock(&self.pace).clone();
        // A job may hold the models for minutes; what they are does not change meanwhile.
        let resident = lock(&self.resident);
        self.offer_more(&resident);
        let offer = *lock(&self.offer);
        Facts::new(resident.names(), resident.in_memory(), offer, pace).report()
    }

    fn run(&self, work: Work, job: &dyn JobContext) -> Result<Vec<Result<Output, Fault>>, Fault> {
        let done = self.work(&work, job);
        diffusion::allocator::give_back();
        done
    }
}

/// Loads a model and makes a small picture with it.
fn tried(resident: &mut Resident, name: &str, pace: &mut Pace) -> Result<(), Refused> {
    const SIDE: u32 = 256;
    let request = Request {
        steps: 3,
        ..Request::new("a photo", SIDE, SIDE)
    };
    let loaded = resident.get(name, &request)?;
    pace.loaded(loaded.seconds);
    let mut steps = Steps::new(&Nobody);
    loaded
        .pipeline
        .generate(&request, &mut steps)
        .map_err(|error| Refused::Model(error.to_string()))?;
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

/// Sends the pictures through what the job names. For that the models may leave, and where memory is short an upscaler
/// works in smaller tiles.
fn post_process(
    resident: &mut Resident,
    work: &Work,
    pictures: Vec<Picture>,
    job: &dyn JobContext,
) -> Result<Vec<Picture>, Fault> {
    let steps = post::plan(&work.post).map_err(post_fault)?;
    if steps.is_empty() {
        return Ok(pictures);
    }
    let short = |shortage: Shortage| Fault::of_worker(shortage.to_string());
    let networks = Arc::clone(resident.networks());
    let (size, batch) = ((work.order.width, work.order.height), work.order.batch);
    let need = networks.need(&work.post);
    resident.make_room(&[need.need(size, batch)]).map_err(short)?;
    let upscaler = steps.iter().find(|(_, kind)| *kind == Kind::Upscale);
    let tilings = match upscaler {
        Some((name, _)) => {
            let upscaler = networks.upscaler(name).map_err(post_fault)?;
            need.tilings(&upscaler, size, batch).map_err(post_fault)?
        }
        None => Vec::new(),
    };
    let needs: Vec<_> = tilings.iter().map(|(_, need)| *need).collect();
    let at = resident.make_room(&needs).map_err(short)?;
    let in_tiles = InTiles {
        installed: &networks,
        tiling: tilings.get(at).map_or_else(Tiling::default, |(tiling, _)| *tiling),
    };
    let mut progress = |done: usize, total: usize| {
        job.progress(done as u32, total as u32, "post");
        !job.is_cancelled()
    };
    post::chain(&work.post, pictures, &in_tiles, work.face_strength, &mut progress).map_err(post_fault)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn post_fault(error: VisionError) -> Fault {
    if error.is_of_request() {
        Fault::of_job(error.to_string())
    } else {
        Fault::of_worker(error.to_string())
    }
}

/// All words of a job: what its LoRAs and inversions are called and were trained on says as much as its prompt. A LoRA put on
/// backwards keeps away what it is for, so its words stand in the negative part as well.
fn said(work: &Work) -> String {
    let words = |lora: &LoraFile| -> Vec<String> { [&lora.name].into_iter().chain(&lora.words).cloned().collect() };
    let loras = work.loras.iter().flat_map(words);
    let names = loras.chain(work.embeddings.iter().map(|(name, _)| name.clone()));
    // No name may turn what follows it into a negative prompt.
    let mut said: String = names.map(|name| name.replace('#', " ") + " , ").collect();
    said.push_str(&work.prompt);
    let backwards = work.loras.iter().filter(|lora| lora.model < 0.0 || lora.clip < 0.0);
    let backwards: Vec<String> = backwards.flat_map(words).collect();
    if !backwards.is_empty() {
        said.push_str(if work.prompt.contains("###") { " , " } else { "###" });
        said.push_str(&backwards.join(" , "));
    }
    said
}
