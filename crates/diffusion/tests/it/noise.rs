//! Random numbers to the bit.

use diffusion::noise::{BrownianTree, Philox, SeedSequence, TorchCpu};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::fixtures;

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|s| s.parse().ok()).or(value.as_u64()).unwrap()
}

fn digest(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    hex::encode(Sha256::digest(bytes))
}

fn rows(key: &str) -> Vec<Value> {
    fixtures::json("stage/rng.json")[key].as_array().unwrap().clone()
}

#[test]
fn the_twister_gives_torchs_words() {
    for row in rows("mt19937") {
        let mut noise = TorchCpu::new(number(&row["seed"]));
        for word in row["first_u32"].as_array().unwrap() {
            assert_eq!(u64::from(noise.next_u32()), number(word));
        }
    }
}

#[test]
fn randn_equals_torchs_to_the_bit() {
    for row in rows("cpu_randn") {
        let values = TorchCpu::new(number(&row["seed"])).randn(number(&row["n"]) as usize);
        let bits: Vec<u64> = values.iter().take(8).map(|value| u64::from(value.to_bits())).collect();
        let expected: Vec<u64> = row["first_bits"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(bits, expected, "{} values of seed {}", row["n"], row["seed"]);
        assert_eq!(
            digest(&values),
            row["sha256"],
            "{} values of seed {}",
            row["n"],
            row["seed"]
        );
    }
}

#[test]
fn successive_draws_continue_torchs_stream() {
    let mut noise: Option<(u64, TorchCpu)> = None;
    for row in rows("cpu_sequences") {
        let seed = number(&row["seed"]);
        let generator = match &mut noise {
            Some((known, generator)) if *known == seed => generator,
            _ => &mut noise.insert((seed, TorchCpu::new(seed))).1,
        };
        let values = generator.randn(number(&row["n"]) as usize);
        assert_eq!(digest(&values), row["sha256"], "{row}");
    }
}

#[test]
fn seed_sequences_equal_numpys() {
    for row in rows("seed_sequence") {
        let key: Vec<u64> = row["spawn_key"].as_array().unwrap().iter().map(number).collect();
        let state = SeedSequence::new(number(&row["entropy"]), &key, number(&row["pool_size"]) as usize).state(4);
        let expected: Vec<u64> = row["state4"].as_array().unwrap().iter().map(number).collect();
        assert_eq!(
            state.iter().map(|word| u64::from(*word)).collect::<Vec<_>>(),
            expected,
            "{row}"
        );
    }
}

#[test]
fn brownian_increments_equal_torchsdes_to_the_bit() {
    for row in rows("brownian_tree") {
        let time = |value: &Value| value.as_f64().unwrap() as f32;
        let size = row["shape"].as_array().unwrap().iter().map(number).product::<u64>() as usize;
        let tree = BrownianTree::new(time(&row["t0"]), time(&row["t1"]), size, number(&row["entropy"]));
        for query in row["queries"].as_array().unwrap() {
            let values = tree.increment(time(&query["t0"]), time(&query["t1"]));
            assert_eq!(digest(&values), query["sha256"], "{} {:?}", query, &values[..4]);
        }
    }
}

#[test]
fn cuda_noise_equals_torchs_within_a_millionth() {
    for row in rows("philox_cuda_like") {
        let mut noise = Philox::new(number(&row["seed"]));
        for key in ["first_call_12", "second_call_4"] {
            let expected: Vec<f32> = row[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap() as f32)
                .collect();
            let values = noise.randn(expected.len());
            assert!(fixtures::distance(&values, &expected) < 2e-6, "{key} {row}");
        }
    }
}
