//! Every sampler against values from `tests/fixtures/samplers.py`, and its behaviour on numbers that are none.

use proptest::prelude::*;
use serde_json::Value;
use textgen::sampler::penalties::{self, Repetition};
use textgen::sampler::{AnswerPenalties, Candidates, Chain, Dry, Mirostat, Sampling, Step, Xtc, filters, temperature};

/// Single precision against double, over at most 200 candidates.
const TOLERANCE: f64 = 2e-5;

fn number(parameters: &Value, name: &str) -> f32 {
    parameters[name].as_f64().unwrap() as f32
}

fn integer(parameters: &Value, name: &str) -> u32 {
    parameters[name].as_u64().unwrap() as u32
}

fn tokens(parameters: &Value, name: &str) -> Vec<u32> {
    let list = parameters[name].as_array().unwrap();
    list.iter().map(|token| token.as_u64().unwrap() as u32).collect()
}

fn apply(operation: &str, p: &Value, candidates: &mut Candidates) {
    match operation {
        "top_k" => filters::top_k(candidates, integer(p, "k")),
        "top_a" => filters::top_a(candidates, number(p, "a")),
        "top_p" => filters::top_p(candidates, number(p, "p")),
        "min_p" => filters::min_p(candidates, number(p, "p")),
        "tfs" => filters::tfs(candidates, number(p, "z")),
        "typical" => filters::typical(candidates, number(p, "p")),
        "xtc" => filters::xtc(candidates, number(p, "threshold")),
        "temperature" => temperature::temperature(candidates, number(p, "temperature")),
        "dynamic" => temperature::dynamic(candidates, number(p, "low"), number(p, "high"), number(p, "exponent")),
        "smoothing" => temperature::smoothing(candidates, number(p, "factor")),
        "rep_pen" => penalties::repetition(
            candidates,
            &tokens(p, "history"),
            Repetition {
                factor: number(p, "factor"),
                range: integer(p, "range"),
                slope: number(p, "slope"),
                presence: number(p, "presence"),
            },
        ),
        "chain" => {
            let order = p["order"].as_array().unwrap();
            let sampling = Sampling {
                order: order
                    .iter()
                    .filter_map(|step| Step::from_number(step.as_i64()?))
                    .collect(),
                top_k: integer(p, "top_k"),
                top_a: number(p, "top_a"),
                top_p: number(p, "top_p"),
                min_p: number(p, "min_p"),
                tfs: number(p, "tfs"),
                typical: number(p, "typical"),
                temperature: number(p, "temperature"),
                dynatemp_range: number(p, "dynatemp_range"),
                dynatemp_exponent: number(p, "dynatemp_exponent"),
                smoothing_factor: number(p, "smoothing_factor"),
                rep_pen: number(p, "rep_pen"),
                rep_pen_range: integer(p, "rep_pen_range"),
                rep_pen_slope: number(p, "rep_pen_slope"),
                ..Sampling::neutral()
            };
            Chain::new(sampling, 0, &tokens(p, "history")).narrow(candidates);
        }
        other => panic!("the fixture has an operation `{other}` that no sampler answers to"),
    }
}

