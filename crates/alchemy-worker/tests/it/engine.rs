use std::collections::BTreeMap;
use std::path::Path;

use alchemy_worker::engine::AlchemyEngine;
use alchemy_worker::pace::Pace;
use alchemy_worker::work::{Options, Output, Work};
use imaging::Limits;
use serde_json::{Value, json};
use worker_runtime::backend::{Engine, Fault};

use crate::models::{self, Quiet, tiny};

fn engine(folder: &Path) -> AlchemyEngine {
    models::engine(models::settings(folder))
}

fn run(engine: &AlchemyEngine, form: &str, source: Vec<u8>) -> Result<Output, Fault> {
    let work = Work {
        form: form.into(),
        tiles: 1.0,
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
    std::fs::read(tiny(&format!("tiny-shapes-clip/input{n}.png"))).unwrap()
}

fn told(engine: &AlchemyEngine) -> Vec<String> {
    let facts = engine.report().facts;
    let forms = facts["forms"].as_object().unwrap();
    forms.keys().cloned().collect()
}

const TRUTH: [&str; 3] = [
    "a large orange triangle on a red background",
    "a small orange circle on a purple background",
    "a small white triangle on a yellow background",
];

#[test]
fn forms_are_offered_only_where_their_files_are() {
    let folder = models::some();
    assert_eq!(
        told(&engine(folder.path())),
        [
            "RealESRGAN_x4plus",
            "annotation",
            "caption",
            "describe",
            "interrogation",
            "palette",
            "strip_background",
            "vectorize"
        ]
    );
    std::fs::write(folder.path().join("blip/model.safetensors"), b"not weights at all").unwrap();
    assert!(!told(&engine(folder.path())).contains(&"caption".to_owned()));
}

#[test]
fn a_network_that_cannot_be_read_takes_its_form_away_and_no_other() {
    let folder = models::some();
    // A sound file, but of another kind of network.
    models::put(
        &tiny("tiny-shapes-blip/model.safetensors"),
        &folder.path().join("esrgan/RealESRGAN_x4plus.safetensors"),
    );
    let engine = engine(folder.path());
    let forms = told(&engine);
    assert!(
        !forms.contains(&"RealESRGAN_x4plus".to_owned()) && forms.contains(&"caption".to_owned()),
        "{forms:?}"
    );
}

#[test]
fn a_file_exchanged_after_it_was_verified_is_not_read() {
    let folder = models::some();
    let path = folder.path().join("rembg/u2netp.safetensors");
    let mut settings = models::settings(folder.path());
    let sum = model_store::digest::Sha256Sum::of_file(&path).unwrap();
    let stamp = model_store::stamp::Stamp::new(&path, sum).unwrap();
    settings.stamps.insert(path.clone(), stamp);
    let sound = models::engine(settings.clone());
    assert!(run(&sound, "strip_background", drawn(0)).is_ok());
    // The same bytes, put there anew: only a new start may look at them.
    std::fs::rename(&path, folder.path().join("other")).unwrap();
    std::fs::copy(folder.path().join("other"), &path).unwrap();
    let fresh = models::engine(settings);
    assert!(run(&fresh, "strip_background", drawn(0)).is_err());
    assert!(!told(&fresh).contains(&"strip_background".to_owned()));
    assert!(run(&fresh, "caption", drawn(0)).is_ok());
}

#[test]
fn a_caption_says_what_is_drawn() {
    let folder = models::some();
    let engine = engine(folder.path());
    for (n, truth) in TRUTH.iter().enumerate() {
        assert_eq!(
            value(run(&engine, "caption", drawn(n)).unwrap()),
            json!({ "caption": truth })
        );
    }
}

#[test]
fn an_interrogation_ranks_what_is_drawn_first_in_the_wires_seven_lists() {
    let folder = models::some();
    let first = value(run(&engine(folder.path()), "interrogation", drawn(0)).unwrap());
    let lists = first["interrogation"].as_object().unwrap();
    let names: Vec<&str> = lists.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "tags",
            "sites",
            "artists",
            "flavors",
            "mediums",
            "movements",
            "techniques"
        ]
    );
    let list = |name: &str| lists[name].as_array().unwrap().clone();
    assert_eq!(list("flavors")[0]["text"], "a orange triangle on a red background");
    assert_eq!((list("tags").len(), list("artists").len()), (5, 0));
    let shares: Vec<f64> = list("tags").iter().map(|t| t["confidence"].as_f64().unwrap()).collect();
    assert!(
        shares.is_sorted_by(|a, b| a >= b) && shares.iter().sum::<f64>() <= 100.01,
        "{shares:?}"
    );
    // The second engine reads the words' places from the cache and says the same.
    let places = std::fs::read_dir(folder.path().join("cache")).unwrap();
    let places = places.filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .path()
            .extension()
            .is_some_and(|e| e == "safetensors")
    });
    assert_eq!(places.count(), 2);
    assert_eq!(
        value(run(&engine(folder.path()), "interrogation", drawn(0)).unwrap()),
        first
    );
}

