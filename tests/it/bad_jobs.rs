//! Jobs that no honest server gives, through the whole protocol: each is answered, and one engine lives through them all.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use e2e::demo::civitai::{self, MISFIT, OTHER_FAMILY, TORN, TORN_INVERSION, VERSION, WIDE_INVERSION};
use e2e::demo::dreamer::{MODEL, settings};
use e2e::demo::stage::start_worker;
use imaging::{Limits, Mask, Picture, encode_png, encode_png_mask};
use local_horde::Horde;
use local_horde::ledger::Fate;
use serde_json::{Value, json};
use test_support::merge;

use crate::scripted::{self, Expected};

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);

/// What becomes of a job.
#[derive(Debug, PartialEq)]
pub(crate) enum End {
    /// Pictures of this size came, the first with these notes (type, value and reference in one text).
    Made((u32, u32), Vec<String>),
    /// It was handed back.
    HandedBack,
}

/// One job: what is changed in the answer of a pop, and what becomes of it. A text `=TOKEN` goes out without its quotes.
struct Job {
    name: &'static str,
    change: Value,
    end: End,
}

const SMALL: (u32, u32) = (64, 64);

fn made(name: &'static str, change: Value) -> Job {
    noted(name, change, &[])
}

fn noted(name: &'static str, change: Value, notes: &[&str]) -> Job {
    let notes = notes.iter().map(|note| (*note).to_owned()).collect();
    Job {
        name,
        change,
        end: End::Made(SMALL, notes),
    }
}

fn params(name: &'static str, params: Value) -> Job {
    made(name, json!({ "payload": params }))
}

fn handed_back(name: &'static str, change: Value) -> Job {
    Job {
        name,
        change,
        end: End::HandedBack,
    }
}

fn numbers() -> Vec<Job> {
    vec![
        params("steps 0", json!({ "ddim_steps": 0 })),
        params("steps -1", json!({ "ddim_steps": -1 })),
        params("steps 10^9", json!({ "ddim_steps": 1_000_000_000 })),
        params("steps in text", json!({ "ddim_steps": "2" })),
        params("steps null", json!({ "ddim_steps": null })),
        params("steps a list", json!({ "ddim_steps": [2] })),
        params("guidance in words", json!({ "cfg_scale": "NaN" })),
        params("guidance below all", json!({ "cfg_scale": -5 })),
        params("guidance above all", json!({ "cfg_scale": 1e300 })),
        params("guidance null", json!({ "cfg_scale": null })),
        params("no seed", json!({ "seed": "" })),
        params("a seed below all", json!({ "seed": "-5" })),
        params("a seed above all", json!({ "seed": "1180591620717411303424" })),
        params("a seed of words", json!({ "seed": "abc" })),
        params("clip skip 0", json!({ "clip_skip": 0 })),
        params("clip skip 99", json!({ "clip_skip": 99 })),
        params("no pictures", json!({ "n_iter": 0 })),
        params("a thousand pictures for one id", json!({ "n_iter": 1000 })),
        params(
            "flags in words",
            json!({ "tiling": "yes", "karras": "no", "hires_fix": 7 }),
        ),
        made("a lease without end", json!({ "ttl": 1_000_000_000_000_000_000_u64 })),
        made("a lease in words", json!({ "ttl": "soon" })),
        Job {
            name: "a side in text",
            change: json!({ "payload": { "width": "128" } }),
            end: End::Made((128, 64), vec![]),
        },
    ]
}

