//! Hostile model files are refused, with words, before llama.cpp sees them.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use textgen::gguf::{GgufError, Header, check};

use crate::tiny_gguf::{Gguf, Meta, tiny};

fn look(bytes: &[u8]) -> Result<Header, GgufError> {
    check(bytes, bytes.len() as u64)
}

/// The file is refused at once, and the message holds `words`.
fn refuses(file: &Gguf, words: &str) {
    refuses_bytes(&file.bytes().0, words);
}

fn refuses_bytes(bytes: &[u8], words: &str) {
    let start = Instant::now();
    let error = look(bytes).map(|_| ()).expect_err(words).to_string();
    assert!(error.contains(words), "`{error}` does not say `{words}`");
    // The promise is 50 ms; a machine that builds something else at the same time gets four times that.
    assert!(
        start.elapsed() < Duration::from_millis(200),
        "{words}: {:?}",
        start.elapsed()
    );
}

/// The file with eight bytes at `at` replaced.
fn patched(at: usize, number: u64) -> Vec<u8> {
    let mut bytes = tiny().bytes().0;
    bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    bytes
}

#[test]
fn a_sound_file_is_read() {
    let header = look(&tiny().bytes().0).unwrap();
    assert_eq!((header.architecture(), header.name()), ("llama", Some("tiny")));
    assert_eq!(header.number("block_count"), Some(1));
    assert_eq!(header.tensors.len(), 12);
    // 2 heads of 16 keys and 16 values, 16 bits each.
    assert_eq!(header.cache_bytes_per_token(16.0), 128);
}

#[test]
fn counts_beyond_reason_are_refused() {
    refuses_bytes(&patched(8, u64::MAX), "number of tensors");
    refuses_bytes(&patched(8, 1 << 63), "number of tensors");
    refuses_bytes(&patched(16, u64::MAX), "number of metadata entries");
    refuses_bytes(&patched(16, 9_999), "");
    // The length of the first key.
    refuses_bytes(&patched(24, 1 << 62), "a metadata key");
    refuses_bytes(&patched(24, 0), "metadata key");
}

#[test]
fn lengths_and_types_of_values_that_cannot_be_are_refused() {
    let raw = |kind, bytes: &[u8]| tiny().with("x.y", Meta::Raw(kind, bytes.to_vec()));
    let list = |kind: u32, len: u64| [&kind.to_le_bytes()[..], &len.to_le_bytes()].concat();
    refuses(&raw(8, &(1u64 << 62).to_le_bytes()), "metadata value");
    refuses(&raw(9, &list(4, 1 << 62)), "length of a list");
    refuses(&raw(9, &list(8, 1 << 22)), "");
    refuses(&raw(9, &list(10, 8_000)), "");
    refuses(&raw(9, &list(9, 1)), "a list within a list");
    refuses(&raw(9, &list(77, 1)), "no type of a list");
    refuses(&raw(13, &[0; 8]), "no type of a metadata value");
    refuses(&raw(7, &[2]), "truth value");
    let mut twice = tiny();
    twice.meta.push(("general.name".into(), Meta::U32(1)));
    refuses(&twice, "stands twice");
}

#[test]
fn numbers_that_llama_cpp_would_fall_over_are_refused() {
    let number = |key: &str, value: u32| tiny().with(key, Meta::U32(value));
    refuses(&number("llama.block_count", 1 << 31), "block_count");
    refuses(&number("llama.block_count", 0), "block_count");
    refuses(&number("llama.attention.head_count", 0), "head_count");
    refuses(&number("llama.embedding_length", u32::MAX), "embedding_length");
    refuses(&number("llama.context_length", 0), "context_length");
    refuses(&number("llama.expert_count", 1 << 20), "expert_count");
    refuses(&number("general.alignment", 0), "alignment");
    refuses(&number("general.alignment", 33), "alignment");
    refuses(
        &number("tokenizer.ggml.bos_token_id", 1 << 20),
        "no token of the vocabulary",
    );
    refuses(
        &tiny().with("llama.block_count", Meta::Text("one".into())),
        "no whole number",
    );
    refuses(
        &tiny().with("tokenizer.ggml.scores", Meta::Floats(vec![0.0; 3])),
        "scores",
    );
    refuses(&tiny().with("tokenizer.ggml.token_type", Meta::U32(1)), "token_type");
    refuses(
        &tiny().with("tokenizer.ggml.tokens", Meta::Texts(Vec::new())),
        "vocabulary is empty",
    );
    refuses(
        &tiny().with("tokenizer.ggml.tokens", Meta::Texts(vec!["a".into(); 311])),
        "stands twice",
    );
    refuses(&tiny().without("tokenizer.ggml.tokens"), "tokens is missing");
    refuses(&tiny().without("general.architecture"), "general.architecture");
    refuses(
        &tiny().with("general.architecture", Meta::Text("../x".into())),
        "general.architecture",
    );
    refuses(
        &tiny().with("general.architecture", Meta::Text("bert".into())),
        "does not write text",
    );
    refuses(&tiny().without("llama.block_count"), "is missing");
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let change = |change: &dyn Fn(&mut Gguf)| {
        let mut file = tiny();
        change(&mut file);
        file
    };
    refuses(
        &change(&|file| file.tensors[2].shape = vec![1 << 40, 1 << 40]),
        "impossible shape",
    );
    refuses(
        &change(&|file| file.tensors[2].shape = vec![1 << 63, 1]),
        "impossible shape",
    );
    refuses(&change(&|file| file.tensors[2].shape = vec![0, 4]), "impossible shape");
    refuses(&change(&|file| file.tensors[2].shape = vec![1; 5]), "1 to 4 dimensions");
    refuses(
        &change(&|file| file.tensors[2].shape = vec![1 << 20, 1 << 10]),
        "outside the file",
    );
    refuses(&change(&|file| file.tensors[2].kind = 4), "unknown type");
    refuses(&change(&|file| file.tensors[1].kind = 12), "whole blocks");
    refuses(&change(&|file| file.tensors[2].kind = u32::MAX), "unknown type");
    refuses(
        &change(&|file| file.tensors[2].name = "x".repeat(64)),
        "name of a tensor",
    );
    refuses(
        &change(&|file| file.tensors[2].name = file.tensors[1].name.clone()),
        "stands twice",
    );
    refuses(&change(&|file| file.tensors.clear()), "no tensors");
}

#[test]
fn other_files_and_broken_ones_are_refused() {
    refuses_bytes(b"", "the magic number");
    refuses_bytes(b"PK\x03\x04 a zip", "not a GGUF file");
    let mut other = tiny();
    other.version = 1;
    refuses(&other, "version 1");
    other.version = 3u32.swap_bytes();
    refuses(&other, "is not supported");
    let (whole, header) = tiny().bytes();
    for end in (0..header).step_by(7).chain([whole.len() - 33]) {
        assert!(look(&whole[..end]).is_err(), "cut at {end}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn no_change_of_bytes_makes_the_check_panic_or_linger(changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..12)) {
        let (mut bytes, header) = tiny().bytes();
        for (at, byte) in changes {
            let at = usize::from(at) % header;
            bytes[at] = byte;
        }
        let start = Instant::now();
        let _ = look(&bytes);
        prop_assert!(start.elapsed() < Duration::from_millis(200));
    }
}
