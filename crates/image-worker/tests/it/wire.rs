//! From the text of a pop's answer to what the engine is told, field by field: what the wire allows is taken as it is, what
//! it does not is brought within bounds or handed back.

use horde_client::image::{Image, Payload, PopResponse};
use horde_client::kind::{JobKind, PoppedJob};
use image_worker::order::{Order, SourceUse, order};
use serde_json::{Value, json};
use test_support::merge;
use worker_runtime::backend::Fault;

/// What the worker of these tests offers.
const MOST_PIXELS: u64 = 1024 * 1024;

/// The job of an answer as the server of release 5.1.5 writes it, with this change.
pub fn popped(change: &Value) -> Option<PoppedJob<Payload>> {
    let mut answer = json!({
        "payload": {
            "prompt": "a cat", "ddim_steps": 30, "n_iter": 1, "seed": "7", "sampler_name": "k_euler_a", "cfg_scale": 5.0,
            "width": 512, "height": 512, "karras": true, "tiling": false, "hires_fix": false, "transparent": false,
            "image_is_control": false, "return_control_map": false,
        },
        "id": "eaea5304-01f0-4e9a-864d-028665a62de4", "ids": ["eaea5304-01f0-4e9a-864d-028665a62de4"],
        "r2_upload": "https://store.invalid/x.webp?a=b", "r2_uploads": ["https://store.invalid/x.webp?a=b"],
        "model": "tiny", "source_image": null, "source_processing": "img2img", "source_mask": null,
        "extra_source_images": null, "skipped": {}, "messages": [], "ttl": 150,
    });
    merge(&mut answer, change);
    let response: PopResponse = serde_json::from_str(&answer.to_string()).expect("an answer is always read");
    Image::split(response).jobs.pop()
}

fn ordered(change: &Value) -> Result<Order, Fault> {
    let job = popped(change).ok_or(Fault::of_job("there is no job"))?;
    let payload = job.payload.map_err(Fault::of_job)?;
    order(&payload, job.generations.len(), MOST_PIXELS)
}

fn params(params: Value) -> Result<Order, Fault> {
    ordered(&json!({ "payload": params }))
}

/// What `of` reads of the order for these parameters.
fn read<T>(change: Value, of: impl Fn(&Order) -> T) -> T {
    of(&params(change.clone()).unwrap_or_else(|fault| panic!("{change}: {fault}")))
}

fn is_handed_back(change: &Value) -> bool {
    matches!(ordered(change), Err(fault) if !fault.ours)
}

#[test]
fn every_number_within_the_wire_s_range_is_taken_as_it_is() {
    for steps in [1, 30, 500] {
        assert_eq!(read(json!({ "ddim_steps": steps }), |o| o.steps), steps);
    }
    for scale in [1.0, 7.5, 100.0] {
        assert_eq!(read(json!({ "cfg_scale": scale }), |o| o.cfg_scale), scale);
    }
    for skip in [1, 2, 12] {
        assert_eq!(read(json!({ "clip_skip": skip }), |o| o.clip_skip), skip);
    }
    for (width, height) in [(64, 64), (1024, 1024), (64, 3072), (3072, 320)] {
        let size = json!({ "width": width, "height": height });
        assert_eq!(read(size, |o| (o.width, o.height)), (width, height));
    }
    for strength in [0.01, 0.5, 1.0] {
        assert_eq!(read(json!({ "denoising_strength": strength }), |o| o.denoise), strength);
        let second = json!({ "hires_fix_denoising_strength": strength });
        assert_eq!(read(second, |o| o.hires_denoise), strength);
    }
    for seed in [0, 7, u64::from(u32::MAX)] {
        assert_eq!(read(json!({ "seed": seed.to_string() }), |o| o.seed), seed);
    }
    assert!(read(json!({ "tiling": true }), |o| o.tiling));
    assert!(read(json!({ "hires_fix": true }), |o| o.hires));
}