fn words() -> Vec<Job> {
    vec![
        params(
            "100,000 characters",
            json!({ "prompt": "a red circle ".repeat(100_000 / 13) }),
        ),
        params("100,000 parentheses", json!({ "prompt": "(".repeat(100_000) })),
        params(
            "100,000 closed ones",
            json!({ "prompt": format!("{}x{}", "(".repeat(50_000), ":1e9)".repeat(50_000)) }),
        ),
        params("100,000 marks", json!({ "prompt": "###".repeat(100_000) })),
        params("no prompt", json!({ "prompt": null })),
        params("a number for a prompt", json!({ "prompt": 7 })),
        params(
            "control characters",
            json!({ "prompt": "a\u{0}b\u{1b}[31m\u{202e}c\u{200d}👩‍👩‍👧 <|endoftext|>" }),
        ),
        params("an unknown sampler", json!({ "sampler_name": "divination" })),
        params("a number for a sampler", json!({ "sampler_name": 5 })),
        params("an unknown schedule", json!({ "scheduler": "../../etc" })),
        params(
            "unknown fields",
            json!({ "special": { "a": [1] }, "no_such": "x".repeat(10_000), "extra_texts": 5 }),
        ),
        made(
            "unknown fields at the top",
            json!({ "no_such": [[[]]], "extra_source_images": "x", "messages": 7, "skipped": [] }),
        ),
        made("an unknown use of no source", json!({ "source_processing": "alchemy" })),
    ]
}

/// A file of imaging's own tests.
fn fixture(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/imaging/tests/fixtures");
    std::fs::read(folder.join(name)).expect("the file is part of the repository")
}

/// A source by its address at the store.
fn stored(horde: &Horde, name: &str, bytes: Vec<u8>) -> Value {
    let mut state = horde.state();
    state.objects.put_own(name, bytes);
    json!(state.objects.sign("GET", name))
}

