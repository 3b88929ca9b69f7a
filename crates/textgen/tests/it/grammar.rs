//! Answers that keep to a grammar or a schema, from a model whose weights mean nothing and from a real one.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use textgen::llama::{LlamaEngine, LlamaSettings};
use textgen::sampler::Sampling;
use textgen::{Constraint, Finish, NoWatch, TextEngine, TextError, TextRequest};

use crate::tiny_gguf::{CONTEXT, tiny};

fn tiny_engine() -> (TempDir, LlamaEngine) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("tiny.gguf");
    tiny().write(&path);
    let settings = LlamaSettings {
        slots: 2,
        threads: 1,
        prefill_tokens: 64,
        ..LlamaSettings::for_model(&path)
    };
    (folder, LlamaEngine::load(settings, |_| true).unwrap())
}

fn real_engine() -> LlamaEngine {
    let settings = LlamaSettings {
        slots: 1,
        context_tokens: 1_024,
        threads: 1,
        prefill_tokens: 256,
        ..LlamaSettings::for_model(crate::models::smollm2())
    };
    LlamaEngine::load(settings, |_| true).unwrap()
}

fn gbnf(prompt: &str, grammar: &str, seed: u64) -> TextRequest {
    TextRequest {
        constraint: Some(Constraint::Gbnf(grammar.to_owned())),
        sampling: Sampling::neutral(),
        seed: Some(seed),
        ..TextRequest::new(prompt, 60, CONTEXT)
    }
}

#[test]
fn noise_keeps_to_a_grammar_whatever_the_seed() {
    let (_folder, engine) = tiny_engine();
    let date = r#"root ::= digit{4} "-" [01] digit ("-" digit digit)?
digit ::= [0-9]"#;
    let is_date = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        let are_digits = parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_digit()));
        let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        are_digits && (lengths == [4, 2] || lengths == [4, 2, 2]) && parts[1].starts_with(['0', '1'])
    };
    // Balanced brackets are beyond any regular expression; two alternatives begin alike.
    let nested = r#"root ::= "ab" "c" | "a" group "d"
group ::= "(" group? ")""#;
    let is_nested = |text: &str| {
        let n = text.matches('(').count();
        text == "abc" || text == format!("a{}{}d", "(".repeat(n), ")".repeat(n))
    };
    let mut depths = Vec::new();
    for seed in 0..12 {
        let answer = engine.generate(gbnf("abc", date, seed), &NoWatch).unwrap();
        assert!(is_date(&answer.text), "{:?}", answer.text);
        assert_eq!(answer.finish, Finish::Eos);
        let answer = engine.generate(gbnf("abc", nested, seed), &NoWatch).unwrap();
        assert!(is_nested(&answer.text) || answer.finish == Finish::Length, "{answer:?}");
        depths.push(answer.text.matches('(').count());
    }
    assert!(
        depths.iter().any(|depth| *depth > 0),
        "only one alternative was ever taken: {depths:?}"
    );
}

#[test]
fn characters_of_several_bytes_come_whole() {
    let (_folder, engine) = tiny_engine();
    for seed in 0..6 {
        let answer = engine
            .generate(gbnf("abc", "root ::= [α-ω]{3} \"€\"", seed), &NoWatch)
            .unwrap();
        let characters: Vec<char> = answer.text.chars().collect();
        assert!(characters.len() == 4 && characters[3] == '€', "{:?}", answer.text);
        assert!(
            characters[..3].iter().all(|c| ('α'..='ω').contains(c)),
            "{:?}",
            answer.text
        );
    }
}

#[test]
fn a_banned_end_does_not_keep_a_complete_form_from_ending() {
    let (_folder, engine) = tiny_engine();
    let request = TextRequest {
        ban_eos: true,
        ..gbnf("abc", r#"root ::= "yes""#, 1)
    };
    let answer = engine.generate(request, &NoWatch).unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("yes", Finish::Eos));
}

#[test]
fn a_neighbour_with_a_grammar_changes_nothing_for_others() {
    let (_folder, engine) = tiny_engine();
    let free = || TextRequest {
        ban_eos: true,
        seed: Some(3),
        sampling: Sampling::neutral(),
        ..TextRequest::new("a b c", 20, CONTEXT)
    };
    let alone = engine.generate(free(), &NoWatch).unwrap();
    let together = std::thread::scope(|scope| {
        let bound = scope.spawn(|| engine.generate(gbnf("x y", "root ::= [a-c]{40}", 9), &NoWatch));
        let other = engine.generate(free(), &NoWatch).unwrap();
        assert!(
            bound
                .join()
                .unwrap()
                .unwrap()
                .text
                .bytes()
                .all(|b| (b'a'..=b'c').contains(&b))
        );
        other
    });
    assert_eq!(together.text, alone.text);
}

