//! Our samplers beside llama.cpp's own, for those it has.

use llama_cpp_2::sampling::LlamaSampler;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token::data::LlamaTokenData;
use llama_cpp_2::token::data_array::LlamaTokenDataArray;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use textgen::sampler::penalties::{self, Repetition};
use textgen::sampler::{Candidates, filters, temperature};

/// Both compute in single precision, in another order.
const TOLERANCE: f32 = 1e-5;

fn check(name: &str, theirs: impl Fn() -> LlamaSampler, ours: impl Fn(&mut Candidates)) {
    let mut random = ChaCha8Rng::seed_from_u64(4);
    let mut on_the_edge = 0;
    for round in 0..50 {
        let logits: Vec<f32> = (0..400)
            .map(|_| random.random_range(-4.0..4.0f32) * (1.0 + (round % 4) as f32))
            .collect();
        let mut mine = Candidates::from_logits(&logits);
        ours(&mut mine);
        let probabilities = mine.softmax().to_vec();
        let mut mine: Vec<(i32, f32)> = mine
            .items()
            .iter()
            .zip(probabilities)
            .map(|(item, p)| (item.token as i32, p))
            .collect();
        mine.sort_by_key(|(token, _)| *token);

        let data = (0..)
            .zip(&logits)
            .map(|(token, logit)| LlamaTokenData::new(LlamaToken(token), *logit, 0.0));
        let mut array = LlamaTokenDataArray::from_iter(data, false);
        array.apply_sampler(&mut theirs());
        let top = array
            .data
            .iter()
            .map(|item| item.logit())
            .fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = array.data.iter().map(|item| (item.logit() - top).exp()).sum();
        let mut peer: Vec<(i32, f32)> = array
            .data
            .iter()
            .map(|item| (item.id().0, (item.logit() - top).exp() / total))
            .collect();
        peer.sort_by_key(|(token, _)| *token);

        let tokens = |list: &[(i32, f32)]| list.iter().map(|(token, _)| *token).collect::<Vec<_>>();
        if tokens(&mine) != tokens(&peer) {
            // A sum in another order may fall on the other side of a limit: one token more or less, and seldom.
            assert!(mine.len().abs_diff(peer.len()) <= 1, "{name}, round {round}");
            on_the_edge += 1;
            continue;
        }
        for ((token, p), (_, q)) in mine.iter().zip(&peer) {
            assert!(
                (p - q).abs() <= TOLERANCE,
                "{name}, round {round}, token {token}: {p} and {q}"
            );
        }
    }
    assert!(on_the_edge <= 2, "{name}: {on_the_edge} of 50 rounds kept another set");
}

#[test]
fn filters_and_temperatures_leave_what_llama_cpp_leaves() {
    check("top_k", || LlamaSampler::top_k(40), |c| filters::top_k(c, 40));
    check("top_p", || LlamaSampler::top_p(0.9, 1), |c| filters::top_p(c, 0.9));
    check("min_p", || LlamaSampler::min_p(0.05, 1), |c| filters::min_p(c, 0.05));
    check(
        "typical",
        || LlamaSampler::typical(0.7, 1),
        |c| filters::typical(c, 0.7),
    );
    check("xtc", || LlamaSampler::xtc(1.0, 0.05, 1, 1), |c| filters::xtc(c, 0.05));
    check(
        "temperature",
        || LlamaSampler::temp(0.6),
        |c| temperature::temperature(c, 0.6),
    );
    check(
        "dynamic temperature",
        || LlamaSampler::temp_ext(1.0, 0.5, 1.3),
        |c| temperature::dynamic(c, 0.5, 1.5, 1.3),
    );
}

#[test]
fn the_repetition_penalty_is_llama_cpps() {
    let history: Vec<u32> = (0..30).map(|place| place * 7 % 50).collect();
    check(
        "rep_pen",
        || LlamaSampler::penalties(400, 64, 1.3, 0.0, 0.0).with_tokens(history.iter().map(|t| LlamaToken(*t as i32))),
        |candidates| {
            let penalty = Repetition {
                factor: 1.3,
                range: 64,
                slope: 1.0,
                presence: 0.0,
            };
            penalties::repetition(candidates, &history, penalty);
        },
    );
}
