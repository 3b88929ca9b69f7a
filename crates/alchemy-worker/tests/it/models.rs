//! Model folders with tiny networks under the names of the real ones.

use std::path::{Path, PathBuf};

use alchemy_worker::engine::{AlchemyEngine, EngineSettings};
use alchemy_worker::forms::KNOWN;
use safetensors::tensor::{Dtype, TensorView};
use worker_runtime::backend::JobContext;

/// A job that nobody watches.
pub struct Quiet;

impl JobContext for Quiet {
    fn progress(&self, _done: u32, _total: u32, _phase: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Below the models of the end-to-end tests.
pub fn tiny(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/models")
        .join(path)
}

/// Below the fixtures of the networks' room.
pub fn vision_fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../vision/tests/fixtures/models")
        .join(path)
}

/// Copies a file into a folder that is made.
pub fn put(from: &Path, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    std::fs::copy(from, to).unwrap();
}

/// Captioner, interrogator, one upscaler and a cut-out.
pub fn some() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["clip", "blip"] {
        for file in ["model.safetensors", "tokenizer.json", "config.json"] {
            put(
                &tiny(&format!("tiny-shapes-{kind}/{file}")),
                &folder.path().join(kind).join(file),
            );
        }
    }
    put(
        &vision_fixture("alchemy/compact_x4.safetensors"),
        &folder.path().join("esrgan/RealESRGAN_x4plus.safetensors"),
    );
    put(
        &vision_fixture("alchemy/u2netp_tiny.safetensors"),
        &folder.path().join("rembg/u2netp.safetensors"),
    );
    let words = folder.path().join("clip/words");
    std::fs::create_dir_all(&words).unwrap();
    std::fs::write(
        words.join("tags.txt"),
        "red\ngreen\nblue\nyellow\nblack\nwhite\norange\npurple\n",
    )
    .unwrap();
    let mut sentences = String::new();
    for shape in ["circle", "square", "triangle", "cross"] {
        for colour in ["orange", "white", "blue"] {
            sentences +=
                &format!("a {colour} {shape} on a red background\na {colour} {shape} on a purple background\n");
        }
    }
    std::fs::write(words.join("flavors.txt"), sentences).unwrap();
    folder
}

/// Every form has a network, most of them the same one.
pub fn all() -> tempfile::TempDir {
    let folder = some();
    put_head(folder.path(), 64);
    for name in [
        "RealESRGAN_x2plus",
        "RealESRGAN_x4plus_anime_6B",
        "NMKD_Siax",
        "4x_AnimeSharp",
        "4xNomos8kSC",
        "4xLSDIRplus",
        "4xNomosWebPhoto_RealPLKSR",
        "4xNomos2_realplksr_dysample",
        "4xNomos2_hq_dat2",
        "2xModernSpanimationV1",
    ] {
        put(
            &vision_fixture("alchemy/compact_x4.safetensors"),
            &folder.path().join(format!("esrgan/{name}.safetensors")),
        );
    }
    for name in [
        "gfpgan/GFPGANv1.4",
        "gfpgan/GFPGANv1.3",
        "gfpgan/RestoreFormer",
        "codeformer/codeformer",
    ] {
        put(
            &vision_fixture("alchemy/gfpgan_64.safetensors"),
            &folder.path().join(format!("{name}.safetensors")),
        );
    }
    put(
        &vision_fixture("retinaface_mobilenet0.25.safetensors"),
        &folder.path().join("gfpgan/retinaface_mobilenet0.25.safetensors"),
    );
    put(
        &vision_fixture("alchemy/safety_checker_tiny.safetensors"),
        &folder.path().join("nsfw/safety_checker.safetensors"),
    );
    folder
}

/// Writes a head for the tiny CLIP's places of 64 numbers, of two layers with these many numbers between them. Its layers
/// as (weights row by row, biases).
pub fn put_head(folder: &Path, dimension: usize) -> [(Vec<f32>, Vec<f32>); 2] {
    const BETWEEN: usize = 16;
    let mut grain = 7u32;
    let mut drawn = |n: usize| -> Vec<f32> {
        let mut next = || {
            grain = grain.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (grain >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next()).collect()
    };
    let first = (drawn(BETWEEN * dimension), drawn(BETWEEN));
    // Around the middle of what a score may be.
    let second = (drawn(BETWEEN), vec![5.0]);
    let tensors = [
        ("layers.0.weight", vec![BETWEEN, dimension], &first.0),
        ("layers.0.bias", vec![BETWEEN], &first.1),
        ("layers.3.weight", vec![1, BETWEEN], &second.0),
        ("layers.3.bias", vec![1], &second.1),
    ];
    let bytes = tensors
        .each_ref()
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        (*name, view)
    });
    std::fs::create_dir_all(folder.join("clip")).unwrap();
    safetensors::serialize_to_file(views, None, &folder.join("clip/aesthetic.safetensors")).unwrap();
    [first, second]
}

/// Settings for every form of a folder, caches inside it.
pub fn settings(folder: &Path) -> EngineSettings {
    EngineSettings {
        models_dir: folder.to_owned(),
        cache_dir: folder.join("cache"),
        pace_file: folder.join("cache/pace.json"),
        forms: KNOWN.iter().map(|form| form.as_str().to_owned()).collect(),
        is_named: true,
        stamps: Default::default(),
        max_tiles: 16,
        threads: 1,
        nsfw_threshold: 0.8,
    }
}

/// An engine that has measured all its forms.
pub fn engine(settings: EngineSettings) -> AlchemyEngine {
    let engine = AlchemyEngine::new(settings, vision::Device::Cpu, "cpu");
    engine.measured();
    engine
}
