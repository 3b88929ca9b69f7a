//! The bridge before a real KoboldCpp: `just check-kobold PATH`. What one said once is played by `recorded_kobold`.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use textgen::bridge::{BridgeEngine, BridgeSettings, Dialect};
use textgen::sampler::{Dry, Mirostat, Sampling, Step, Xtc};
use textgen::{Constraint, Finish, NoWatch, TextAnswer, TextEngine, TextError, TextRequest};

use crate::kobold_server::KoboldServer;
use crate::real_backend::{After, asked, never_ending};

const CONTEXT: u32 = 1_024;

fn bridge(server: &KoboldServer, parallel: usize, key: PathBuf) -> BridgeEngine {
    let settings = BridgeSettings {
        url: server.url(),
        parallel,
        api_key_file: key,
        stall_seconds: 30,
        ..BridgeSettings::default()
    };
    BridgeEngine::new(Dialect::Kobold, settings).unwrap()
}

fn started(parallel: usize, more: &[&str]) -> (KoboldServer, BridgeEngine) {
    let server = KoboldServer::start(&crate::models::smollm2(), more);
    let engine = bridge(&server, parallel, PathBuf::new());
    (server, engine)
}

fn question(text: &str, max_length: u32) -> TextRequest {
    asked(text, max_length, CONTEXT)
}

fn endless() -> TextRequest {
    never_ending(CONTEXT)
}

