use std::path::{Path, PathBuf};

use alchemy_worker::engine::{AlchemyEngine, EngineSettings};
use alchemy_worker::work::{Options, Output, Work};
use imaging::Limits;
use serde_json::Value;
use worker_runtime::backend::{Engine, Fault, JobContext};

struct Quiet;

impl JobContext for Quiet {
    fn progress(&self, _done: u32, _total: u32, _phase: &str) {}
    fn is_cancelled(&self) -> bool {
        false
    }
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/models")
        .join(path)
}

fn vision_fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../vision/tests/fixtures")
        .join(path)
}

/// A model folder with the tiny models under the names of the real ones.
fn models() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |from: PathBuf, to: &str| {
        let to = folder.path().join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    };
    for kind in ["clip", "blip"] {
        for file in ["model.safetensors", "tokenizer.json", "config.json"] {
            put(here(&format!("tiny-shapes-{kind}/{file}")), &format!("{kind}/{file}"));
        }
    }
    put(
        vision_fixture("models/alchemy/compact_x4.safetensors"),
        "esrgan/RealESRGAN_x4plus.safetensors",
    );
    put(
        vision_fixture("models/alchemy/u2netp_tiny.safetensors"),
        "rembg/u2netp.safetensors",
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

fn engine(folder: &Path) -> AlchemyEngine {
    AlchemyEngine::new(
        EngineSettings {
            models_dir: folder.to_owned(),
            cache_dir: folder.join("cache"),
            forms: Vec::new(),
            max_tiles: 16,
            threads: 1,
            nsfw_threshold: 0.8,
        },
        vision::Device::Cpu,
    )
}

fn run(engine: &AlchemyEngine, form: &str, source: Vec<u8>) -> Result<Output, Fault> {
    let work = Work {
        form: form.into(),
        source: source.into(),
        options: Options::default(),
    };
    engine.run(work, &Quiet).unwrap().pop().unwrap()
}

fn value(output: Output) -> Value {
    match output {
        Output::Value { result, .. } => serde_json::from_str(&result).unwrap(),
        Output::Picture { .. } => panic!("a value was expected"),
    }
}

fn drawn(n: usize) -> Vec<u8> {
    std::fs::read(here(&format!("tiny-shapes-clip/input{n}.png"))).unwrap()
}

const TRUTH: [&str; 3] = [
    "a large orange triangle on a red background",
    "a small orange circle on a purple background",
    "a small white triangle on a yellow background",
];

#[test]
fn forms_are_offered_only_where_their_files_are() {
    let folder = models();
    let forms: Vec<String> = engine(folder.path()).forms().map(str::to_owned).collect();
    assert_eq!(
        forms,
        [
            "RealESRGAN_x4plus",
            "caption",
            "interrogation",
            "strip_background",
            "vectorize"
        ]
    );
    std::fs::write(folder.path().join("blip/model.safetensors"), b"not weights at all").unwrap();
    assert!(!engine(folder.path()).forms().any(|f| f == "caption"));
}

#[test]
fn a_caption_says_what_is_drawn() {
    let folder = models();
    let engine = engine(folder.path());
    for (n, truth) in TRUTH.iter().enumerate() {
        assert_eq!(
            value(run(&engine, "caption", drawn(n)).unwrap()),
            serde_json::json!({ "caption": truth })
        );
    }
}

#[test]
fn an_interrogation_ranks_what_is_drawn_first() {
    let folder = models();
    let first = value(run(&engine(folder.path()), "interrogation", drawn(0)).unwrap());
    let list = |name: &str| first["interrogation"][name].as_array().unwrap().clone();
    assert_eq!(list("flavors")[0]["text"], "a orange triangle on a red background");
    assert_eq!(list("tags").len(), 5);
    let shares: Vec<f64> = list("tags").iter().map(|t| t["confidence"].as_f64().unwrap()).collect();
    assert!(
        shares.is_sorted_by(|a, b| a >= b) && shares.iter().sum::<f64>() <= 100.01,
        "{shares:?}"
    );
    // The second engine reads the words' places from the cache and says the same.
    assert!(std::fs::read_dir(folder.path().join("cache")).unwrap().count() >= 2);
    assert_eq!(
        value(run(&engine(folder.path()), "interrogation", drawn(0)).unwrap()),
        first
    );
}

#[test]
fn post_processors_give_webp_of_the_right_size() {
    let folder = models();
    let engine = engine(folder.path());
    let picture = |form: &str| match run(&engine, form, drawn(1)).unwrap() {
        Output::Picture { webp, .. } => imaging::decode(&webp, &Limits::image_job()).unwrap(),
        Output::Value { .. } => panic!("a picture was expected"),
    };
    let large = picture("RealESRGAN_x4plus");
    assert_eq!((large.width(), large.height(), large.has_alpha()), (256, 256, false));
    let cut = picture("strip_background");
    assert_eq!((cut.width(), cut.height(), cut.has_alpha()), (64, 64, true));
}

#[test]
fn a_broken_source_is_the_jobs_fault_and_not_the_workers() {
    let folder = models();
    let engine = engine(folder.path());
    for source in [Vec::new(), b"<html>".to_vec(), drawn(0)[..200].to_vec()] {
        for form in ["caption", "RealESRGAN_x4plus", "strip_background"] {
            let fault = run(&engine, form, source.clone()).unwrap_err();
            assert!(!fault.ours, "{fault}");
        }
    }
    assert!(run(&engine, "GFPGAN", drawn(0)).is_err());
}
