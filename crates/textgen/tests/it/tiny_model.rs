//! Promises of the embedded engine that need no wit: a one-layer model with weights that mean nothing.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use textgen::llama::{LlamaEngine, LlamaSettings};
use textgen::sampler::Sampling;
use textgen::{Finish, NoWatch, TextEngine, TextError, TextRequest, Watch};

use crate::tiny_gguf::{CONTEXT, Gguf, Meta, tiny};

struct Model {
    _folder: TempDir,
    path: PathBuf,
}

fn saved(file: &Gguf) -> Model {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tiny.gguf");
    file.write(&path);
    Model { _folder: folder, path }
}

fn settings(model: &Model, slots: u32) -> LlamaSettings {
    LlamaSettings {
        slots,
        threads: 1,
        prefill_tokens: 64,
        ..LlamaSettings::for_model(&model.path)
    }
}

fn load(model: &Model, slots: u32) -> LlamaEngine {
    LlamaEngine::load(settings(model, slots), |_| true).unwrap()
}

fn request(prompt: &str, max_length: u32) -> TextRequest {
    TextRequest {
        ban_eos: true,
        seed: Some(11),
        sampling: Sampling::neutral(),
        ..TextRequest::new(prompt, max_length, CONTEXT)
    }
}

#[test]
fn the_prompt_is_cut_from_the_left_and_keeps_its_beginning_token() {
    let engine = load(&saved(&tiny()), 1);
    let long = "a b c d e f g h ".repeat(20_000);
    let answer = engine.generate(request(&long, 100), &NoWatch).unwrap();
    assert_eq!(
        (answer.prompt_tokens, answer.tokens, answer.finish),
        (CONTEXT - 100, 100, Finish::Length)
    );
    let asked_for_less = TextRequest {
        max_context_length: 80,
        ..request(&long, 30)
    };
    assert_eq!(engine.generate(asked_for_less, &NoWatch).unwrap().prompt_tokens, 50);
    // The same last 49 tokens behind the beginning token: the same text, whatever stood before.
    let other_start = format!("z z z z {}", "a b c d e f g h ".repeat(40));
    let [one, two] = [long.as_str(), other_start.as_str()].map(|prompt| TextRequest {
        max_context_length: 80,
        ..request(prompt, 30)
    });
    let answers = [one, two].map(|request| engine.generate(request, &NoWatch).unwrap());
    assert_eq!(answers[0].text, answers[1].text);
}

#[test]
fn an_answer_longer_than_the_slot_is_refused_alone() {
    let engine = load(&saved(&tiny()), 2);
    let refused = engine.generate(request("a", CONTEXT), &NoWatch);
    assert!(matches!(refused, Err(TextError::Overflow(_))), "{refused:?}");
    assert!(engine.generate(request("a", 4), &NoWatch).is_ok());
}

#[test]
fn a_seed_reproduces_its_text_and_another_does_not() {
    let engine = load(&saved(&tiny()), 1);
    let write = |seed| {
        let request = TextRequest {
            seed: Some(seed),
            ..request("hello", 60)
        };
        engine.generate(request, &NoWatch).unwrap().text
    };
    let first = write(1);
    assert_eq!(first, write(1));
    assert_ne!(first, write(2));
}

#[test]
fn more_requests_than_slots_all_end_and_each_gets_its_own_length() {
    let engine = load(&saved(&tiny()), 3);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..=12u32)
            .map(|n| {
                let engine = &engine;
                scope.spawn(move || {
                    (
                        n,
                        engine
                            .generate(request(&"word ".repeat(n as usize * 3), n * 5), &NoWatch)
                            .unwrap(),
                    )
                })
            })
            .collect();
        for worker in workers {
            let (n, answer) = worker.join().unwrap();
            assert_eq!((answer.tokens, answer.finish), (n * 5, Finish::Length));
        }
    });
}