/// It ends a running text between two tokens; far less than what the whole would take.
fn becomes_idle(engine: &BridgeEngine) {
    let start = Instant::now();
    while engine.usage().unwrap().expect("it tells").busy {
        assert!(start.elapsed() < Duration::from_secs(3), "it still writes for nobody");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What its own route without a stream gives for the same.
fn whole(server: &KoboldServer, request: &TextRequest) -> String {
    let s = &request.sampling;
    let body = json!({
        "prompt": request.prompt, "max_length": request.max_length, "max_context_length": request.max_context_length,
        "temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "rep_pen": s.rep_pen,
        "stop_sequence": request.stop, "sampler_seed": request.seed.unwrap_or(7), "use_default_badwordsids": request.ban_eos,
    });
    let answer = server.post("/api/v1/generate", &body.to_string()).expect("an answer");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    answer["results"][0]["text"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs a KoboldCpp: `just check-kobold PATH`"]
fn real_kobold_is_discovered_and_its_texts_come_as_it_gives_them() {
    let (server, engine) = started(1, &[]);
    let facts = engine.facts().unwrap();
    assert_eq!(facts.model, "koboldcpp/SmolLM2-135M-Instruct.Q4_1");
    assert_eq!(facts.context_tokens, CONTEXT);
    assert!(facts.max_length.is_some_and(|most| most >= 100), "{facts:?}");
    assert!(facts.program.is_some_and(|program| program.starts_with("KoboldCpp 1.")));

    let paris = engine
        .generate(question("What is the capital of France?", 40), &NoWatch)
        .unwrap();
    assert_eq!(
        (paris.text.as_str(), paris.finish),
        ("The capital of France is Paris.", Finish::Eos)
    );
    // Its own word for the end is among its tokens, and not in the text.
    assert!((7..=8).contains(&paris.tokens), "{paris:?}");

    let lively = Sampling {
        temperature: 0.9,
        top_k: 60,
        top_p: 0.95,
        rep_pen: 1.1,
        ..Sampling::default()
    };
    let story = |seed: u64| TextRequest {
        sampling: lively.clone(),
        seed: Some(seed),
        ..question("Tell a story with emoji 🦊 and 漢字.", 60)
    };
    for seed in 1..4 {
        let request = story(seed);
        let answer = engine.generate(request.clone(), &NoWatch).unwrap();
        assert_eq!(answer.text, whole(&server, &request), "seed {seed}");
        assert!(
            answer.finish == Finish::Eos || answer.tokens.abs_diff(60) <= 2,
            "{answer:?}"
        );
    }

    // A stop text is the end of the answer; KoboldCpp leaves what its token holds behind it.
    let counting = TextRequest {
        sampling: Sampling::greedy(),
        stop: vec![", nine".into(), "n, t".into()],
        seed: Some(7),
        ..TextRequest::new("One, two, three, four,", 60, CONTEXT)
    };
    let stopped = engine.generate(counting.clone(), &NoWatch).unwrap();
    let theirs = whole(&server, &counting);
    assert_eq!(stopped.finish, Finish::Stop);
    assert!(
        stopped.text.ends_with(", nine") && theirs.starts_with(&stopped.text),
        "{stopped:?} {theirs}"
    );
}

#[test]
#[ignore = "needs a KoboldCpp: `just check-kobold PATH`"]
fn real_kobold_takes_every_parameter() {
    let (server, engine) = started(1, &[]);
    let base = Sampling::default;
    let cases: Vec<(&str, Sampling)> = vec![
        ("plain", base()),
        ("top_k off", Sampling { top_k: 0, ..base() }),
        ("top_a", Sampling { top_a: 0.2, ..base() }),
        ("min_p", Sampling { min_p: 0.1, ..base() }),
        ("tfs", Sampling { tfs: 0.9, ..base() }),
        ("typical", Sampling { typical: 0.9, ..base() }),
        (
            "dynatemp",
            Sampling {
                dynatemp_range: 0.5,
                dynatemp_exponent: 1.5,
                ..base()
            },
        ),
        (
            "smoothing",
            Sampling {
                smoothing_factor: 0.3,
                ..base()
            },
        ),
        (
            "rep_pen",
            Sampling {
                rep_pen: 1.3,
                rep_pen_range: 512,
                rep_pen_slope: 0.7,
                ..base()
            },
        ),
        (
            "presence",
            Sampling {
                presence_penalty: 0.5,
                ..base()
            },
        ),
        (
            "order",
            Sampling {
                order: vec![Step::Temperature, Step::TopP, Step::TopK, Step::RepPen],
                ..base()
            },
        ),
        (
            "xtc",
            Sampling {
                xtc: Xtc {
                    threshold: 0.1,
                    probability: 0.5,
                },
                ..base()
            },
        ),
        (
            "dry",
            Sampling {
                dry: Dry {
                    multiplier: 0.8,
                    ..Dry::default()
                },
                ..base()
            },
        ),
        (
            "mirostat",
            Sampling {
                mirostat: Some(Mirostat {
                    second: true,
                    tau: 5.0,
                    eta: 0.1,
                }),
                ..base()
            },
        ),
        (
            "bias",
            Sampling {
                logit_bias: vec![(7_042, -100.0), (4_000_000_000, 5.0)],
                ..base()
            },
        ),
        ("greedy", Sampling::greedy()),
    ];
    for (name, sampling) in cases {
        let request = TextRequest {
            sampling,
            seed: Some(5),
            ban_eos: true,
            ..question("Name a fruit.", 16)
        };
        let answer = engine
            .generate(request, &NoWatch)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            !answer.text.is_empty() && answer.finish == Finish::Length,
            "{name}: {answer:?}"
        );
    }
    // What is honoured shows: a grammar, a ban, and a bias against the only likely word.
    let yes_or_no = TextRequest {
        constraint: Some(Constraint::Gbnf("root ::= \"maybe\" | \"perhaps\"".into())),
        ..question("Is water wet?", 16)
    };
    let kept = engine.generate(yes_or_no, &NoWatch).unwrap().text;
    assert!(["maybe", "perhaps"].contains(&kept.as_str()), "{kept}");
    let biased = TextRequest {
        sampling: Sampling {
            logit_bias: vec![(7_042, -100.0)],
            ..Sampling::greedy()
        },
        ..question("What is the capital of France?", 16)
    };
    assert!(!engine.generate(biased, &NoWatch).unwrap().text.contains(" Paris"));
    let said = server.said();
    for word in ["Traceback", "ERROR", "Skipped", "Ignored"] {
        assert!(!said.contains(word), "{said}");
    }
}

#[test]
#[ignore = "needs a KoboldCpp: `just check-kobold PATH`"]
fn real_kobold_is_ended_early_and_queues_and_tells_who_uses_it() {
    let (server, engine) = started(3, &[]);
    let stopping = TextRequest {
        stop: vec!["lighthouse".into()],
        ..endless()
    };
    let stopped = engine.generate(stopping, &NoWatch).unwrap();
    assert!(
        stopped.text.ends_with("lighthouse") && stopped.tokens < 200,
        "{stopped:?}"
    );
    becomes_idle(&engine);
    // More stop texts than it looks at itself.
    let mut stop: Vec<String> = (0..60).map(|count| format!("never {count}")).collect();
    stop.push("lighthouse".into());
    let late = engine.generate(TextRequest { stop, ..endless() }, &NoWatch).unwrap();
    assert!(late.text.ends_with("lighthouse") && late.tokens < 200, "{late:?}");
    becomes_idle(&engine);
    assert!(matches!(
        engine.generate(endless(), &After::new(3, true, || ())),
        Err(TextError::Cancelled)
    ));
    becomes_idle(&engine);

    // Three at once: it runs one after the other, and says how many wait.
    let most = Mutex::new(0);
    let look = || {
        let perf: Value = serde_json::from_str(&server.get("/api/extra/perf").expect("it answers")).unwrap();
        let waiting = perf["queue"].as_u64().unwrap();
        let mut most = most.lock().unwrap();
        *most = waiting.max(*most);
    };
    let answers: Vec<TextAnswer> = std::thread::scope(|scope| {
        let running: Vec<_> = ["France", "Italy", "Germany"]
            .into_iter()
            .map(|country| {
                let (engine, look) = (&engine, &look);
                let request = TextRequest {
                    ban_eos: true,
                    ..question(&format!("What is the capital of {country}?"), 40)
                };
                scope.spawn(move || engine.generate(request, &After::new(1, false, look)).unwrap())
            })
            .collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (answer, capital) in answers.iter().zip(["Paris", "Rome", "Berlin"]) {
        assert!(answer.text.contains(capital), "{answer:?}");
    }
    assert!((1..=2).contains(&*most.lock().unwrap()));
    assert!(
        answers
            .iter()
            .any(|answer| answer.timings.queued > Duration::from_millis(300)),
        "{answers:?}"
    );

    // Idleness counts from the last request of anybody.
    std::thread::sleep(Duration::from_secs(2));
    let idle = engine.usage().unwrap().expect("it tells").idle;
    whole(&server, &question("Hello.", 8));
    let used = engine.usage().unwrap().expect("it tells").idle;
    assert!(idle >= Duration::from_secs(2) && used < idle, "{idle:?} {used:?}");
}

#[test]
#[ignore = "needs a KoboldCpp: `just check-kobold PATH`"]
fn real_kobold_without_a_queue_serves_two_at_once_all_the_same() {
    let (_server, engine) = started(2, &["--multiuser", "0"]);
    std::thread::scope(|scope| {
        for (country, capital) in [("France", "Paris"), ("Italy", "Rome")] {
            let engine = &engine;
            scope.spawn(move || {
                let request = question(&format!("What is the capital of {country}?"), 40);
                let answer = engine.generate(request, &NoWatch).unwrap();
                assert!(answer.text.contains(capital), "{answer:?}");
            });
        }
    });
}

#[test]
#[ignore = "needs a KoboldCpp: `just check-kobold PATH`"]
fn real_kobold_with_a_key_wants_it() {
    let (server, without) = started(1, &["--password", "secret"]);
    let error = without.facts().unwrap_err();
    assert!(error.to_string().contains("wants another key"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "secret\n").unwrap();
    let with = bridge(&server, 1, file);
    assert!(!with.generate(question("Hello.", 8), &NoWatch).unwrap().text.is_empty());
}

#[test]
#[ignore = "needs a KoboldCpp: `just check-kobold PATH`"]
fn real_kobold_that_dies_in_the_middle_ends_the_request_at_once() {
    let (server, engine) = started(1, &[]);
    engine.facts().unwrap();
    let server = Mutex::new(server);
    let watch = After::new(5, false, || server.lock().unwrap().kill());
    let error = engine.generate(endless(), &watch).unwrap_err();
    let since = watch.since().expect("five pieces came");
    assert!(matches!(error, TextError::Unavailable(_)), "{error}");
    assert!(since < Duration::from_secs(2), "it took {since:?}");
    let error = engine.facts().unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    server.lock().unwrap().restart();
    let paris = engine
        .generate(question("What is the capital of France?", 40), &NoWatch)
        .unwrap();
    assert_eq!(paris.text, "The capital of France is Paris.");
}
