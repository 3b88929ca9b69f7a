//! A whole engine with a tiny model and a checker that says what a test wants: nothing comes out past it.

use std::path::Path;
use std::sync::{Arc, Mutex};

use image_worker::checked::{About, Checker, Gate};
use image_worker::engine::{DreamerEngine, EngineSettings};
use image_worker::models::Served;
use image_worker::networks::PostFiles;
use image_worker::order::Order;
use image_worker::work::{LoraFile, Output, Work};
use imaging::Picture;
use vision::Device;
use vision::safety::Rating;
use worker_runtime::backend::{Engine, Fault, JobContext};

struct Quiet;

impl JobContext for Quiet {
    fn progress(&self, _done: u32, _total: u32, _phase: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Answers one picture after the other, and keeps what it was told.
struct Scripted {
    answers: Mutex<Vec<Result<Rating, String>>>,
    told: Arc<Mutex<Vec<String>>>,
}

impl Checker for Scripted {
    fn rate(&self, picture: &Picture, about: About<'_>) -> Result<Rating, String> {
        let told = format!(
            "{}x{} {} {} {}",
            picture.width(),
            picture.height(),
            about.style,
            about.is_nsfw_model,
            about.prompt
        );
        self.told.lock().expect("no thread panics").push(told);
        self.answers.lock().expect("no thread panics").remove(0)
    }
}

/// What a job of as many pictures as answers gives, and what the checker was told.
fn made(answers: Vec<Result<Rating, String>>) -> (Vec<Result<Output, Fault>>, Vec<String>) {
    let batch = answers.len() as u32;
    let told = Arc::default();
    let checker = Scripted {
        answers: Mutex::new(answers),
        told: Arc::clone(&told),
    };
    let served = Served {
        name: "tiny".into(),
        checkpoint: Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors"),
        unet: None,
        vae: None,
        baseline: None,
        nsfw: true,
        style: "anime".into(),
    };
    let settings = EngineSettings {
        models: vec![served],
        models_in_memory: 1,
        post: PostFiles::default(),
    };
    let engine = DreamerEngine::new(settings, Device::Cpu, Gate::Checker(Box::new(checker)))
        .expect("the tiny model is part of the repository");
    let work = Work {
        model: "tiny".into(),
        prompt: "a red circle ### blue".into(),
        order: Order {
            width: 64,
            height: 64,
            steps: 1,
            cfg_scale: 1.0,
            seed: 1,
            batch,
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
        // The file is not there: the picture is made without it, and its name is read all the same.
        loras: vec![LoraFile {
            name: "plum ### cherry".into(),
            path: "/nowhere/plum.safetensors".into(),
            model: 1.0,
            clip: 1.0,
        }],
        embeddings: Vec::new(),
        post: Vec::new(),
        face_strength: 0.5,
        censors: true,
        has_censored_word: false,
        notes: Vec::new(),
    };
    let outputs = engine.run(work, &Quiet).expect("the job itself has no fault");
    let told = told.lock().expect("no thread panics").clone();
    (outputs, told)
}

#[test]
fn a_checker_that_fails_costs_its_picture_and_no_other() {
    let (outputs, told) = made(vec![Ok(Rating::Ok), Err("the device is gone".into()), Ok(Rating::Nsfw)]);
    assert_eq!((outputs.len(), told.len()), (3, 3));
    assert!(outputs[0].is_ok() && outputs[2].is_ok());
    let fault = outputs[1].as_ref().unwrap_err();
    assert!(fault.ours && fault.reason.contains("the device is gone"), "{fault:?}");
    assert!(!fault.reason.contains("circle"), "{fault:?}");
}

#[test]
fn the_checker_is_told_of_the_model_and_of_every_word() {
    let (_, told) = made(vec![Ok(Rating::Ok)]);
    assert_eq!(told, ["64x64 anime true plum     cherry , a red circle ### blue"]);
}