#[test]
fn a_common_beginning_is_computed_once_and_changes_no_text() {
    let engine = load(&saved(&tiny()), 4);
    let scene = "the room is dark and the sea is loud ".repeat(6);
    let alone: Vec<String> = ["x", "y", "z"]
        .iter()
        .map(|end| {
            let fresh = load(&saved(&tiny()), 1);
            fresh
                .generate(request(&format!("{scene}{end}"), 20), &NoWatch)
                .unwrap()
                .text
        })
        .collect();
    let together = std::thread::scope(|scope| {
        let engine = &engine;
        let scene = &scene;
        let workers: Vec<_> = ["x", "y", "z"]
            .iter()
            .map(|end| {
                scope.spawn(move || {
                    engine
                        .generate(request(&format!("{scene}{end}"), 20), &NoWatch)
                        .unwrap()
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap())
            .collect::<Vec<_>>()
    });
    let texts: Vec<String> = together.iter().map(|answer| answer.text.clone()).collect();
    assert_eq!(texts, alone);
    let shared = together
        .iter()
        .filter(|answer| answer.timings.reused_tokens > 100)
        .count();
    assert!(shared >= 2, "{together:?}");
    // And once more, from what the finished ones left.
    let again = engine.generate(request(&format!("{scene}x"), 20), &NoWatch).unwrap();
    assert!(again.timings.reused_tokens > 100, "{again:?}");
    assert_eq!(again.text, alone[0]);
}

#[test]
fn a_long_prompt_does_not_stall_those_who_write() {
    let model = saved(&tiny().with("llama.context_length", Meta::U32(16_384)));
    let settings = LlamaSettings {
        context_tokens: 16_384,
        prefill_tokens: 16,
        ..settings(&model, 2)
    };
    let engine = LlamaEngine::load(settings, |_| true).unwrap();
    let timed = |prompt: String, max_length: u32| {
        let request = TextRequest {
            max_context_length: 16_384,
            ..request(&prompt, max_length)
        };
        let answer = engine.generate(request, &NoWatch).unwrap();
        (answer, Instant::now())
    };
    std::thread::scope(|scope| {
        let long = scope.spawn(|| timed("b ".repeat(4_000), 1));
        let (short, short_ended) = timed("a".into(), 20);
        let (long, long_ended) = long.join().unwrap();
        // At least 250 batches of 16 tokens, in each of which the other writes a token. In eight of 512 it would not get far.
        assert!(long.prompt_tokens >= 4_000 && short.tokens == 20, "{long:?}");
        assert!(short_ended < long_ended, "the long prompt came first");
    });
}

/// Cancels as soon as something was written.
#[derive(Default)]
struct CancelAtFirst(AtomicBool);

impl Watch for CancelAtFirst {
    fn progress(&self, done: u32, _total: u32) {
        self.0.store(done > 0, Ordering::Relaxed);
    }
    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn a_cancelled_request_ends_and_its_slot_serves_the_next() {
    let big = tiny().with("llama.context_length", Meta::U32(100_000));
    let model = saved(&big);
    let settings = LlamaSettings {
        context_tokens: 40_000,
        ..settings(&model, 1)
    };
    let engine = LlamaEngine::load(settings, |_| true).unwrap();
    let endless = TextRequest {
        max_context_length: 40_000,
        ..request("a", 16_000)
    };
    let cancelled = engine.generate(endless, &CancelAtFirst::default());
    assert!(matches!(cancelled, Err(TextError::Cancelled)), "{cancelled:?}");
    assert_eq!(engine.generate(request("b", 5), &NoWatch).unwrap().tokens, 5);
}

#[test]
fn numbers_that_are_none_fail_the_request_and_not_the_engine() {
    let mut broken = tiny();
    broken.tensors[10].data.fill(f32::NAN);
    let engine = load(&saved(&broken), 1);
    for _ in 0..2 {
        let failed = engine.generate(request("a", 5), &NoWatch);
        assert!(matches!(failed, Err(TextError::Failed(_))), "{failed:?}");
    }
}

#[test]
fn loading_can_be_given_up_and_a_missing_file_is_named() {
    let model = saved(&tiny());
    let given_up = LlamaEngine::load(settings(&model, 1), |_| false);
    assert!(matches!(given_up, Err(TextError::Model(_))), "{given_up:?}");
    let missing = LlamaEngine::load(LlamaSettings::for_model("/nowhere/x.gguf"), |_| true).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/x.gguf"), "{missing}");
}

#[test]
fn what_the_check_lets_through_llama_cpp_survives() {
    // An abort inside llama.cpp would end this process, and with it this test.
    let mut random = ChaCha8Rng::seed_from_u64(104);
    let (bytes, header) = tiny().bytes();
    let folder = TempDir::new().unwrap();
    let (mut accepted, mut loaded) = (0, 0);
    for round in 0..600 {
        let mut changed = bytes.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..header);
            changed[at] = if random.random() {
                random.random()
            } else {
                changed[at] ^ (1 << random.random_range(0..8))
            };
        }
        if textgen::gguf::check(changed.as_slice(), changed.len() as u64).is_err() {
            continue;
        }
        accepted += 1;
        let path = folder.path().join(format!("{round}.gguf"));
        std::fs::write(&path, &changed).unwrap();
        if accepted > 150 {
            break;
        }
        let settings = LlamaSettings {
            slots: 1,
            context_tokens: 256,
            threads: 1,
            ..LlamaSettings::for_model(&path)
        };
        if let Ok(engine) = LlamaEngine::load(settings, |_| true) {
            loaded += 1;
            let _ = engine.generate(request("ab", 3), &NoWatch);
        }
    }
    assert!(
        accepted > 50 && loaded > 20,
        "{accepted} were let through, {loaded} loaded: the test would show nothing"
    );
}