fn sources(horde: &Horde) -> Vec<Job> {
    const BROKEN: &str = "source_image parse_failed";
    const GONE: &str = "source_image download_failed";
    let png = encode_png(&Picture::filled(80, 48, [200, 30, 30])).expect("a picture");
    let mut bomb = b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f".to_vec();
    bomb.extend((11999u32 | 11999 << 14).to_le_bytes());
    bomb.resize(40, 0);
    let mask = Mask::new(7, 120, vec![255; 840]).expect("a mask");
    let mask = json!(STANDARD.encode(encode_png_mask(&mask).expect("a mask")));
    let plain = json!(STANDARD.encode(&png));
    let from = |source: &Value, more: Value| {
        let mut change = json!({ "source_image": source, "payload": { "denoising_strength": 0.5 } });
        merge(&mut change, &more);
        change
    };
    let kept = |name: &str, bytes: Vec<u8>| from(&stored(horde, name, bytes), json!({}));
    let gone = horde.state().objects.sign("GET", "never-was.webp");
    let text = |text: &str| from(&json!(text), json!({}));
    let strength = |value: Value| from(&plain, json!({ "payload": { "denoising_strength": value } }));
    vec![
        noted(
            "a zip file",
            kept("a.zip", [&b"PK\x03\x04"[..], &[0; 400]].concat()),
            &[BROKEN],
        ),
        noted(
            "half a picture",
            kept("half.png", png[..png.len() / 2].to_vec()),
            &[BROKEN],
        ),
        noted("12000x12000 in 40 bytes", kept("bomb.webp", bomb), &[BROKEN]),
        noted(
            "a drawing of lines",
            kept("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec()),
            &[BROKEN],
        ),
        noted(
            "a line of 3000 pixels",
            kept(
                "line.png",
                encode_png(&Picture::filled(3000, 1, [1; 3])).expect("a line"),
            ),
            &[BROKEN],
        ),
        made(
            "one pixel",
            kept("one.png", encode_png(&Picture::filled(1, 1, [1; 3])).expect("a pixel")),
        ),
        made("16 bits", kept("16.png", fixture("grey16.png"))),
        made("four inks", kept("cmyk.jpg", fixture("cmyk.jpg"))),
        made("an animation", kept("a.webp", fixture("animated.webp"))),
        made("an older animation", kept("a.gif", fixture("animated.gif"))),
        made("on its side", kept("6.jpg", fixture("orientation_6.jpg"))),
        noted("nothing at its address", text(&gone), &[GONE]),
        noted("nobody at its address", text("http://127.0.0.1:9/gone.webp"), &[GONE]),
        noted("a file of this machine", text("file:///etc/passwd"), &[GONE]),
        noted("no base64", text("no picture!"), &[GONE]),
        noted("base64 of words", text("bm8gcGljdHVyZQ"), &[BROKEN]),
        made("an empty source", text("  ")),
        made("strength -1", strength(json!(-1))),
        made("strength 2", strength(json!(2))),
        made("strength in words", strength(json!("NaN"))),
        made(
            "an unknown use",
            from(&plain, json!({ "source_processing": "alchemy" })),
        ),
        made(
            "a mask of another size",
            from(
                &plain,
                json!({ "source_processing": "inpainting", "source_mask": mask }),
            ),
        ),
        made(
            "a mask without a source",
            json!({ "source_processing": "inpainting", "source_mask": mask }),
        ),
        noted(
            "a mask that is none",
            from(&plain, json!({ "source_mask": "bm8gcGljdHVyZQ" })),
            &["source_mask parse_failed"],
        ),
        noted(
            "a mask that is gone",
            from(&plain, json!({ "source_mask": gone })),
            &["source_mask download_failed"],
        ),
        made(
            "painting without a mask",
            from(&plain, json!({ "source_processing": "outpainting" })),
        ),
    ]
}

fn extras() -> Vec<Job> {
    let lora = |name: &str| json!({ "name": name, "is_version": true, "model": 1e300, "clip": "NaN" });
    let with = |loras: Value| json!({ "payload": { "loras": loras } });
    let failed = |kind: &str, name: &str| format!("{kind} download_failed {name}");
    let (other, many) = (
        OTHER_FAMILY.to_string(),
        ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"],
    );
    let all_fail: Vec<String> = many.iter().map(|name| failed("lora", name)).collect();
    let all_fail: Vec<&str> = all_fail.iter().map(String::as_str).collect();
    let hostile = ["../x", "/etc/passwd", "a\u{0}b", "CON", "..%2f..%2fx", "\u{2215}x"];
    let tis: Vec<Value> = hostile
        .iter()
        .map(|name| json!({ "name": name, "inject_ti": "prompt" }))
        .collect();
    let refused: Vec<String> = hostile
        .iter()
        .map(|name| failed("ti", &name.replace('\0', "")))
        .collect();
    let refused: Vec<&str> = refused.iter().map(String::as_str).collect();
    let long = "x".repeat(4096);
    let cut = failed("ti", &long[..255]);
    vec![
        noted(
            "a LoRA of another family",
            with(json!([lora(&other)])),
            &[&format!("lora baseline_mismatch {other}")],
        ),
        noted(
            "a LoRA that fits no layer",
            with(json!([lora(&MISFIT.to_string())])),
            &[&format!("lora baseline_mismatch {MISFIT}")],
        ),
        noted(
            "a LoRA that breaks off",
            with(json!([lora(&TORN.to_string())])),
            &[&failed("lora", &TORN.to_string())],
        ),
        noted(
            "inversions of another width and of half a file",
            json!({ "payload": { "tis": [{ "name": WIDE_INVERSION }, { "name": TORN_INVERSION }] } }),
            &[
                &failed("ti", TORN_INVERSION),
                &format!("ti baseline_mismatch {WIDE_INVERSION}"),
            ],
        ),
        made("a LoRA beyond all strength", with(json!([lora(&VERSION.to_string())]))),
        noted("ten LoRAs that are not there", with(json!(many.map(lora))), &all_fail),
        made("LoRAs that are none", with(json!([7, null, "x"]))),
        noted(
            "inversions with the names of files",
            json!({ "payload": { "tis": tis } }),
            &refused,
        ),
        noted(
            "an inversion with a long name",
            json!({ "payload": { "tis": [{ "name": long }] } }),
            &[&cut],
        ),
    ]
}

/// The text of an answer with this change. Texts that begin with `=` lose their quotes.
fn answer(change: &Value, ids: &[String], uploads: &[String]) -> String {
    let mut whole = json!({
        "payload": {
            "prompt": "a red circle", "ddim_steps": 1, "n_iter": ids.len(), "seed": "1", "sampler_name": "k_euler", "cfg_scale": 1.0,
            "width": 64, "height": 64, "karras": false, "tiling": false, "hires_fix": false, "transparent": false,
            "image_is_control": false, "return_control_map": false,
        },
        "id": ids[0], "ids": ids, "r2_upload": uploads[0], "r2_uploads": uploads, "model": MODEL, "source_image": null,
        "source_processing": "img2img", "source_mask": null, "extra_source_images": null, "skipped": {}, "messages": [], "ttl": 150,
    });
    merge(&mut whole, change);
    let mut text = whole.to_string();
    for token in ["1e309", "NaN"] {
        text = text.replace(&format!("\"={token}\""), token);
    }
    text
}

/// Has one image pop answered with this change; the job's id.
pub(crate) fn script(horde: &Horde, change: &Value) -> String {
    let mut state = horde.state();
    state
        .script_image(1, |ids, uploads| answer(change, ids, uploads))
        .remove(0)
}

/// What became of a generation; `None` while it is open.
pub(crate) fn ended(horde: &Horde, id: &str) -> Option<End> {
    let state = horde.state();
    let text = |entry: &Value, key: &str| entry[key].as_str().map(str::to_owned);
    match state.ledger.generations.get(id)?.fate {
        Fate::Open => None,
        Fate::Faulted | Fate::Expired => Some(End::HandedBack),
        Fate::Accepted => {
            let picture = state.objects.look(&format!("{id}.webp")).expect("it was uploaded");
            let picture = imaging::decode(picture, &Limits::image_job()).expect("it is a picture");
            let notes = state.generations[id].metadata.iter();
            let notes = notes.map(|note| {
                let parts = ["type", "value", "ref"].into_iter().filter_map(|key| text(note, key));
                parts.collect::<Vec<_>>().join(" ")
            });
            Some(End::Made((picture.width(), picture.height()), notes.collect()))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_job_holds_it_is_answered_and_the_engine_lives() {
    let (horde, running) = scripted::horde().await;
    let copy = civitai::serve().await.expect("a copy of the API");
    let jobs = [
        vec![params("a good job", json!({}))],
        numbers(),
        words(),
        sources(&horde),
        extras(),
        vec![
            handed_back(
                "guidance beyond all numbers",
                json!({ "payload": { "cfg_scale": "=1e309" } }),
            ),
            params("a good job after one handed back", json!({})),
            handed_back("a side below all", json!({ "payload": { "width": -64 } })),
            params("a good job after it", json!({})),
            handed_back("a side of 65", json!({ "payload": { "width": 65 } })),
            params("a good job at the end", json!({})),
        ],
    ];
    let jobs: Vec<Job> = jobs.into_iter().flatten().collect();
    let expected: Vec<_> = jobs
        .iter()
        .map(|job| Expected {
            name: job.name,
            id: script(&horde, &job.change),
            end: &job.end,
        })
        .collect();

    let (models, folder) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let usual = settings(models.path()).expect("the tiny model is part of the repository");
    let more = [
        ("DREAMER_UNCHECKED_ON_LOOPBACK", "true"),
        ("DREAMER_CIVITAI_URL", copy.as_str()),
        ("DREAMER_EMBEDDINGS_URL", copy.as_str()),
    ];
    let usual = usual.iter().map(|(key, value)| (*key, value.as_str()));
    let environment: Vec<_> = usual.chain(more).collect();
    let worker = start_worker("dreamer", &running.base(), folder.path(), &environment).expect("dreamer starts");
    scripted::answered(&horde, worker, &expected, PATIENCE, ended).await;
}
