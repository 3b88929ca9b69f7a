//! A real language model answers real requests. `./x` fetches it; `HORDE_WORKERS_MODELS` says where it lies.

use textgen::llama::{LlamaEngine, LlamaSettings};
use textgen::sampler::Sampling;
use textgen::{Finish, Formatting, NoWatch, TextAnswer, TextEngine, TextRequest};

fn engine(slots: u32) -> LlamaEngine {
    let settings = LlamaSettings {
        slots,
        context_tokens: 2_048,
        // Several tests run at once, and threads of llama.cpp that wait for each other burn what the others need.
        threads: 1,
        prefill_tokens: 256,
        ..LlamaSettings::for_model(crate::models::smollm2())
    };
    LlamaEngine::load(settings, |_| true).unwrap()
}

fn chat(question: &str) -> String {
    format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
}

fn greedy(prompt: String, max_length: u32) -> TextRequest {
    TextRequest {
        sampling: Sampling::greedy(),
        ..TextRequest::new(prompt, max_length, 2_048)
    }
}

fn ask(engine: &LlamaEngine, request: TextRequest) -> TextAnswer {
    engine.generate(request, &NoWatch).unwrap()
}

#[test]
fn the_capital_of_france_is_paris_and_the_answer_ends_by_itself() {
    let engine = engine(1);
    let answer = ask(&engine, greedy(chat("What is the capital of France?"), 60));
    assert_eq!(answer.text, "The capital of France is Paris.");
    assert_eq!(answer.finish, Finish::Eos);
    assert!(answer.prompt_tokens > 10 && answer.tokens < 20, "{answer:?}");
    // With the end token banned it goes on to the last token.
    let forced = TextRequest {
        ban_eos: true,
        ..greedy(chat("What is the capital of France?"), 30)
    };
    let forced = ask(&engine, forced);
    assert_eq!((forced.finish, forced.tokens), (Finish::Length, 30));
    assert!(forced.text.starts_with("The capital of France is Paris."), "{forced:?}");
}

#[test]
fn eight_prompts_at_once_each_get_their_own_answer() {
    const FACTS: [(&str, &str); 8] = [
        ("France", "Paris"),
        ("Italy", "Rome"),
        ("Japan", "Tokyo"),
        ("Germany", "Berlin"),
        ("Spain", "Madrid"),
        ("Egypt", "Cairo"),
        ("Russia", "Moscow"),
        ("Greece", "Athens"),
    ];
    let engine = engine(8);
    let request = |country: &str| greedy(chat(&format!("What is the capital of {country}?")), 24);
    let serial: Vec<String> = FACTS
        .iter()
        .map(|(country, _)| ask(&engine, request(country)).text)
        .collect();
    let at_once: Vec<TextAnswer> = std::thread::scope(|scope| {
        let (engine, request) = (&engine, &request);
        let workers: Vec<_> = FACTS
            .iter()
            .map(|(country, _)| scope.spawn(move || ask(engine, request(country))))
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let mut equal = 0;
    for (((country, capital), alone), answer) in FACTS.iter().zip(&serial).zip(&at_once) {
        assert!(alone.contains(capital), "{country} alone: {alone}");
        assert!(answer.text.contains(capital), "{country} among others: {answer:?}");
        equal += usize::from(*alone == answer.text);
    }
    // The size of a batch changes rounding, and greedy text may then take another turn after some tokens.
    assert!(equal >= 6, "only {equal} of 8 answers are the serial ones: {at_once:?}");
}

#[test]
fn a_stop_text_over_several_tokens_ends_the_answer_and_stays_in_it() {
    let engine = engine(1);
    let stopped = |include_stop| {
        let request = TextRequest {
            stop: vec!["of France is Par".into(), "never written".into()],
            include_stop,
            ..greedy(chat("What is the capital of France?"), 60)
        };
        ask(&engine, request)
    };
    let kept = stopped(true);
    assert_eq!(
        (kept.text.as_str(), kept.finish),
        ("The capital of France is Par", Finish::Stop)
    );
    assert_eq!(stopped(false).text, "The capital ");
}

#[test]
fn characters_of_several_tokens_come_whole_at_every_length() {
    let engine = engine(1);
    let prompt = chat("Repeat exactly: 🦀漢字🎉 日本語");
    for max_length in [1, 2, 3, 4, 5, 7, 9, 12] {
        let answer = ask(&engine, greedy(prompt.clone(), max_length));
        assert!(!answer.text.contains('\u{fffd}'), "{max_length}: {:?}", answer.text);
        assert!(!answer.text.contains("im_start") && !answer.text.contains("Repeat exactly:\u{20}🦀漢字🎉 日本語<"));
    }
    // The model writes them when they are likely enough.
    let answer = ask(&engine, greedy("🦀🎉🦀🎉🦀🎉🦀🎉🦀🎉".into(), 12));
    assert!(
        answer.text.contains('🦀') || answer.text.contains('🎉'),
        "{:?}",
        answer.text
    );
}

#[test]
fn a_seed_reproduces_a_sampled_text_also_beside_others() {
    let engine = engine(4);
    let request = |seed| TextRequest {
        seed: Some(seed),
        ..TextRequest::new(chat("Tell me a story about a lighthouse."), 40, 2_048)
    };
    let first = ask(&engine, request(1));
    assert_eq!(ask(&engine, request(1)).text, first.text);
    assert_ne!(ask(&engine, request(2)).text, first.text);
    // Beside others the size of the batch changes rounding, and with it the text after some tokens; its random numbers and its
    // prompt are its own.
    let beside = std::thread::scope(|scope| {
        let one = scope.spawn(|| ask(&engine, request(1)));
        for seed in 2..5 {
            let (engine, request) = (&engine, &request);
            scope.spawn(move || ask(engine, request(seed)));
        }
        one.join().unwrap().text
    });
    let common = first
        .text
        .chars()
        .zip(beside.chars())
        .take_while(|(a, b)| a == b)
        .count();
    assert!(
        common >= 20,
        "{common} characters are the same: {beside:?} instead of {:?}",
        first.text
    );
}

#[test]
fn one_line_and_whole_sentences_are_given_where_asked_for() {
    let engine = engine(1);
    let request = |formatting| TextRequest {
        formatting,
        ..greedy(chat("Write a list of three fruits, one per line."), 40)
    };
    let plain = ask(&engine, request(Formatting::default()));
    assert!(plain.text.contains('\n'), "{plain:?}");
    let single = ask(
        &engine,
        request(Formatting {
            single_line: true,
            ..Formatting::default()
        }),
    );
    assert_eq!(single.text, plain.text.lines().next().unwrap());
    assert!(single.tokens < plain.tokens, "generation ends with the line");
}

#[test]
fn a_prompt_of_a_megabyte_is_cut_and_answered() {
    let engine = engine(1);
    let noise = "The quick brown fox jumps over the lazy dog. 🦊 敏捷的棕色狐狸。\n".repeat(15_000);
    let start = std::time::Instant::now();
    let request = TextRequest {
        max_context_length: 400,
        ..greedy(format!("{noise}{}", chat("What is the capital of France?")), 30)
    };
    let answer = ask(&engine, request);
    assert_eq!(answer.prompt_tokens, 400 - 30);
    assert!(answer.text.contains("Paris"), "{answer:?}");
    assert!(
        start.elapsed() < std::time::Duration::from_secs(120),
        "{:?}",
        start.elapsed()
    );
}
