//! An engine with little memory: it offers less, hands back what would not fit before it begins, and lets models go.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use diffusion::memory::own_bytes;
use image_worker::checked::Gate;
use image_worker::engine::DreamerEngine;
use image_worker::facts::Facts;
use image_worker::networks::PostFiles;
use image_worker::post::PostNeed;
use image_worker::room::{Room, SMALLEST_PIXELS};
use image_worker::work::Work;
use vision::Device;
use worker_runtime::backend::{Engine, JobContext};

use crate::tiny::{CEILING, Quiet, engine, engine_in, served, work};

/// Enough for the tiny model and pictures of 256 x 256, not for its own 512 x 512 twice over.
const LITTLE_MB: u64 = 256;

fn facts(engine: &impl Engine) -> Facts {
    Facts::of(&engine.report()).expect("the engine tells its facts")
}

#[test]
fn little_memory_is_offered_as_little_and_a_larger_job_is_handed_back_before_it_begins() {
    let engine = engine(&["tiny"], Some(LITTLE_MB), Gate::UncheckedOnLoopback).expect("a small picture fits");
    let offer = facts(&engine).offer;
    assert!((SMALLEST_PIXELS..CEILING.pixels).contains(&offer.pixels), "{offer:?}");
    let fault = engine.run(work("tiny", 1024), &Quiet).expect_err("it does not fit");
    assert!(fault.ours && fault.reason.contains("of memory"), "{fault:?}");
    assert!(!fault.reason.contains("circle"), "{fault:?}");
    assert!(engine.run(work("tiny", 64), &Quiet).expect("it fits")[0].is_ok());
    assert_eq!(facts(&engine).offer, offer, "the memory is the same as before");
}

#[test]
fn a_model_leaves_for_another_where_both_do_not_fit() {
    let little = engine(&["one", "two"], Some(LITTLE_MB), Gate::UncheckedOnLoopback).expect("a small picture fits");
    // What is offered is what fits beside one model.
    let largest = (facts(&little).offer.pixels as f64).sqrt() as u32 / 64 * 64;
    for (model, side) in [("one", 64), ("two", 64), ("two", largest)] {
        assert!(little.run(work(model, side), &Quiet).expect("it fits")[0].is_ok());
    }
    assert_eq!(
        facts(&little).in_memory,
        ["two"],
        "there was no room for both beside the work"
    );
    let roomy = engine(&["one", "two"], None, Gate::UncheckedOnLoopback).expect("both fit");
    for model in ["one", "two"] {
        assert!(roomy.run(work(model, 64), &Quiet).expect("it fits")[0].is_ok());
    }
    assert_eq!(facts(&roomy).in_memory, ["one", "two"]);
    assert_eq!(facts(&roomy).offer, CEILING);
}

#[test]
fn without_memory_for_any_picture_it_does_not_start_and_says_what_is_missing() {
    let stop = engine(&["tiny"], Some(32), Gate::UncheckedOnLoopback)
        .map(drop)
        .expect_err("32 MB are too few");
    let said = format!("{stop:?}");
    assert!(
        said.contains("`tiny`: it needs") && said.contains("memory_mb"),
        "{said}"
    );
}

/// Keeps the phases that it is told.
#[derive(Default)]
struct Phases(Mutex<Vec<String>>);