#[test]
fn a_score_is_what_the_head_makes_of_clips_place_and_a_head_of_another_clip_is_not_offered() {
    let folder = models::some();
    let [(inner, inner_bias), (outer, outer_bias)] = models::put_head(folder.path(), 64);
    let served = engine(folder.path());
    let clip = vision::Weights::open(&tiny("tiny-shapes-clip/model.safetensors"), &vision::Device::Cpu).unwrap();
    let config = std::fs::read_to_string(tiny("tiny-shapes-clip/config.json")).unwrap();
    let config = vision::clip::ClipConfig::from_json(&config).unwrap();
    let clip = vision::clip::ClipVision::load(&clip, &config).unwrap();
    let dot = |row: &[f32], x: &[f32]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f32>();
    let scores: Vec<f64> = (0..3)
        .map(|n| {
            let picture = imaging::decode(&drawn(n), &Limits::image_job()).unwrap();
            let place = clip.embed(&picture).unwrap();
            let between: Vec<f32> = inner
                .chunks(64)
                .zip(&inner_bias)
                .map(|(row, bias)| dot(row, &place) + bias)
                .collect();
            let expected = f64::from(dot(&outer, &between) + outer_bias[0]);
            let told = value(run(&served, "aesthetic", drawn(n)).unwrap());
            let score = told["aesthetic"].as_f64().unwrap();
            assert!((score - expected).abs() < 2e-3, "{told} and not {expected}");
            score
        })
        .collect();
    assert!(scores[0] != scores[1] && scores[1] != scores[2], "{scores:?}");

    models::put_head(folder.path(), 768);
    let forms = told(&engine(folder.path()));
    assert!(
        !forms.contains(&"aesthetic".to_owned()) && forms.contains(&"interrogation".to_owned()),
        "{forms:?}"
    );
}

#[test]
fn places_of_words_are_computed_once_and_go_on_where_they_were_left() {
    let folder = models::some();
    let words = folder.path().join("clip/words");
    let many: String = (0..100).map(|n| format!("a red circle number {n}\n")).collect();
    std::fs::write(words.join("artists.txt"), many).unwrap();
    engine(folder.path());
    let finished = |list: &str| {
        let entries = std::fs::read_dir(folder.path().join("cache")).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths
            .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(list))
            .unwrap()
    };
    let whole = std::fs::read(finished("artists")).unwrap();
    // As if the machine had gone down after 40 of 100 words and a bit: rows of f32 behind the header.
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let row = (whole.len() - header) / 100;
    let path = finished("artists");
    std::fs::write(path.with_extension("partial"), &whole[header..header + 40 * row + 7]).unwrap();
    std::fs::remove_file(&path).unwrap();
    // Rows that were kept are not computed again: a wrong one among them shows.
    let mut kept = std::fs::read(path.with_extension("partial")).unwrap();
    kept[39 * row..39 * row + 4].copy_from_slice(&9f32.to_le_bytes());
    std::fs::write(path.with_extension("partial"), &kept).unwrap();
    engine(folder.path());
    let again = std::fs::read(finished("artists")).unwrap();
    assert!(!path.with_extension("partial").exists());
    assert_eq!(again.len(), whole.len());
    let at = header + 39 * row;
    assert_eq!(again[at..at + 4], 9f32.to_le_bytes());
    let apart = again.iter().zip(&whole).enumerate();
    assert!(
        apart
            .filter(|(_, (a, b))| a != b)
            .all(|(place, _)| (at..at + 4).contains(&place))
    );
}

