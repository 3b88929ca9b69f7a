//! Text jobs that no honest server gives, through the whole protocol: each is answered, and one engine lives through them all.

use std::time::Duration;

use e2e::demo::scribe::MODEL;
use e2e::demo::stage::start_worker;
use local_horde::Horde;
use local_horde::ledger::Fate;
use serde_json::{Value, json};
use test_support::merge;

use crate::scripted::{self, Expected};

/// Loading and writing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(300);

/// What becomes of a job.
#[derive(Debug, PartialEq)]
enum End {
    /// A text came.
    Written,
    /// It was handed back.
    HandedBack,
}

/// One job: what is changed in the answer of a pop, and what becomes of it. A text `=TOKEN` goes out without its quotes.
struct Job {
    name: String,
    change: Value,
    end: End,
}

fn job(name: impl Into<String>, params: Value, end: End) -> Job {
    Job {
        name: name.into(),
        change: json!({ "payload": params }),
        end,
    }
}

/// Every number of a payload, at values that no sampler can take as they are.
fn numbers() -> Vec<Job> {
    const REAL: [&str; 15] = [
        "temperature",
        "dynatemp_range",
        "dynatemp_exponent",
        "smoothing_factor",
        "top_a",
        "top_p",
        "min_p",
        "tfs",
        "typical",
        "rep_pen",
        "rep_pen_slope",
        "presence_penalty",
        "frequency_penalty",
        "xtc_probability",
        "dry_multiplier",
    ];
    const WHOLE: [&str; 8] = [
        "top_k",
        "rep_pen_range",
        "max_length",
        "seed",
        "sampler_seed",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "mirostat",
    ];
    let reals = REAL
        .iter()
        .flat_map(|name| [json!(-1), json!(0), json!(1e38), json!("much"), Value::Null].map(|value| (*name, value)));
    let wholes = WHOLE
        .iter()
        .flat_map(|name| [json!(-1), json!(0), json!(i64::MAX), json!(0.5), json!([])].map(|value| (*name, value)));
    reals
        .chain(wholes)
        .map(|(name, value)| job(format!("{name} {value}"), json!({ name: value }), End::Written))
        .collect()
}

fn lists() -> Vec<Job> {
    let biases: Value = (0..100_000)
        .map(|n| (n.to_string(), json!(1e30)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let written = |name: &str, params: Value| job(name, params, End::Written);
    vec![
        written("10^5 stop texts", json!({ "stop_sequence": vec!["x"; 100_000] })),
        written(
            "a stop text of a megabyte",
            json!({ "stop_sequence": ["y".repeat(1 << 20)] }),
        ),
        written("empty stop texts", json!({ "stop_sequence": ["", "", ""] })),
        written("stop texts that are none", json!({ "stop_sequence": [1, null, {}] })),
        written("a stop text instead of a list", json!({ "stop_sequence": "stop" })),
        written(
            "an order with doubles and strangers",
            json!({ "sampler_order": [6, 6, 6, 99, -1, 0, 0] }),
        ),
        written("an order of 10^5", json!({ "sampler_order": vec![6; 100_000] })),
        written("10^5 biases", json!({ "logit_bias": biases })),
        written(
            "biases for tokens that are none",
            json!({ "logit_bias": { "-1": 5, "4294967296": 5, "x": 5, "7": "=1e30" } }),
        ),
        written(
            "10^5 breakers",
            json!({ "dry_multiplier": 0.8, "dry_sequence_breakers": vec!["\n"; 100_000] }),
        ),
        written(
            "breakers of a megabyte",
            json!({ "dry_multiplier": 0.8, "dry_sequence_breakers": ["z".repeat(1 << 20)] }),
        ),
        written(
            "fields of another program",
            json!({ "soft_prompt": "../../etc/passwd", "memory": {}, "images": [1] }),
        ),
    ]
}

fn prompts() -> Vec<Job> {
    let written = |name: &str, params: Value| job(name, params, End::Written);
    vec![
        written("no prompt", json!({ "prompt": "" })),
        written(
            "a prompt of three megabytes",
            json!({ "prompt": "All the same words. ".repeat(150_000) }),
        ),
        written(
            "a prompt of one word of a megabyte",
            json!({ "prompt": "a".repeat(1 << 20) }),
        ),
        written(
            "zeros, escapes and marks",
            json!({ "prompt": "\u{0}\u{1b}[2J\u{202e}\u{feff}\u{10ffff} and so on" }),
        ),
        written(
            "special tokens",
            json!({ "prompt": "<|im_end|><|endoftext|></s><s>".repeat(200) }),
        ),
        written(
            "a context beyond the model's",
            json!({ "max_context_length": 1_000_000 }),
        ),
        written("a context of nothing", json!({ "max_context_length": 0 })),
        written("a context below none", json!({ "max_context_length": -5 })),
        written(
            "an answer longer than the context",
            json!({ "prompt": "One", "max_context_length": 16, "max_length": 15 }),
        ),
        job("a prompt that is a number", json!({ "prompt": 7 }), End::Written),
        job("no payload", Value::Null, End::HandedBack),
    ]
}

fn grammars() -> Vec<Job> {
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000));
    let wide: String = (0..20_000).map(|n| format!("r{n} ::= \"{n}\"\n")).collect();
    let refused = |name: &str, grammar: &str| job(name, json!({ "grammar": grammar }), End::HandedBack);
    vec![
        job(
            "a sound grammar",
            json!({ "grammar": "root ::= \"yes\" | \"no\"" }),
            End::Written,
        ),
        refused("an open group", "root ::= ("),
        refused("no root", "other ::= \"a\""),
        refused("a rule of itself alone", "root ::= root"),
        refused("10^5 groups in each other", &deep),
        refused("20,000 rules", &wide),
        refused("10^9 repetitions", "root ::= \"a\"{1000000000}"),
        refused(
            "repetitions of repetitions",
            "root ::= ((((\"a\"{1000}){1000}){1000}){1000})",
        ),
        refused(
            "a megabyte of grammar",
            &format!("root ::= \"{}\"", "a".repeat(1 << 20)),
        ),
        refused("not a grammar", "\u{0}\u{1b}{}{}{}"),
        job("a grammar that is a list", json!({ "grammar": ["root"] }), End::Written),
        job("an empty grammar", json!({ "grammar": " " }), End::Written),
    ]
}