impl JobContext for Phases {
    fn progress(&self, _: u32, _: u32, phase: &str) {
        self.0.lock().expect("no thread panics").push(phase.to_owned());
    }
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// An engine on a machine with as much memory as `total` says from moment to moment, whoever holds the rest.
fn engine_with(total: fn(&Device) -> Option<u64>, post: PostFiles) -> DreamerEngine {
    let room = Room {
        device: Device::Cpu,
        free_bytes: total,
        limit_bytes: None,
        check_bytes: 0,
    };
    engine_in(room, vec![served("tiny")], post, Gate::UncheckedOnLoopback).expect("a small picture fits")
}

/// What is free where the machine has `total` bytes for this process.
fn free_of(total: &AtomicU64) -> Option<u64> {
    Some(total.load(Ordering::Relaxed).saturating_sub(own_bytes().unwrap_or(0)))
}

fn post(networks: &[(&str, &str)]) -> PostFiles {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vision/tests/fixtures/models/alchemy");
    let networks = networks
        .iter()
        .map(|(name, file)| ((*name).to_owned(), folder.join(file)));
    PostFiles {
        networks: networks.collect(),
        ..PostFiles::default()
    }
}

fn with_post(side: u32, name: &str) -> Work {
    Work {
        post: vec![name.into()],
        ..work("tiny", side)
    }
}

#[test]
fn memory_that_falls_free_is_offered_again_without_a_job() {
    static TOTAL: AtomicU64 = AtomicU64::new(LITTLE_MB << 20);
    let engine = engine_with(|_| free_of(&TOTAL), PostFiles::default());
    let little = facts(&engine).offer;
    assert!(little.pixels < CEILING.pixels, "{little:?}");
    TOTAL.store(8 << 30, Ordering::Relaxed);
    assert_eq!(facts(&engine).offer, CEILING);
    // Less is offered only once a job did not fit: what is free for a moment says little.
    TOTAL.store(LITTLE_MB << 20, Ordering::Relaxed);
    assert_eq!(facts(&engine).offer, CEILING);
    let fault = engine.run(work("tiny", 1024), &Quiet).expect_err("it does not fit");
    assert!(fault.ours && fault.reason.contains("of memory"), "{fault:?}");
    assert_eq!(facts(&engine).offer, little);
    // A little more is not worth telling.
    TOTAL.store((LITTLE_MB + 1) << 20, Ordering::Relaxed);
    assert_eq!(facts(&engine).offer, little);
}

#[test]
fn a_job_whose_pictures_cannot_be_cut_out_here_is_handed_back_before_its_first_step() {
    static TOTAL: AtomicU64 = AtomicU64::new(8 << 30);
    let engine = engine_with(
        |_| free_of(&TOTAL),
        post(&[("strip_background", "u2netp_tiny.safetensors")]),
    );
    assert_eq!(facts(&engine).offer, CEILING);
    TOTAL.store(1 << 30, Ordering::Relaxed);
    let phases = Phases::default();
    let fault = engine
        .run(with_post(64, "strip_background"), &phases)
        .expect_err("it does not fit");
    assert!(fault.ours && fault.reason.contains("of memory"), "{fault:?}");
    let told = phases.0.lock().expect("no thread panics").clone();
    assert!(!told.iter().any(|phase| phase == "sample"), "{told:?}");
    assert!(engine.run(work("tiny", 64), &Quiet).expect("it fits")[0].is_ok());
    TOTAL.store(8 << 30, Ordering::Relaxed);
    assert!(engine.run(with_post(64, "strip_background"), &Quiet).expect("it fits")[0].is_ok());
}

#[test]
fn where_both_do_not_fit_the_model_leaves_for_the_upscaler_and_comes_back() {
    static TOTAL: AtomicU64 = AtomicU64::new(8 << 30);
    let post = post(&[("RealESRGAN_x4plus", "esrgan_x4.safetensors")]);
    let need = PostNeed::of_all(&post).need((64, 64), 1);
    let engine = engine_with(|_| free_of(&TOTAL), post);
    assert!(engine.run(with_post(64, "RealESRGAN_x4plus"), &Quiet).expect("it fits")[0].is_ok());
    assert_eq!(facts(&engine).in_memory, ["tiny"], "there is room for both");
    // Room for either, the model being of 27 MB, but not for both.
    TOTAL.store(
        need.weights_bytes + need.work_bytes * 4 / 3 + (10 << 20),
        Ordering::Relaxed,
    );
    for _ in 0..2 {
        let outputs = engine.run(with_post(64, "RealESRGAN_x4plus"), &Quiet).expect("it fits");
        let output = serde_json::to_value(outputs[0].as_ref().expect("a picture")).expect("plain data");
        let webp: Vec<u8> = serde_json::from_value(output["webp"].clone()).expect("bytes");
        let picture = imaging::decode(&webp, &imaging::Limits::image_job()).expect("a picture");
        assert_eq!((picture.width(), picture.height()), (256, 256));
        assert_eq!(facts(&engine).in_memory, Vec::<String>::new());
    }
    assert!(engine.run(work("tiny", 64), &Quiet).expect("it fits")[0].is_ok());
    assert_eq!(facts(&engine).in_memory, ["tiny"]);
}