#[test]
fn numbers_beyond_it_are_brought_within_and_what_is_none_is_the_default() {
    for (steps, expected) in [
        (json!(0), 1),
        (json!(501), 500),
        (json!(1_000_000_000), 500),
        (json!(-1), 1),
        (json!(-1_000_000_000_000_i64), 1),
        (json!(4_294_967_296_u64), 500),
        (json!(1e300), 500),
        (json!("-1"), 1),
        (json!("20"), 20),
        (json!("twenty"), 30),
        (json!(20.5), 30),
        (json!(null), 30),
        (json!({}), 30),
    ] {
        assert_eq!(read(json!({ "ddim_steps": steps }), |o| o.steps), expected, "{steps}");
    }
    // Guidance below 1 is none at all, as the reference engine has it.
    for (scale, expected) in [
        (json!(0), 1.0),
        (json!(-5), 1.0),
        (json!(101), 100.0),
        (json!(1e308), 100.0),
        (json!("7.5"), 7.5),
        (json!("NaN"), 8.0),
        (json!("inf"), 8.0),
        (json!(null), 8.0),
    ] {
        assert_eq!(
            read(json!({ "cfg_scale": scale }), |o| o.cfg_scale),
            expected,
            "{scale}"
        );
    }
    for (skip, expected) in [
        (json!(0), 1),
        (json!(99), 12),
        (json!(-1), 1),
        (json!(1e30), 12),
        (json!(null), 1),
    ] {
        assert_eq!(read(json!({ "clip_skip": skip }), |o| o.clip_skip), expected, "{skip}");
    }
    for (strength, expected) in [
        (json!(-1), 0.01),
        (json!(0), 0.01),
        (json!(2), 1.0),
        (json!("NaN"), 1.0),
        (json!(null), 1.0),
    ] {
        let change = json!({ "denoising_strength": strength });
        assert_eq!(read(change, |o| o.denoise), expected, "{strength}");
    }
    for seed in [
        json!(""),
        json!("-5"),
        json!("abc"),
        json!("1180591620717411303424"),
        json!(null),
        json!(-1),
    ] {
        assert_eq!(read(json!({ "seed": seed }), |o| o.seed), 0, "{seed}");
    }
}

#[test]
fn a_size_that_was_not_offered_is_handed_back() {
    for side in [
        0,
        1,
        63,
        65,
        500,
        3073,
        4096,
        1_000_000,
        4_294_967_295_u64,
        2_147_483_648,
    ] {
        for name in ["width", "height"] {
            assert!(is_handed_back(&json!({ "payload": { name: side } })), "{name} {side}");
        }
    }
    for side in [json!(-64), json!("-64"), json!(4_294_967_360_u64), json!(1e300)] {
        assert!(is_handed_back(&json!({ "payload": { "width": side } })), "{side}");
    }
    assert!(is_handed_back(&json!({ "payload": { "width": 1024, "height": 1088 } })));
    assert!(is_handed_back(&json!({ "payload": { "width": 3072, "height": 3072 } })));
}

#[test]
fn schedule_and_sampler_are_those_named_or_those_of_the_reference() {
    let schedule = |change: Value| read(change, |o| o.schedule.clone());
    assert_eq!(schedule(json!({ "karras": true })), "karras");
    assert_eq!(schedule(json!({ "karras": false })), "normal");
    assert_eq!(schedule(json!({ "karras": null })), "karras");
    for named in ["normal", "karras", "exponential", "sgm_uniform", "simple"] {
        assert_eq!(schedule(json!({ "karras": true, "scheduler": named })), named);
    }
    assert_eq!(schedule(json!({ "karras": false, "scheduler": "no such" })), "normal");

    let sampler = |name: Value| read(json!({ "sampler_name": name }), |o| o.sampler.clone());
    for named in [
        "k_lms",
        "k_heun",
        "k_euler",
        "k_euler_a",
        "k_dpm_2",
        "k_dpm_2_a",
        "k_dpm_fast",
        "k_dpm_adaptive",
        "k_dpmpp_2s_a",
        "k_dpmpp_2m",
        "k_dpmpp_sde",
        "DDIM",
        "ddim",
        "dpmsolver",
        "lcm",
        "uni_pc",
        "uni_pc_bh2",
    ] {
        assert_eq!(sampler(json!(named)), named);
    }
    assert_eq!(sampler(json!(null)), "k_euler_a");
    assert_eq!(sampler(json!("no such")), "k_euler");
    assert_eq!(sampler(json!("../../etc/passwd")), "k_euler");
}

