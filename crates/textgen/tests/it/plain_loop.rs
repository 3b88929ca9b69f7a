//! What the engine writes greedily beside the plainest loop over the same llama.cpp: the prompt in one batch, then token by token,
//! always the best one. Slots, chunks, kept beginnings and our samplers must not change a letter.

use std::num::NonZeroU32;

use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use textgen::llama::{Flash, LlamaEngine};
use textgen::{NoWatch, TextEngine};

use crate::questions::{CONTEXT, TOKENS, prompts, request, settings};

/// The texts of a plain loop. llama.cpp is set up for it alone, so no engine may be loaded before.
fn plainly(flash: i32) -> Vec<String> {
    let backend = LlamaBackend::init().expect("nobody else set llama.cpp up in this process");
    let model = LlamaModel::load_from_file(&backend, crate::models::smollm2(), &LlamaModelParams::default());
    let model = model.expect("the demo model");
    let vocabulary = model.vocab();
    prompts()
        .iter()
        .map(|prompt| {
            let params = LlamaContextParams::default()
                .with_n_ctx(NonZeroU32::new(CONTEXT))
                .with_n_batch(CONTEXT)
                .with_n_threads(1)
                .with_n_threads_batch(1)
                .with_flash_attention_policy(flash);
            let mut context = model.new_context(&backend, params).expect("a context");
            let mut tokens = vocabulary.tokenize(prompt.as_bytes(), true, true);
            let mut text = Vec::new();
            for _ in 0..TOKENS {
                {
                    let mut batch = LlamaBatch::get_one(&tokens).expect("tokens");
                    context.decode(&mut batch).expect("it computes");
                }
                let best = best(context.get_logits_ith(-1));
                if vocabulary.is_eog(best) {
                    break;
                }
                vocabulary.token_to_piece_into(best, &mut text, false, None);
                tokens = vec![best];
            }
            String::from_utf8(text).expect("whole characters")
        })
        .collect()
}

fn best(logits: &[f32]) -> LlamaToken {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    LlamaToken(best.expect("a vocabulary") as i32)
}

fn greedy_texts_are_the_plain_loops(flash_attention: Flash, flash: i32) {
    let plain = plainly(flash);
    let engine =
        LlamaEngine::load(settings(crate::models::smollm2(), flash_attention), |_| true).expect("the demo model");
    for (prompt, plain) in prompts().iter().zip(&plain) {
        let ours = engine.generate(request(prompt), &NoWatch).expect("an answer").text;
        assert_eq!(&ours, plain, "{prompt}");
    }
}

#[test]
fn greedy_texts_are_those_of_a_plain_loop_with_flash_attention() {
    greedy_texts_are_the_plain_loops(Flash::On, llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_ENABLED);
}

#[test]
fn greedy_texts_are_those_of_a_plain_loop_without_flash_attention() {
    greedy_texts_are_the_plain_loops(Flash::Off, llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED);
}
