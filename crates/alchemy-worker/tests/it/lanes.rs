//! Several forms at once: nobody waits for a slower one of another lane, nobody suffers from a failing one, and nothing is
//! begun that cannot end in time.

use std::collections::BTreeSet;
use std::time::Duration;

use alchemy_worker::engine::EngineSettings;
use alchemy_worker::forms::{Lane, Wanted, installed};
use bytes::Bytes;
use serde_json::{Value, json};

use crate::models;
use crate::world::{SOURCES, World};

/// What the program gives its two engines.
fn split(folder: &std::path::Path) -> Vec<EngineSettings> {
    let (found, _) = installed(&Wanted::default(), folder);
    let of = |lane: Lane| EngineSettings {
        forms: found
            .iter()
            .filter(|(_, task)| task.lane() == lane)
            .map(|(form, _)| form.as_str().to_owned())
            .collect(),
        pace_file: folder.join(format!("cache/pace-{lane:?}.json")),
        ..models::settings(folder)
    };
    vec![of(Lane::Device), of(Lane::Light)]
}

fn drawing() -> Bytes {
    Bytes::from(std::fs::read(models::tiny("tiny-shapes-clip/input0.png")).unwrap())
}

/// Remembers a made-up time for a form, as if it had been measured.
fn pretend(folder: &std::path::Path, lane: Lane, form: &str, seconds: f64) {
    // The file is there after one engine was measured.
    let file = folder.join(format!("cache/pace-{lane:?}.json"));
    let mut kept: serde_json::Map<String, Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    kept[form] = json!({ "of": kept[form]["of"], "base_seconds": 0.0, "tile_seconds": seconds });
    std::fs::write(&file, serde_json::to_vec(&kept).unwrap()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn siblings_of_one_request_live_and_fail_alone() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    let mut world = World::start(state.path(), split(models.path()), 16);
    // An upscaler that is exchanged under the running worker fails; everybody else goes on.
    let first = world.file("caption", "good", Value::Null);
    world.between.sources.lock().unwrap().insert("good".into(), drawing());
    let _ = world.ended(&first).await;
    let path = models.path().join("esrgan/NMKD_Siax.safetensors");
    std::fs::write(&path, b"no weights any more").unwrap();
    let forms = [
        "NMKD_Siax",
        "vectorize",
        "caption",
        "strip_background",
        "GFPGAN",
        "interrogation",
    ];
    let asked: Vec<Value> = forms.iter().map(|form| json!({ "name": form })).collect();
    let body = json!({ "forms": asked, "source_image": format!("{SOURCES}good") });
    let request = world.horde.file("interrogate/async", &body).unwrap();
    let limit = tokio::time::Instant::now() + Duration::from_secs(3600);
    let states = loop {
        let told = world
            .horde
            .call("GET", &format!("interrogate/status/{request}"), "", &json!({}));
        let told = told.unwrap();
        let forms = told["forms"].as_array().unwrap().iter();
        let states: Vec<(String, String)> = forms
            .map(|form| [&form["form"], &form["state"]].map(|text| text.as_str().unwrap().to_owned()))
            .map(|[form, state]| (form, state))
            .collect();
        if states
            .iter()
            .all(|(form, state)| form == "NMKD_Siax" || state == "done")
        {
            break states;
        }
        assert!(tokio::time::Instant::now() < limit, "{told}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    let failed = states.iter().find(|(form, _)| form == "NMKD_Siax").unwrap();
    assert_ne!(failed.1, "done");
    // It is not asked for any more, and its siblings are.
    tokio::time::sleep(Duration::from_secs(600)).await;
    let pop = world.between.pops.lock().unwrap().last().cloned().unwrap();
    let forms = pop["forms"].as_array().unwrap();
    assert!(
        !forms.contains(&json!("NMKD_Siax")) && forms.contains(&json!("4x_AnimeSharp")),
        "{pop}"
    );
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn what_would_outlive_its_lease_is_handed_back_before_it_is_begun() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    for settings in split(models.path()) {
        drop(models::engine(settings));
    }
    // 200 s a tile: a whole tile is too long, a quarter of one is not.
    pretend(models.path(), Lane::Device, "RealESRGAN_x4plus", 200.0);
    let mut world = World::start(state.path(), split(models.path()), 16);
    let picture = |side| imaging::encode_png(&imaging::Picture::filled(side, side, [9, 80, 7])).unwrap();
    for (name, side) in [("tile", 512), ("quarter", 64)] {
        world
            .between
            .sources
            .lock()
            .unwrap()
            .insert(name.into(), Bytes::from(picture(side)));
    }
    let request = world.file("RealESRGAN_x4plus", "tile", Value::Null);
    let ended = world.ended(&request).await;
    assert_eq!(ended.state, "faulted");
    let reason = ended.reason.unwrap_or_default();
    assert!(reason.contains("it would take 200 s and has 180 s"), "{reason}");
    assert!(ended.cpu < Duration::from_millis(250), "{:?}", ended.cpu);
    let request = world.file("RealESRGAN_x4plus", "quarter", Value::Null);
    assert_eq!(world.ended(&request).await.state, "ok");
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_light_form_is_done_while_the_device_is_busy_with_a_long_one() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    for settings in split(models.path()) {
        drop(models::engine(settings));
    }
    let mut world = World::start(state.path(), split(models.path()), 16);
    let large = imaging::encode_png(&imaging::Picture::filled(512, 512, [9, 80, 7])).unwrap();
    let sources = [("large", Bytes::from(large)), ("good", drawing())];
    for (name, bytes) in sources {
        world.between.sources.lock().unwrap().insert(name.into(), bytes);
    }
    // Both engines are there, and both forms are asked for in one go, the long one first.
    let both = [json!("RealESRGAN_x4plus"), json!("vectorize")];
    world
        .popped_for(|forms| both.iter().all(|form| forms.contains(form)))
        .await;
    let long = world.file("RealESRGAN_x4plus", "large", Value::Null);
    let light = world.file("vectorize", "good", Value::Null);
    let (light, long) = (world.ended(&light).await, world.ended(&long).await);
    assert_eq!((light.state.as_str(), long.state.as_str()), ("ok", "ok"));
    assert!(light.at < long.at, "{light:?} {long:?}");
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn pops_take_turns_so_that_a_slow_form_keeps_no_large_source_from_the_quick() {
    let (models, state) = (models::all(), tempfile::tempdir().unwrap());
    for settings in split(models.path()) {
        drop(models::engine(settings));
    }
    pretend(models.path(), Lane::Device, "4xNomos2_hq_dat2", 30.0);
    let mut world = World::start(state.path(), split(models.path()), 16);
    world.between.sources.lock().unwrap().insert("good".into(), drawing());
    let request = world.file("vectorize", "good", Value::Null);
    assert_eq!(world.ended(&request).await.state, "ok");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let pops = world.between.pops.lock().unwrap().clone();
    let of_device = pops
        .iter()
        .filter(|pop| pop["forms"].as_array().unwrap().contains(&json!("caption")));
    // 144 s of the lease are for work, at 30 s a tile.
    let told: BTreeSet<(bool, u64)> = of_device
        .map(|pop| {
            let has_slow = pop["forms"].as_array().unwrap().contains(&json!("4xNomos2_hq_dat2"));
            (has_slow, pop["max_tiles"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(told, BTreeSet::from([(false, 16), (true, 4)]));
    world.finish().await;
}

#[tokio::test(start_paused = true)]
async fn a_form_the_horde_does_not_know_is_left_out_from_the_second_pop_on() {
    let (models, state) = (models::some(), tempfile::tempdir().unwrap());
    let mut world = World::start(state.path(), vec![models::settings(models.path())], 16);
    world.between.sources.lock().unwrap().insert("good".into(), drawing());
    let request = world.file("caption", "good", Value::Null);
    assert_eq!(world.ended(&request).await.state, "ok");
    let pops = world.between.pops.lock().unwrap().clone();
    let has = |pop: &Value| pop["forms"].as_array().unwrap().contains(&json!("annotation"));
    assert!(
        has(&pops[0]) && pops[0]["annotation_types"] == json!(["canny", "scribble"]),
        "{}",
        pops[0]
    );
    assert!(pops.len() >= 2 && !pops[1..].iter().any(has));
    assert!(pops[1].get("annotation_types").is_none() && pops[1]["forms"].as_array().unwrap().len() > 3);
    world.finish().await;
}
