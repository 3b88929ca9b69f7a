//! Every way of making a picture leads through the content check, and what it finds is said as the Horde wants it said: in
//! the picture, in its metadata and in the state of the submission.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::demo::civitai::{self, TELLING};
use e2e::demo::dreamer::settings;
use e2e::demo::shapes::disc;
use e2e::demo::stage::start_worker;
use imaging::{Limits, Mask, Picture, encode_png, encode_png_mask};
use local_horde::Horde;
use local_horde::ledger::Fate;
use local_horde::recording::Recorder;
use serde_json::{Value, json};
use test_support::merge;

use crate::bad_jobs::script;
use crate::safety::{AMBER, RED, install, is_near};
use crate::{post, scripted};

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(300);
/// Stands for nudity.
const NUDE: &str = "a large red circle on a white background";

/// What a submission says: its state, `type/value` of what it says of the picture's content, and the picture's corner where
/// that is one of a notice.
#[derive(Debug, PartialEq)]
struct Said(String, Vec<String>, Option<&'static str>);

fn said(state: &str, note: Option<&str>, notice: Option<&'static str>) -> Said {
    Said(state.into(), note.into_iter().map(str::to_owned).collect(), notice)
}

fn clean() -> Said {
    said("ok", None, None)
}

fn noted() -> Said {
    said("ok", Some("information/nsfw"), None)
}

fn censored() -> Said {
    said("censored", Some("censorship/nsfw"), Some("amber"))
}

fn removed() -> Said {
    said("csam", Some("censorship/csam"), Some("red"))
}

/// The source of a picture to be painted over, as the API takes it.
fn base64(picture: &Picture) -> String {
    STANDARD.encode(encode_png(picture).expect("a picture"))
}

/// States of the submissions by the ids of their jobs.
fn states(record: &Path) -> BTreeMap<String, String> {
    let lines = std::fs::read_to_string(record).expect("the record");
    let calls = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a line of the record"));
    let submits = calls.filter(|call| call["route"] == "generate/submit");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    submits
        .map(|call| (text(&call["body"]["id"]), text(&call["body"]["state"])))
        .collect()
}

/// What the Horde was told of a job, once it is over.
fn told(horde: &Horde, record: &Path, id: &str) -> Option<Said> {
    let state = horde.state();
    match state.ledger.generations.get(id)?.fate {
        Fate::Open => None,
        Fate::Faulted | Fate::Expired => Some(said("faulted", None, None)),
        Fate::Accepted => {
            let picture = state.objects.look(&format!("{id}.webp")).expect("it was uploaded");
            let picture = imaging::decode(picture, &Limits::image_job()).expect("it is a picture");
            let corner = picture.rgb_at(0, 0).expect("it has a corner");
            let notices = [("amber", AMBER), ("red", RED)];
            let notice = notices.into_iter().find(|(_, colour)| is_near(corner, *colour));
            let notes = state.generations[id].metadata.iter();
            let notes = notes.map(|note| {
                let text = |key: &str| note[key].as_str().unwrap_or_default().to_owned();
                format!("{}/{}", text("type"), text("value"))
            });
            Some(Said(
                states(record).remove(id).expect("it was handed in"),
                notes.collect(),
                notice.map(|(name, _)| name),
            ))
        }
    }
}

/// A second phrase for nudity.
fn blue_circles_are_explicit_too(models: &Path) {
    let path = models.join("safety_checker/lists.json");
    let mut lists: Value = serde_json::from_slice(&std::fs::read(&path).expect("the lists")).expect("they are JSON");
    let phrases = lists["groups"]["explicit"]["phrases"].as_array_mut().expect("phrases");
    phrases.push(json!({ "text": "a large blue circle on a white background", "at": 0.25 }));
    std::fs::write(path, lists.to_string()).expect("the lists are written");
}

/// Has a dreamer with `more` in its environment do jobs, each a name, what is changed in it, and what is to be said.
async fn all(jobs: Vec<(&str, Value, Said)>, more: &[(&str, &str)]) {
    let (horde, running) = scripted::horde().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (models, state) = (folder.path().join("models"), folder.path().join("state"));
    let record = folder.path().join("record");
    horde.state().recorder = Some(Recorder::create(&record).expect("a record"));
    std::fs::create_dir_all(&models).expect("a folder");
    install(&models);
    blue_circles_are_explicit_too(&models);
    post::install(&models);
    let expected: Vec<(&str, String, Said)> = jobs
        .into_iter()
        .map(|(name, change, said)| {
            let mut whole = json!({ "payload": { "prompt": NUDE, "ddim_steps": 20, "cfg_scale": 5.0, "sampler_name": "k_euler_a" } });
            merge(&mut whole, &change);
            (name, script(&horde, &whole), said)
        })
        .collect();
    let usual = settings(&models).expect("the tiny model is part of the repository");
    let usual = usual.iter().map(|(key, value)| (*key, value.as_str()));
    let post = [("DREAMER_ALLOW_POST_PROCESSING", "true"), ("DREAMER_MAX_POWER", "16")];
    let environment: Vec<_> = usual.chain(post).chain(more.iter().copied()).collect();
    let worker = start_worker("dreamer", &running.base(), &state, &environment).expect("dreamer starts");
    let until = Instant::now() + PATIENCE;
    let mut wrong = Vec::new();
    for (name, id, said) in expected {
        let is = scripted::outcome(name, until, || told(&horde, &record, &id)).await;
        if is != said {
            wrong.push(format!("\"{name}\": {is:?} and not {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    scripted::drained(&horde, worker).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_way_of_making_a_picture_leads_around_the_check() {
    let copy = civitai::serve().await.expect("a copy of the API");
    let circle = base64(&disc(64, [220, 30, 30], [255; 3]));
    // The upscaler of this test turns every colour into its opposite: what is harmless before it is a blue circle on white.
    let opposite = base64(&disc(64, [240, 220, 50], [0; 3]));
    let mask = Mask::new(64, 64, (0..64 * 64).map(|at| if at < 64 { 255 } else { 0 }).collect()).expect("a mask");
    let mask = STANDARD.encode(encode_png_mask(&mask).expect("a mask"));
    let other = "a blue square on a yellow background";
    let kept = |source: &str, params: Value| {
        let mut change = json!({ "source_image": source, "source_processing": "img2img", "payload": {
            "prompt": other, "denoising_strength": 0.05, "cfg_scale": 1.0,
        } });
        merge(&mut change, &json!({ "payload": params }));
        change
    };
    let params = |params: Value| json!({ "payload": params });
    let jobs = vec![
        (
            "harmless",
            params(json!({ "prompt": "a large green square on a white background" })),
            clean(),
        ),
        ("from words", params(json!({})), noted()),
        (
            "from words, unwanted",
            params(json!({ "use_nsfw_censor": true })),
            censored(),
        ),
        ("from a source", kept(&circle, json!({})), noted()),
        (
            "from a source, unwanted",
            kept(&circle, json!({ "use_nsfw_censor": true })),
            censored(),
        ),
        (
            "beside a mask",
            json!({ "source_image": circle, "source_mask": mask, "source_processing": "inpainting", "payload": { "prompt": other } }),
            noted(),
        ),
        ("before post-processing", kept(&opposite, json!({})), clean()),
        (
            "after post-processing",
            kept(
                &opposite,
                json!({ "post_processing": [post::UPSCALER], "use_nsfw_censor": true }),
            ),
            censored(),
        ),
        (
            "cut out, with alpha",
            kept(
                &circle,
                json!({ "post_processing": ["strip_background"], "use_nsfw_censor": true }),
            ),
            censored(),
        ),
        (
            "asked for by words",
            params(json!({ "prompt": format!("{NUDE}, a child") })),
            removed(),
        ),
        (
            "asked for by words with a source",
            kept(&circle, json!({ "prompt": "c\u{200b}hild", "use_nsfw_censor": true })),
            removed(),
        ),
        (
            "asked for by the title of a LoRA",
            params(
                json!({ "loras": [{ "name": TELLING.to_string(), "is_version": true, "model": 0.0, "clip": 0.0 }] }),
            ),
            removed(),
        ),
        (
            "harmless again",
            params(json!({ "prompt": "a large green square on a white background" })),
            clean(),
        ),
    ];
    all(
        jobs,
        &[
            ("DREAMER_CIVITAI_URL", copy.as_str()),
            ("DREAMER_EMBEDDINGS_URL", copy.as_str()),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_for_everybody_and_a_list_of_words_replace_what_nobody_asked_to_replace() {
    let params = |params: Value| json!({ "payload": params });
    let green = "a large green square on a white background";
    let jobs = vec![
        ("harmless", params(json!({ "prompt": green })), clean()),
        ("not for everybody", params(json!({})), censored()),
        (
            "the worst",
            params(json!({ "prompt": format!("{NUDE}, a child") })),
            removed(),
        ),
        (
            "a word of the list",
            params(json!({ "prompt": format!("{green}, d r 4 g o n") })),
            censored(),
        ),
        (
            "a word of the list and the worst",
            params(json!({ "prompt": format!("{NUDE}, a child, dragon") })),
            removed(),
        ),
    ];
    all(jobs, &[("HORDE_NSFW", "false"), ("DREAMER_CENSORLIST", "dragon")]).await;
}