#[test]
fn bombs_are_refused_soon_and_the_engine_lives_on() {
    let (_folder, engine) = tiny_engine();
    let deep = format!("root ::= {}\"a\"{}", "(".repeat(60_000), ")".repeat(5));
    let doubling: String = (0..60).map(|n| format!("r{n} ::= r{0} r{0}\n", n + 1)).collect();
    let doubling = format!("root ::= r0\n{doubling}r60 ::= \"a\"?\n");
    let bombs = [
        deep.as_str(),
        "root ::= root",
        "root ::= root \"a\" | root \"b\"",
        "root ::= (((\"a\"?)*)*)*",
        "root ::= \"a\"{1000}{1000}",
        "root ::= [^\\x00-\\U0010ffff]",
        "not a grammar at all",
        "root ::= x",
        doubling.as_str(),
    ];
    for grammar in bombs {
        let start = Instant::now();
        let answer = engine.generate(gbnf("abc", grammar, 1), &NoWatch);
        let took = start.elapsed();
        // Some are harmless here; none may hang, end the process or answer with anything else.
        assert!(took < Duration::from_secs(20), "{took:?} for {:.40}", grammar);
        match answer {
            Ok(answer) => assert!(answer.text.bytes().all(|b| b == b'a' || b == b'b'), "{answer:?}"),
            Err(error) => assert!(matches!(error, TextError::Grammar(_)), "{error}"),
        }
    }
    let answer = engine.generate(gbnf("abc", r#"root ::= "fine""#, 1), &NoWatch).unwrap();
    assert_eq!(answer.text, "fine");
}

#[test]
fn an_error_about_a_grammar_holds_nothing_of_it() {
    let (_folder, engine) = tiny_engine();
    let error = engine
        .generate(gbnf("abc", "root ::= \"mango", 1), &NoWatch)
        .unwrap_err();
    assert!(!error.to_string().contains("mango"), "{error}");
}

#[test]
fn a_real_model_answers_within_a_choice_and_a_schema() {
    let engine = real_engine();
    let ask = |question: &str, begun: &str, constraint: Constraint| {
        let prompt = format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{begun}");
        let request = TextRequest {
            constraint: Some(constraint),
            sampling: Sampling::greedy(),
            ..TextRequest::new(prompt, 100, 1_024)
        };
        engine.generate(request, &NoWatch).unwrap()
    };
    let choice = r#"root ::= " " ("London" | "Paris" | "Rome")"#;
    let begun = "The capital of France is";
    let answer = ask("What is the capital of France?", begun, Constraint::Gbnf(choice.into()));
    assert_eq!((answer.text.as_str(), answer.finish), (" Paris", Finish::Eos));

    let schema = json!({
        "type": "object",
        "properties": {
            "city": { "type": "string", "maxLength": 20 },
            "inhabitants": { "type": "integer", "minimum": 0 },
            "is_capital": { "type": "boolean" },
        },
        "required": ["city", "inhabitants", "is_capital"],
        "additionalProperties": false,
    });
    let answer = ask(
        "Describe Paris, the capital of France, as JSON.",
        "",
        Constraint::JsonSchema(schema),
    );
    let value: Value = serde_json::from_str(&answer.text).unwrap_or_else(|error| panic!("{error}: {:?}", answer.text));
    assert!(
        value["city"].is_string() && value["inhabitants"].is_u64() && value["is_capital"].is_boolean(),
        "{value}"
    );
    assert_eq!(value.as_object().map(serde_json::Map::len), Some(3));
}

#[test]
fn schemas_that_nothing_fits_or_that_are_none_are_refused() {
    let (_folder, engine) = tiny_engine();
    let ask = |schema: Value| {
        let request = TextRequest {
            constraint: Some(Constraint::JsonSchema(schema)),
            ..gbnf("abc", "", 1)
        };
        engine.generate(request, &NoWatch)
    };
    for schema in [
        json!(false),
        json!({ "type": "teapot" }),
        json!({ "$ref": "https://elsewhere.example/schema" }),
    ] {
        assert!(matches!(ask(schema.clone()), Err(TextError::Grammar(_))), "{schema}");
    }
    let huge = json!({ "enum": (0..60_000).map(|n| format!("value {n}")).collect::<Vec<_>>() });
    assert!(matches!(ask(huge), Err(TextError::Grammar(_))));
}
