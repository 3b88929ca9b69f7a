//! Networks of the sizes that a fixture names, with weights that both sides compute from the tensors' names: only the
//! reference's answer is stored. `tests/fixtures/made_up.py` is the other side.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};

/// A network's tensors, and the case's `x` and `y`, of `tests/fixtures/cases/NAME.{json,safetensors}`.
pub fn case(name: &str) -> (BTreeMap<String, Tensor>, HashMap<String, Tensor>) {
    let path = format!("{}/tests/fixtures/cases/{name}", env!("CARGO_MANIFEST_DIR"));
    let shapes = std::fs::read_to_string(format!("{path}.json")).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> = serde_json::from_str(&shapes).unwrap();
    let stored = candle_core::safetensors::load(format!("{path}.safetensors"), &Device::Cpu).unwrap();
    let fixed = stored
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("net.")?.to_owned(), value.clone())));
    let made = shapes.iter().map(|(name, shape)| (name.clone(), tensor(name, shape)));
    (made.chain(fixed).collect(), stored)
}

/// Number `i` of a tensor: FNV-1a of its name, mixed with `i` (the finaliser of SplitMix64), as a fraction from -1 to 1.
fn number(name: &str, i: u64) -> f32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let mut z = hash.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    ((z >> 40) as f64 / f64::from(1u32 << 23) - 1.0) as f32
}

/// Scaled so that values keep their size from layer to layer; norms start near 1, running variances are positive.
fn tensor(name: &str, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let fan: usize = shape.iter().skip(1).product();
    let values = (0..n as u64).map(|i| {
        let v = number(name, i);
        if name.ends_with("running_var") {
            1.0 + 0.5 * v
        } else if shape.len() > 1 {
            v * (3.0 / fan as f32).sqrt()
        } else if name.ends_with("weight") {
            1.0 + 0.1 * v
        } else {
            0.1 * v
        }
    });
    Tensor::from_vec(values.collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}
