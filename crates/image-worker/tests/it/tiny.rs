//! An engine with the tiny trained model and a job for it.

use image_worker::checked::Gate;
use image_worker::engine::{DreamerEngine, EngineSettings};
use image_worker::models::Served;
use image_worker::networks::PostFiles;
use image_worker::order::Order;
use image_worker::room::{Offer, Room};
use image_worker::work::Work;
use vision::Device;
use worker_app::Stop;
use worker_runtime::backend::JobContext;

pub struct Quiet;

impl JobContext for Quiet {
    fn progress(&self, _done: u32, _total: u32, _phase: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// What the owner offers.
pub const CEILING: Offer = Offer {
    pixels: 1024 * 1024,
    batch: 4,
};

/// The file of the tiny model.
pub const CHECKPOINT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../tests/models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors"
);

/// The tiny model under this name.
pub fn served(name: &str) -> Served {
    Served {
        name: name.into(),
        checkpoint: CHECKPOINT.into(),
        unet: None,
        vae: None,
        baseline: None,
        nsfw: true,
        style: "anime".into(),
    }
}

/// The tiny model under these names, within `limit_mb` of memory.
pub fn engine(names: &[&str], limit_mb: Option<u64>, gate: Gate) -> Result<DreamerEngine, Stop> {
    engine_of(names.iter().map(|name| served(name)).collect(), limit_mb, gate)
}

/// These models, two of them in memory at once, within `limit_mb` of memory.
pub fn engine_of(models: Vec<Served>, limit_mb: Option<u64>, gate: Gate) -> Result<DreamerEngine, Stop> {
    let room = Room {
        device: Device::Cpu,
        free_bytes: diffusion::memory::free_bytes,
        limit_bytes: limit_mb.map(|mb| mb << 20),
        check_bytes: 0,
    };
    engine_in(room, models, PostFiles::default(), gate)
}

/// These models, two of them in memory at once, with these post-processors.
pub fn engine_in(room: Room, models: Vec<Served>, post: PostFiles, gate: Gate) -> Result<DreamerEngine, Stop> {
    let settings = EngineSettings {
        models,
        models_in_memory: 2,
        post,
        ceiling: CEILING,
    };
    DreamerEngine::new(settings, room, gate)
}

/// One step of a square picture.
pub fn work(model: &str, side: u32) -> Work {
    Work {
        model: model.into(),
        prompt: "a red circle ### blue".into(),
        order: Order {
            width: side,
            height: side,
            steps: 1,
            cfg_scale: 1.0,
            seed: 1,
            batch: 1,
            sampler: "k_euler".into(),
            schedule: "normal".into(),
            clip_skip: 1,
            tiling: false,
            hires: false,
            hires_denoise: 0.65,
            denoise: 1.0,
            source: None,
        },
        source: None,
        mask: None,
        loras: Vec::new(),
        embeddings: Vec::new(),
        post: Vec::new(),
        face_strength: 0.5,
        censors: None,
        has_censored_word: false,
        notes: Vec::new(),
    }
}