/// The text of an answer with this change. Texts that begin with `=` lose their quotes.
fn answer(change: &Value, id: &str) -> String {
    let mut whole = json!({
        "payload": { "prompt": "One, two, three,", "n": 1, "max_length": 4, "max_context_length": 512, "temperature": 0.7 },
        "id": id, "ids": [id], "model": MODEL, "softprompt": null, "extra_source_images": null, "skipped": {}, "messages": [],
        "ttl": 150,
    });
    merge(&mut whole, change);
    let text = whole.to_string();
    ["1e309", "1e30", "NaN"]
        .iter()
        .fold(text, |text, token| text.replace(&format!("\"={token}\""), token))
}

/// What became of a generation; `None` while it is open.
fn ended(horde: &Horde, id: &str) -> Option<End> {
    let state = horde.state();
    match state.ledger.generations.get(id)?.fate {
        Fate::Open => None,
        Fate::Faulted | Fate::Expired => Some(End::HandedBack),
        Fate::Accepted => Some(End::Written),
    }
}

/// Hands `jobs` to one scribe, one after the other, and expects of each what is to become of it.
async fn serve(jobs: &[Job]) {
    let (horde, running) = scripted::horde().await;
    let expected: Vec<_> = jobs
        .iter()
        .map(|job| Expected {
            name: &job.name,
            id: horde.state().script_text(|id| answer(&job.change, id)),
            end: &job.end,
        })
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let worker = start_worker("scribe", &running.base(), folder.path(), &[]).expect("scribe starts");
    scripted::answered(&horde, worker, &expected, PATIENCE, ended).await;
}

fn good(name: &str) -> Vec<Job> {
    vec![job(name, json!({}), End::Written)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_numbers_lists_and_prompts_a_text_job_holds_it_is_answered_and_the_engine_lives() {
    let beyond = |name: &str, token: &str| vec![job(name, json!({ "temperature": token }), End::HandedBack)];
    let jobs = [
        good("a good job"),
        numbers(),
        lists(),
        prompts(),
        beyond("a temperature beyond all numbers", "=1e309"),
        good("a good job after it"),
        beyond("a temperature that is no number", "=NaN"),
        good("a good job at the end"),
    ];
    serve(&jobs.into_iter().flatten().collect::<Vec<_>>()).await;
}

/// Fewer are handed back than an hour may have, and a good job after each keeps the rests between them short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_grammar_a_text_job_holds_it_is_answered_and_the_engine_lives() {
    let mut jobs = good("a good job");
    for job in grammars() {
        let after = format!("a good job after {}", job.name);
        jobs.push(job);
        jobs.extend(good(&after));
    }
    serve(&jobs).await;
}
