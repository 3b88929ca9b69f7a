//! The bridge against what a real KoboldCpp 1.76 answered (`fixtures/koboldcpp`), played as it answers: HTTP/1.0, a
//! connection for each request, streams without a length.

use std::collections::{HashMap, VecDeque};
use std::io::{BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use textgen::bridge::{BridgeEngine, BridgeSettings, Dialect};
use textgen::{Constraint, Finish, NoWatch, TextEngine, TextError, TextRequest};

use crate::bridge::{Asked, Cancelled, request_of};

#[derive(Clone, Debug, Deserialize)]
struct Exchange {
    name: String,
    path: String,
    status: u16,
    answer: String,
}

fn recorded(name: &str) -> Exchange {
    let all: Vec<Exchange> = serde_json::from_str(include_str!("../fixtures/koboldcpp/exchanges.json")).unwrap();
    all.into_iter()
        .find(|exchange| exchange.name == name)
        .unwrap_or_else(|| panic!("`{name}` was not recorded"))
}

/// The text of an answer that did not come as a stream.
fn text_of(name: &str) -> String {
    let answer: Value = serde_json::from_str(&recorded(name).answer).unwrap();
    answer["results"][0]["text"].as_str().unwrap().to_owned()
}

/// What it says of itself.
const ITSELF: [&str; 5] = [
    "model",
    "version",
    "true_max_context_length",
    "max_context_length",
    "max_length",
];

/// A backend that says `ITSELF` and plays `exchanges`: several of one path one after the other, the last again and again.
fn play(exchanges: impl IntoIterator<Item = Exchange>) -> (BridgeEngine, Asked) {
    let mut answers: HashMap<String, VecDeque<Exchange>> = HashMap::new();
    let exchanges: Vec<Exchange> = exchanges.into_iter().collect();
    let named = |path: &str| exchanges.iter().any(|exchange| exchange.path == path);
    let itself = ITSELF
        .map(recorded)
        .into_iter()
        .filter(|exchange| !named(&exchange.path));
    for exchange in itself.collect::<Vec<_>>().into_iter().chain(exchanges) {
        answers.entry(exchange.path.clone()).or_default().push_back(exchange);
    }
    let answers = Arc::new(Mutex::new(answers));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Asked::default();
    let notes = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(stream);
            let Some((path, body)) = request_of(&mut reader) else {
                continue;
            };
            let body = serde_json::from_slice(&body).unwrap_or_default();
            notes.lock().unwrap().push((path.clone(), body));
            let mut answers = answers.lock().unwrap();
            let next = answers.get_mut(&path).and_then(|queue| match queue.len() {
                0 | 1 => queue.front().cloned(),
                _ => queue.pop_front(),
            });
            let (status, answer) = next.map_or((404, String::new()), |next| (next.status, next.answer));
            // Whoever asked may have gone.
            let _ = write!(reader.get_mut(), "HTTP/1.0 {status} So\r\n\r\n{answer}");
        }
    });
    let settings = BridgeSettings {
        url,
        stall_seconds: 5,
        ..BridgeSettings::default()
    };
    (BridgeEngine::new(Dialect::Kobold, settings).unwrap(), asked)
}

fn streamed(name: &str) -> Vec<Exchange> {
    [name, "tokencount"].map(recorded).to_vec()
}

fn request(max_length: u32) -> TextRequest {
    TextRequest::new("One, two, three, four,", max_length, 512)
}

fn times_asked(asked: &Asked, path: &str) -> usize {
    asked.lock().unwrap().iter().filter(|(asked, _)| asked == path).count()
}

#[test]
fn it_says_what_it_is() {
    let (engine, _) = play([]);
    let facts = engine.facts().unwrap();
    assert_eq!(facts.model, "koboldcpp/SmolLM2-135M-Instruct.Q4_1");
    assert_eq!((facts.context_tokens, facts.max_length), (1_024, Some(400)));
    assert_eq!(facts.program.as_deref(), Some("KoboldCpp 1.76"));
}

#[test]
fn its_owners_limits_for_the_horde_are_kept() {
    let owner = Exchange {
        answer: json!({ "value": 768 }).to_string(),
        ..recorded("max_context_length")
    };
    let (engine, _) = play([owner]);
    assert_eq!(engine.facts().unwrap().context_tokens, 768);
}

