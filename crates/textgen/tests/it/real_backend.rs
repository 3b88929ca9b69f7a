//! The OpenAI dialect against llama.cpp's own server, started by the test: discovery, text, early end, death.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use textgen::bridge::{BridgeEngine, BridgeSettings, Dialect};
use textgen::sampler::Sampling;
use textgen::{Finish, NoWatch, TextEngine, TextError, TextRequest, Watch};

use crate::llama_server::LlamaServer;

const SLOTS: u32 = 4;
const CONTEXT: u32 = 512;

fn started() -> (LlamaServer, BridgeEngine) {
    let server = LlamaServer::start(&crate::models::smollm2(), SLOTS, CONTEXT);
    let settings = BridgeSettings {
        url: server.url().to_owned(),
        parallel: SLOTS as usize,
        stall_seconds: 30,
        ..BridgeSettings::default()
    };
    let engine = BridgeEngine::new(Dialect::OpenAi, settings).unwrap();
    (server, engine)
}

fn question(text: &str, max_length: u32) -> TextRequest {
    asked(text, max_length, CONTEXT)
}

/// A question of SmolLM2, answered greedily.
pub fn asked(question: &str, max_length: u32, max_context_length: u32) -> TextRequest {
    let prompt = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n");
    TextRequest {
        sampling: Sampling::greedy(),
        ..TextRequest::new(prompt, max_length, max_context_length)
    }
}

fn endless() -> TextRequest {
    never_ending(CONTEXT)
}

/// A text that would go on for hundreds of tokens.
pub fn never_ending(max_context_length: u32) -> TextRequest {
    TextRequest {
        ban_eos: true,
        ..asked("Tell me a long story about a lighthouse.", 400, max_context_length)
    }
}

/// Calls `at` once `tokens` tokens have come; cancels from then on where `cancel`.
pub struct After<F: Fn() + Sync> {
    tokens: u32,
    cancel: bool,
    at: F,
    reached: Mutex<Option<Instant>>,
}

impl<F: Fn() + Sync> After<F> {
    pub fn new(tokens: u32, cancel: bool, at: F) -> Self {
        let reached = Mutex::new(None);
        Self {
            tokens,
            cancel,
            at,
            reached,
        }
    }

    /// How long ago it was called.
    pub fn since(&self) -> Option<Duration> {
        self.reached.lock().unwrap().map(|at| at.elapsed())
    }
}

impl<F: Fn() + Sync> Watch for After<F> {
    fn progress(&self, done: u32, _: u32) {
        let mut reached = self.reached.lock().unwrap();
        if done >= self.tokens && reached.is_none() {
            *reached = Some(Instant::now());
            (self.at)();
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancel && self.reached.lock().unwrap().is_some()
    }
}

/// The server notices that its client is gone between two tokens; far less than what the whole text would take.
fn becomes_idle(server: &LlamaServer) {
    let start = Instant::now();
    while server.busy_slots() > 0 {
        assert!(start.elapsed() < Duration::from_secs(3), "it still writes for nobody");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn llama_server_is_discovered_and_answers_and_ends_early_and_serves_several_at_once() {
    let (server, engine) = started();
    let facts = engine.facts().unwrap();
    assert!(facts.model.contains("SmolLM2-135M-Instruct"), "{facts:?}");
    assert_eq!((facts.context_tokens, facts.slots), (CONTEXT, SLOTS as usize));

    let whole = engine
        .generate(question("What is the capital of France?", 40), &NoWatch)
        .unwrap();
    assert_eq!(
        (whole.text.as_str(), whole.finish),
        ("The capital of France is Paris.", Finish::Eos)
    );
    let short = engine
        .generate(question("What is the capital of France?", 3), &NoWatch)
        .unwrap();
    assert_eq!((short.text.as_str(), short.finish), ("The capital of", Finish::Length));

    // It would refuse a prompt beyond its context, and write less behind one that nearly fills it.
    for words in [900, 430] {
        let prompt = format!("{}Count: one, two, three,", "word ".repeat(words));
        let long = TextRequest {
            ban_eos: true,
            sampling: Sampling::greedy(),
            ..TextRequest::new(prompt, 100, CONTEXT)
        };
        let answer = engine.generate(long, &NoWatch).unwrap();
        assert_eq!((answer.tokens, answer.finish), (100, Finish::Length));
        assert!((300..=CONTEXT - 100).contains(&answer.prompt_tokens), "{answer:?}");
    }

    let stopping = TextRequest {
        stop: vec!["lighthouse".into()],
        ..endless()
    };
    let stopped = engine.generate(stopping, &NoWatch).unwrap();
    assert!(stopped.text.ends_with("lighthouse"), "{stopped:?}");
    assert!((1..200).contains(&stopped.tokens), "{stopped:?}");
    assert_eq!(stopped.finish, Finish::Stop);
    becomes_idle(&server);

    let watch = After::new(3, true, || ());
    assert!(matches!(engine.generate(endless(), &watch), Err(TextError::Cancelled)));
    becomes_idle(&server);

    // All four write at the same moment: that is when the last of them has its first token.
    let most = Mutex::new(0);
    let count = || {
        let busy = server.busy_slots();
        let mut most = most.lock().unwrap();
        *most = busy.max(*most);
    };
    let asked = [
        ("France", "Paris"),
        ("Italy", "Rome"),
        ("Japan", "Tokyo"),
        ("Germany", "Berlin"),
    ];
    std::thread::scope(|scope| {
        for (country, capital) in asked {
            let (engine, count) = (&engine, &count);
            scope.spawn(move || {
                let request = TextRequest {
                    ban_eos: true,
                    ..question(&format!("What is the capital of {country}?"), 48)
                };
                let answer = engine.generate(request, &After::new(1, false, count)).unwrap();
                assert!(answer.text.contains(capital), "{answer:?}");
                assert_eq!((answer.tokens, answer.finish), (48, Finish::Length));
            });
        }
    });
    assert_eq!(most.into_inner().unwrap(), SLOTS as usize);
}

#[test]
fn a_backend_that_dies_in_the_middle_ends_the_request_at_once_and_nothing_is_offered() {
    let (server, engine) = started();
    engine.facts().unwrap();
    let server = Mutex::new(server);
    let watch = After::new(5, false, || server.lock().unwrap().kill());
    let error = engine.generate(endless(), &watch).unwrap_err();
    let since = watch.reached.lock().unwrap().expect("five tokens came").elapsed();
    assert!(matches!(error, TextError::Unavailable(_)), "{error}");
    assert!(since < Duration::from_secs(2), "it took {since:?}");
    // What the backend said a second ago is not believed any more.
    let error = engine.facts().unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
}
