//! A whole engine with a tiny model and a checker that says what a test wants: nothing comes out past it.

use std::sync::{Arc, Mutex};

use image_worker::checked::{About, Checker, Gate};
use image_worker::work::{LoraFile, Output};
use imaging::Picture;
use vision::safety::Rating;
use worker_runtime::backend::{Engine, Fault};

use crate::tiny::{Quiet, engine, work};

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
    let engine =
        engine(&["tiny"], None, Gate::Checker(Box::new(checker))).expect("the tiny model is part of the repository");
    let mut work = work("tiny", 64);
    work.order.batch = batch;
    work.censors = true;
    // The file is not there: the picture is made without it, and its name is read all the same.
    work.loras.push(LoraFile {
        name: "plum ### cherry".into(),
        path: "/nowhere/plum.safetensors".into(),
        model: 1.0,
        clip: 1.0,
    });
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