#[test]
fn every_sampler_agrees_with_the_reference() {
    let fixture: Value = serde_json::from_str(include_str!("../fixtures/samplers.json")).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    let mut operations = std::collections::BTreeMap::new();
    for (index, case) in cases.iter().enumerate() {
        let operation = case["operation"].as_str().unwrap();
        let logits: Vec<f32> = case["logits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|l| l.as_f64().unwrap() as f32)
            .collect();
        let mut candidates = Candidates::from_logits(&logits);
        apply(operation, &case["parameters"], &mut candidates);
        let probabilities = candidates.softmax().to_vec();
        let mut left: Vec<(u64, f64)> = candidates
            .items()
            .iter()
            .zip(&probabilities)
            .map(|(item, p)| (u64::from(item.token), f64::from(*p)))
            .collect();
        left.sort_by_key(|(token, _)| *token);
        let expected: Vec<(u64, f64)> = serde_json::from_value(case["left"].clone()).unwrap();
        let what = format!("case {index}: {operation} {}", case["parameters"]);
        let names = |list: &[(u64, f64)]| list.iter().map(|(token, _)| *token).collect::<Vec<_>>();
        assert_eq!(names(&left), names(&expected), "{what}");
        for ((token, p), (_, wanted)) in left.iter().zip(&expected) {
            assert!(
                (p - wanted).abs() <= TOLERANCE,
                "{what}: token {token} has {p}, not {wanted}"
            );
        }
        *operations.entry(operation).or_insert(0) += 1;
    }
    assert_eq!(
        operations.len(),
        12,
        "every operation stands in the fixture: {operations:?}"
    );
}

#[test]
fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
    let logits: Vec<f32> = (0..100).map(|token| ((token * 37 % 100) as f32) / 40.0).collect();
    let draw = |seed| {
        let mut chain = Chain::new(Sampling::default(), seed, &[]);
        (0..50).map(|_| chain.choose(&logits).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
}

#[test]
fn draws_follow_the_probabilities() {
    let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
    let mut chain = Chain::new(Sampling::neutral(), 1, &[]);
    let mut counts = [0u32; 3];
    for _ in 0..20_000 {
        counts[chain.choose(&logits).unwrap() as usize] += 1;
    }
    // Four standard deviations.
    for (count, expected) in counts.iter().zip([10_000.0, 6_000.0, 4_000.0]) {
        assert!((f64::from(*count) - expected).abs() < 290.0, "{counts:?}");
    }
}

#[test]
fn xtc_with_certainty_never_takes_the_top_choice() {
    let sampling = Sampling {
        xtc: Xtc {
            threshold: 0.1,
            probability: 1.0,
        },
        ..Sampling::neutral()
    };
    let mut chain = Chain::new(sampling, 3, &[]);
    assert!((0..100).all(|_| chain.choose(&[2.0, 1.5, 1.0, -5.0]).unwrap() >= 2));
}

#[test]
fn mirostat_brings_the_surprise_to_its_target() {
    let logits: Vec<f32> = (1..2_000).map(|rank| -(rank as f32).ln()).collect();
    let weight: f64 = (1..2_000).map(|rank| 1.0 / f64::from(rank)).sum();
    for second in [true, false] {
        let sampling = Sampling {
            mirostat: Some(Mirostat {
                second,
                tau: 3.0,
                eta: 0.1,
            }),
            ..Sampling::neutral()
        };
        let mut chain = Chain::new(sampling, 5, &[]);
        let surprises: Vec<f64> = (0..1_000)
            .map(|_| (f64::from(chain.choose(&logits).unwrap() + 1) * weight).log2())
            .collect();
        let mean = surprises[200..].iter().sum::<f64>() / 800.0;
        // Measured on the untruncated distribution, a little above what the algorithm itself sees.
        assert!((2.0..5.0).contains(&mean), "version 2 {second}: {mean} bits");
    }
}

#[test]
fn dry_keeps_a_loop_from_closing() {
    let sampling = Sampling {
        temperature: 0.0,
        dry: Dry {
            multiplier: 5.0,
            ..Dry::default()
        },
        ..Sampling::neutral()
    };
    // Token 9 is likeliest, but it would be the fourth of a repeated four.
    let logits: Vec<f32> = (0..10).map(|token| if token == 9 { 3.0 } else { 0.0 }).collect();
    let history = [1, 2, 3, 9, 1, 2, 3];
    assert_ne!(Chain::new(sampling.clone(), 0, &history).choose(&logits), Ok(9));
    assert_eq!(Chain::new(sampling, 0, &[1, 2, 3]).choose(&logits), Ok(9));
}

/// The tokens a chain takes, one after the other, from the same logits.
fn greedy(sampling: Sampling, prompt: &[u32], logits: &[f32], count: usize) -> Vec<u32> {
    let sampling = Sampling {
        temperature: 0.0,
        ..sampling
    };
    let mut chain = Chain::new(sampling, 0, prompt);
    (0..count).map(|_| chain.choose(logits).unwrap()).collect()
}

#[test]
fn koboldcpps_presence_penalty_counts_the_prompt_and_openais_the_answer_alone() {
    // Token 1 is likeliest, then 2, then 3.
    let logits = [0.0, 3.0, 2.5, 2.15];
    let kobold = Sampling {
        presence_penalty: 1.0,
        ..Sampling::neutral()
    };
    let answer = |presence: f32, frequency: f32| Sampling {
        answer: AnswerPenalties { presence, frequency },
        ..Sampling::neutral()
    };
    assert_eq!(greedy(kobold.clone(), &[1], &logits, 1), [2], "1 stands in the prompt");
    assert_eq!(greedy(answer(1.0, 0.0), &[1], &logits, 1), [1]);
    assert_eq!(
        greedy(answer(1.0, 0.0), &[1], &logits, 5),
        [1, 2, 3, 1, 1],
        "3.0, 2.5, 2.15, then 2.0 for ever"
    );
    assert_eq!(greedy(kobold, &[], &logits, 5), [1, 2, 3, 1, 1]);
    // 0.4 for each time: 3.0, 2.6, 2.5, 2.2, 2.15, 2.1.
    assert_eq!(greedy(answer(0.0, 0.4), &[1, 1, 1], &logits, 6), [1, 1, 2, 1, 3, 2]);
    // Both together: 1 falls to 2.1, 2 to 1.6, 3 to 1.25; then 1 to 1.7.
    assert_eq!(greedy(answer(0.5, 0.4), &[], &logits, 5), [1, 2, 3, 1, 1]);
    assert_eq!(
        greedy(answer(-1.0, 0.0), &[2], &[3.0, 3.1, 3.0], 3),
        [1, 1, 1],
        "below zero it draws on"
    );
}

#[test]
fn nothing_finite_is_an_error_not_a_token() {
    let mut chain = Chain::new(Sampling::default(), 0, &[]);
    assert!(chain.choose(&[f32::NAN; 8]).is_err());
    assert!(chain.choose(&[f32::NEG_INFINITY; 8]).is_err());
    assert!(chain.choose(&[]).is_err());
    let mut banned = Chain::new(Sampling::default(), 0, &[]).with_banned([0, 1].into());
    assert!(banned.choose(&[1.0, 1.0]).is_err());
    assert_eq!(banned.choose(&[9.0, 1.0, 0.0]), Ok(2));
}

fn wild() -> impl Strategy<Value = f32> {
    prop_oneof![
        Just(f32::NAN),
        Just(f32::INFINITY),
        Just(f32::NEG_INFINITY),
        Just(0.0),
        Just(-1.0),
        Just(f32::MAX),
        Just(f32::MIN_POSITIVE),
        0.0f32..2.0
    ]
}

proptest! {
    #[test]
    fn no_numbers_whatever_make_a_sampler_panic_or_choose_outside_the_vocabulary(
        logits in proptest::collection::vec(wild(), 1..60),
        n in proptest::collection::vec(wild(), 16),
        answer in proptest::collection::vec(wild(), 2),
        counts in proptest::collection::vec(any::<u32>(), 4),
        order in proptest::collection::vec(-3i64..12, 0..12),
        mirostat in proptest::option::of(any::<bool>()),
        history in proptest::collection::vec(0u32..80, 0..40),
    ) {
        let sampling = Sampling {
            temperature: n[0], dynatemp_range: n[1], dynatemp_exponent: n[2], smoothing_factor: n[3],
            top_a: n[4], top_p: n[5], min_p: n[6], tfs: n[7], typical: n[8], rep_pen: n[9], rep_pen_slope: n[10],
            presence_penalty: n[11], answer: AnswerPenalties { presence: answer[0], frequency: answer[1] }, top_k: counts[0], rep_pen_range: counts[1],
            order: order.into_iter().filter_map(Step::from_number).collect(),
            xtc: Xtc { threshold: n[12], probability: n[13] },
            dry: Dry { multiplier: n[14], base: n[15], allowed_length: counts[2], range: counts[3], ..Dry::default() },
            mirostat: mirostat.map(|second| Mirostat { second, tau: n[1], eta: n[2] }),
            logit_bias: vec![(counts[0], n[3]), (1, n[4])],
        };
        let mut chain = Chain::new(sampling, 1, &history);
        for _ in 0..3 {
            let any = logits.iter().any(|logit| *logit > f32::NEG_INFINITY);
            match chain.choose(&logits) {
                Ok(token) => prop_assert!((token as usize) < logits.len() && logits[token as usize] > f32::NEG_INFINITY),
                Err(_) => prop_assert!(!any),
            }
        }
    }
}
