//! An engine with little memory: it offers less, hands back what would not fit before it begins, and lets models go.

use image_worker::checked::Gate;
use image_worker::facts::Facts;
use image_worker::room::SMALLEST_PIXELS;
use worker_runtime::backend::Engine;

use crate::tiny::{CEILING, Quiet, engine, work};

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
