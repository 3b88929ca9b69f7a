//! An engine with the tiny trained model and a job for it.

use std::path::Path;

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

/// The tiny model under these names, two of them in memory at once, within `limit_mb` of memory.
pub fn engine(names: &[&str], limit_mb: Option<u64>, gate: Gate) -> Result<DreamerEngine, Stop> {
    let served = |name: &&str| Served {
        name: (*name).into(),
        checkpoint: Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors"),
        unet: None,
        vae: None,
        baseline: None,
        nsfw: true,
        style: "anime".into(),
    };
    let settings = EngineSettings {
        models: names.iter().map(served).collect(),
        models_in_memory: 2,
        post: PostFiles::default(),
        ceiling: CEILING,
    };
    let room = Room {
        device: Device::Cpu,
        limit_bytes: limit_mb.map(|mb| mb << 20),
        check_bytes: 0,
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
        censors: false,
        has_censored_word: false,
        notes: Vec::new(),
    }
}
