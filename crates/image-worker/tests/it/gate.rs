//! A whole engine with a tiny model and a checker that says what a test wants: nothing comes out past it.

use std::sync::{Arc, Mutex};

use image_worker::checked::{About, Checker, Gate};
use image_worker::work::{Censors, LoraFile, Output};
use imaging::Picture;
use vision::safety::Rating;
use worker_runtime::backend::{Engine, Fault};

use crate::tiny::{Quiet, engine, work};

/// What a checker does with one picture.
#[derive(Clone)]
enum Answer {
    Rates(Rating),
    Fails(&'static str),
    Panics,
}

/// Answers one picture after the other, and keeps what it was told.
struct Scripted {
    answers: Mutex<Vec<Answer>>,
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
        let answer = self.answers.lock().expect("no thread panics").remove(0);
        match answer {
            Answer::Rates(rating) => Ok(rating),
            Answer::Fails(reason) => Err(reason.into()),
            Answer::Panics => panic!("a number is none"),
        }
    }
}

/// What a job of as many pictures as answers gives, and what the checker was told.
fn made(answers: Vec<Answer>) -> (Vec<Result<Output, Fault>>, Vec<String>) {
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
    work.censors = Some(Censors::Requester);
    // The file is not there: the picture is made without it, and its name is read all the same.
    work.loras.push(LoraFile {
        name: "plum ### cherry".into(),
        words: vec!["fig".into(), "#lime".into()],
        path: "/nowhere/plum.safetensors".into(),
        model: 1.0,
        clip: 1.0,
    });
    work.loras.push(LoraFile {
        name: "7".into(),
        words: vec!["pear".into()],
        path: "/nowhere/pear.safetensors".into(),
        model: -2.0,
        clip: 1.0,
    });
    let outputs = engine.run(work, &Quiet).expect("the job itself has no fault");
    let told = told.lock().expect("no thread panics").clone();
    (outputs, told)
}

#[test]
fn a_checker_that_fails_costs_its_picture_and_no_other() {
    for (answer, reason) in [
        (Answer::Fails("the device is gone"), "the device is gone"),
        (Answer::Panics, "it panicked"),
    ] {
        let (outputs, told) = made(vec![Answer::Rates(Rating::Ok), answer, Answer::Rates(Rating::Nsfw)]);
        assert_eq!((outputs.len(), told.len()), (3, 3));
        assert!(outputs[0].is_ok() && outputs[2].is_ok());
        let fault = outputs[1].as_ref().unwrap_err();
        assert!(fault.ours && fault.reason.contains(reason), "{fault:?}");
        assert!(!fault.reason.contains("circle"), "{fault:?}");
    }
}

#[test]
fn the_checker_is_told_of_the_model_and_of_every_word() {
    let (_, told) = made(vec![Answer::Rates(Rating::Ok)]);
    assert_eq!(
        told,
        ["64x64 anime true plum     cherry , fig ,  lime , 7 , pear , a red circle ### blue , 7 , pear"]
    );
}