#[test]
fn words_and_weights_that_changed_have_their_places_computed_anew_and_what_is_stale_goes() {
    let folder = models::some();
    let cached = || -> Vec<String> {
        let entries = std::fs::read_dir(folder.path().join("cache")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(".safetensors")).collect();
        names.sort();
        names
    };
    engine(folder.path());
    let first = cached();
    assert_eq!(first.len(), 2);
    // One list more words: its places alone are others.
    let tags = folder.path().join("clip/words/tags.txt");
    let words = std::fs::read_to_string(&tags).unwrap() + "a triangle\n";
    std::fs::write(&tags, words).unwrap();
    let told = value(run(&engine(folder.path()), "interrogation", drawn(0)).unwrap());
    assert_eq!(told["interrogation"]["tags"][0]["text"], "a triangle");
    let second = cached();
    assert!(
        second.len() == 2 && second[0] == first[0] && second[1] != first[1],
        "{second:?}"
    );
    // The same network with another sum: all places are others.
    let weights = folder.path().join("clip/model.safetensors");
    let mut stamped = models::settings(folder.path());
    let sum = model_store::digest::Sha256Sum::of_file(&weights).unwrap();
    stamped
        .stamps
        .insert(weights.clone(), model_store::stamp::Stamp::new(&weights, sum).unwrap());
    models::engine(stamped);
    let third = cached();
    assert!(
        third.len() == 2 && third.iter().all(|name| !second.contains(name)),
        "{third:?}"
    );
}

#[test]
fn post_processors_give_webp_of_the_right_size() {
    let folder = models::some();
    let engine = engine(folder.path());
    let picture = |form: &str| match run(&engine, form, drawn(1)).unwrap() {
        Output::Picture { webp, .. } => imaging::decode(&webp, &Limits::image_job()).unwrap(),
        Output::Value { .. } => panic!("a picture was expected"),
    };
    let large = picture("RealESRGAN_x4plus");
    assert_eq!((large.width(), large.height(), large.has_alpha()), (256, 256, false));
    let cut = picture("strip_background");
    assert_eq!((cut.width(), cut.height(), cut.has_alpha()), (64, 64, true));
    let lines = picture("annotation");
    assert_eq!((lines.width(), lines.height()), (64, 64));
}

#[test]
fn a_broken_source_is_the_jobs_fault_and_not_the_workers() {
    let folder = models::some();
    let engine = engine(folder.path());
    for source in [Vec::new(), b"<html>".to_vec(), drawn(0)[..200].to_vec()] {
        for form in ["caption", "RealESRGAN_x4plus", "strip_background"] {
            let fault = run(&engine, form, source.clone()).unwrap_err();
            assert!(!fault.ours, "{fault}");
        }
    }
    assert!(run(&engine, "GFPGAN", drawn(0)).is_err());
}

#[test]
fn times_are_measured_once_per_file_and_corrected_by_jobs() {
    let folder = models::some();
    let file = folder.path().join("cache/pace.json");
    let first = engine(folder.path()).forms();
    assert!(first.values().all(|pace| pace.seconds(1.0) > 0.0), "{first:?}");
    assert!(first["RealESRGAN_x4plus"].tile_seconds > 0.0 && first["caption"].tile_seconds == 0.0);
    // What is remembered is believed, not measured again.
    let mut kept: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    kept.get_mut("RealESRGAN_x4plus").unwrap()["tile_seconds"] = json!(1000.0);
    std::fs::write(&file, serde_json::to_vec(&kept).unwrap()).unwrap();
    let again = engine(folder.path());
    assert_eq!(again.forms()["RealESRGAN_x4plus"].tile_seconds, 1000.0);
    // 64×64 are a 64th of a tile: the job was quicker than 15 s.
    run(&again, "RealESRGAN_x4plus", drawn(0)).unwrap();
    let now = again.forms()["RealESRGAN_x4plus"];
    assert!(now.tile_seconds < 1000.0, "{now:?}");
    assert_eq!(engine(folder.path()).forms()["RealESRGAN_x4plus"], now);
    // Another file is another network.
    models::put(
        &models::vision_fixture("alchemy/esrgan_x4.safetensors"),
        &folder.path().join("esrgan/RealESRGAN_x4plus.safetensors"),
    );
    assert_ne!(engine(folder.path()).forms()["RealESRGAN_x4plus"], now);
}

#[test]
fn a_form_too_slow_for_a_tile_is_offered_only_where_its_owner_named_it() {
    let folder = models::some();
    engine(folder.path());
    let file = folder.path().join("cache/pace.json");
    let mut kept: BTreeMap<String, Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    kept.get_mut("RealESRGAN_x4plus").unwrap()["tile_seconds"] = json!(200.0);
    std::fs::write(&file, serde_json::to_vec(&kept).unwrap()).unwrap();
    let named = models::settings(folder.path());
    let slow = |named: &AlchemyEngine| named.forms().get("RealESRGAN_x4plus").map(Pace::most_tiles);
    assert_eq!(slow(&models::engine(named.clone())), Some(0));
    let unnamed = alchemy_worker::engine::EngineSettings {
        is_named: false,
        ..named
    };
    assert_eq!(slow(&models::engine(unnamed)), None);
}