#[test]
fn a_stream_brings_the_text_that_it_gives_without_one() {
    let check = |stream: &str, whole: &str, stop: &[&str], max_length: u32, finish: Finish| {
        let (engine, _) = play(streamed(stream));
        let request = TextRequest {
            stop: stop.iter().map(|stop| (*stop).to_owned()).collect(),
            ..request(max_length)
        };
        let answer = engine.generate(request, &NoWatch).unwrap();
        assert_eq!((answer.text, answer.finish), (text_of(whole), finish), "{stream}");
        // The one count that was recorded, and not the number of events.
        assert_eq!(answer.tokens, 7);
    };
    check("stream in one piece", "generate", &[], 24, Finish::Eos);
    check(
        "stream to its length",
        "generate to its length",
        &[],
        24,
        Finish::Length,
    );
    let stops = ["ten", ", nine"];
    check(
        "stream to a stop text",
        "generate to a stop text",
        &stops,
        40,
        Finish::Stop,
    );
}

#[test]
fn a_piece_of_several_tokens_is_not_taken_for_speed() {
    let (engine, _) = play(streamed("stream in one piece"));
    let start = Instant::now();
    let answer = engine.generate(request(24), &NoWatch).unwrap();
    let timings = answer.timings;
    assert!(timings.queued + timings.prefill + timings.decode <= start.elapsed());
    assert!(
        timings.decode + Duration::from_micros(1) >= timings.prefill && !timings.decode.is_zero(),
        "{timings:?}"
    );
}

#[test]
fn a_stream_that_ends_without_its_end_broke_off() {
    let mut cut = streamed("stream to its length");
    // Behind the last but one event, and before the first.
    for end in [cut[0].answer.rfind("event:").unwrap(), 0] {
        cut[0].answer.truncate(end);
        let (engine, _) = play(cut.clone());
        let error = engine.generate(request(24), &NoWatch).unwrap_err();
        assert!(
            matches!(&error, TextError::Unavailable(why) if why.contains("broke the answer off")),
            "{error}"
        );
    }
}

#[test]
fn one_that_is_full_is_asked_again_until_it_has_room() {
    let busy = || recorded("busy");
    let (engine, asked) = play([busy(), busy(), recorded("stream in one piece")]);
    assert_eq!(engine.generate(request(24), &NoWatch).unwrap().finish, Finish::Eos);
    assert_eq!(times_asked(&asked, "/api/extra/generate/stream"), 3);
    let (engine, _) = play([busy()]);
    let start = Instant::now();
    let error = engine.generate(request(24), &NoWatch).unwrap_err();
    assert!(matches!(error, TextError::Unavailable(_)), "{error}");
    assert!((5..8).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[test]
fn nobody_waits_for_room_when_the_job_is_not_wanted() {
    let (engine, asked) = play([recorded("busy"), recorded("abort of nothing")]);
    let start = Instant::now();
    let error = engine.generate(request(24), &Cancelled).unwrap_err();
    assert!(matches!(error, TextError::Cancelled), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(times_asked(&asked, "/api/extra/abort"), 1);
}

#[test]
fn without_its_key_nothing_is_served_and_the_reason_is_said() {
    let locked = |error: TextError| {
        let said = matches!(&error, TextError::Unavailable(why) if why.contains("api_key_file"));
        assert!(said, "{error}");
    };
    let (engine, _) = play([recorded("model without the key")]);
    locked(engine.facts().unwrap_err());
    let (engine, _) = play([recorded("stream without the key")]);
    locked(engine.generate(request(24), &NoWatch).unwrap_err());
    let (engine, _) = play([recorded("model with the key")]);
    assert!(engine.facts().is_ok());
}

#[test]
fn its_refusals_speak_against_it() {
    let (engine, _) = play([recorded("bad JSON")]);
    let error = engine.generate(request(24), &NoWatch).unwrap_err();
    assert!(matches!(error, TextError::Failed(_)), "{error}");
}

#[test]
fn a_grammar_that_it_would_ignore_is_refused_before_it() {
    let (engine, asked) = play(streamed("a grammar that cannot be read"));
    let request = TextRequest {
        constraint: Some(Constraint::Gbnf("root ::= (".into())),
        ..request(24)
    };
    let error = engine.generate(request, &NoWatch).unwrap_err();
    assert!(matches!(error, TextError::Grammar(_)), "{error}");
    assert_eq!(times_asked(&asked, "/api/extra/generate/stream"), 0);
}

#[test]
fn it_tells_who_uses_it() {
    let told = |name: &str| {
        let (engine, _) = play([recorded(name)]);
        let usage = engine.usage().unwrap().expect("it tells");
        (usage.busy, usage.waiting, usage.idle.as_millis())
    };
    assert_eq!(told("perf before"), (false, 0, 1_328));
    let (busy, waiting, idle) = told("perf while running");
    assert!(busy && waiting == 0 && idle < 2_000);
    let (busy, waiting, _) = told("perf while somebody waits");
    assert!(busy && waiting == 1);
}