#[test]
fn the_source_alone_says_what_kind_of_job_it_is() {
    let source = |processing: &str, source: Value| {
        let change = json!({ "source_image": source, "source_processing": processing });
        ordered(&change).map(|order| order.source)
    };
    let there = || json!("https://store.invalid/s.webp");
    for none in [json!(null), json!(""), json!("  "), json!(7)] {
        for processing in ["img2img", "inpainting", "outpainting", "no such"] {
            assert_eq!(source(processing, none.clone()), Ok(None), "{processing} {none}");
        }
    }
    assert_eq!(source("img2img", there()), Ok(Some(SourceUse::Start)));
    assert_eq!(source("inpainting", there()), Ok(Some(SourceUse::Paint)));
    assert_eq!(source("outpainting", there()), Ok(Some(SourceUse::Paint)));
    assert_eq!(source("no such", there()), Ok(Some(SourceUse::Start)));
    assert!(source("remix", there()).is_err());
}

#[test]
fn the_second_pass_changes_as_much_as_it_or_the_source_s_strength_says() {
    let second = |with_source: bool, params: Value| {
        let source = with_source.then_some("https://store.invalid/s.webp");
        let made = ordered(&json!({ "source_image": source, "payload": params })).unwrap();
        (made.hires, made.hires_denoise)
    };
    let fix = |strength: Option<f64>, second: Option<f64>| json!({ "hires_fix": true, "denoising_strength": strength, "hires_fix_denoising_strength": second });
    assert_eq!(second(false, fix(None, None)), (true, 0.65));
    assert_eq!(second(false, fix(Some(0.3), None)), (true, 0.65));
    assert_eq!(second(true, fix(Some(0.3), None)), (true, 0.3));
    assert_eq!(second(true, fix(Some(0.3), Some(0.8))), (true, 0.8));
    assert_eq!(second(true, fix(None, None)), (true, 0.65));
    let painted = json!({
        "source_image": "https://store.invalid/s.webp", "source_processing": "inpainting", "payload": { "hires_fix": true },
    });
    assert!(!ordered(&painted).unwrap().hires, "what is painted has one pass");
}

#[test]
fn what_no_pop_of_this_worker_allows_is_handed_back_and_its_empty_forms_are_not() {
    for refused in [
        json!({ "control_type": "canny" }),
        json!({ "control_type": "no such" }),
        json!({ "image_is_control": true }),
        json!({ "return_control_map": true }),
        json!({ "workflow": "qr_code", "extra_texts": [{ "text": "https://example.org", "reference": "qr_code" }] }),
        json!({ "transparent": true }),
    ] {
        assert!(is_handed_back(&json!({ "payload": refused })), "{refused}");
    }
    for taken in [
        json!({ "control_type": null, "workflow": null, "transparent": null }),
        json!({ "control_type": "", "workflow": "" }),
        json!({ "control_type": 7, "transparent": "yes", "return_control_map": 1 }),
        json!({ "extra_texts": [{ "text": "a", "reference": "b" }], "special": { "a": [1, 2] }, "no_such_field": [[]] }),
    ] {
        assert!(params(taken.clone()).is_ok(), "{taken}");
    }
    // Only Stable Cascade uses further sources, and only for a remix.
    let further = json!({ "extra_source_images": [{ "image": "https://store.invalid/s.webp", "strength": 1.0 }] });
    assert!(ordered(&further).is_ok());
}

#[test]
fn as_many_pictures_are_made_as_there_are_ids_whatever_n_iter_says() {
    let ids = |n: usize| {
        let ids: Vec<String> = (0..n).map(|at| format!("eaea5304-01f0-4e9a-864d-{at:012}")).collect();
        json!({ "id": ids.first(), "ids": ids, "payload": { "n_iter": 1000 } })
    };
    assert!(popped(&ids(0)).is_none(), "without an id there is no job");
    for n in [1, 4, 20] {
        assert_eq!(ordered(&ids(n)).unwrap().batch as usize, n);
    }
    for n in [21, 1000] {
        let job = popped(&ids(n)).unwrap();
        assert_eq!(job.generations.len(), n, "each is answered");
        assert!(is_handed_back(&ids(n)), "{n}");
    }
}

#[test]
fn an_answer_that_is_none_of_it_is_still_a_job_to_hand_back() {
    for payload in [json!(null), json!([]), json!("x"), json!(7)] {
        let change = json!({ "payload": payload });
        let job = popped(&change);
        assert_eq!(job.map(|job| job.generations.len()), Some(1), "{change}");
    }
    assert!(is_handed_back(&json!({ "payload": "x" })));
}
