//! Whole checkpoints in every number format, and damaged ones: refused by the name of the file and of the tensor.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};
use diffusion::{ModelFiles, Overrides, Pipeline, Progress, Request, nn::unet::Conditions, sample::Sampler};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};

use crate::{
    fixtures,
    networks::{load, pipeline},
};

/// A checkpoint taken apart: format, shape and values of each tensor.
pub type Parts = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn parts() -> Parts {
    parts_of(&fixtures::path("models/sd15/tiny_sd15.safetensors"))
}

pub fn parts_of(path: &Path) -> Parts {
    let file = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap().tensors();
    tensors
        .into_iter()
        .map(|(name, tensor)| (name, (tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec())))
        .collect()
}

pub fn packed(parts: &Parts) -> Vec<u8> {
    let views = parts
        .iter()
        .map(|(name, (format, shape, bytes))| (name, TensorView::new(*format, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// The nearest of the 127 or 124 magnitudes of an eight-bit float.
fn eighth(value: f32, mantissa_bits: i32, bias: i32, largest: u8) -> u8 {
    let magnitude = |byte: u8| {
        let (exponent, fraction) = (
            i32::from(byte) >> mantissa_bits,
            f32::from(byte & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits) as f32,
        );
        match exponent {
            0 => fraction * 2f32.powi(1 - bias),
            _ => (1.0 + fraction) * 2f32.powi(exponent - bias),
        }
    };
    // Magnitudes rise with their bytes.
    let (mut low, mut high) = (0, largest);
    while high - low > 1 {
        let middle = u8::midpoint(low, high);
        if magnitude(middle) <= value.abs() {
            low = middle;
        } else {
            high = middle;
        }
    }
    let nearest = if value.abs() - magnitude(low) <= magnitude(high) - value.abs() {
        low
    } else {
        high
    };
    nearest | if value.is_sign_negative() { 0x80 } else { 0 }
}

fn converted(format: Dtype) -> Parts {
    let mut parts = parts();
    for (kind, _, bytes) in parts.values_mut().filter(|(kind, _, _)| *kind == Dtype::F16) {
        let values = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|pair| f16::from_le_bytes(*pair).to_f32());
        *bytes = match format {
            Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
            Dtype::BF16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
            Dtype::F8_E4M3 => values.map(|value| eighth(value, 3, 7, 0x7e)).collect(),
            Dtype::F8_E5M2 => values.map(|value| eighth(value, 2, 15, 0x7b)).collect(),
            _ => continue,
        };
        *kind = format;
    }
    parts
}

#[derive(Default)]
struct Last(Vec<f32>);

impl Progress for Last {
    fn step(&mut self, _: usize, _: usize) {}
    fn is_cancelled(&self) -> bool {
        false
    }
    fn stage(&mut self, name: &str, value: &Tensor) {
        if name == "latent" {
            self.0 = value.flatten_all().unwrap().to_vec1().unwrap();
        }
    }
}

pub fn latent(pipeline: &diffusion::Pipeline) -> Vec<f32> {
    let request = Request {
        steps: 4,
        cfg_scale: 2.0,
        sampler: Sampler::Euler,
        ..Request::new("a red cat in the forest ### fog", 64, 64)
    };
    let mut last = Last::default();
    assert_eq!(pipeline.generate(&request, &mut last).unwrap().len(), 1);
    last.0
}

#[test]
fn a_checkpoint_of_any_number_format_gives_nearly_the_same_picture() {
    let folder = tempfile::tempdir().unwrap();
    let reference = latent(&pipeline("sd15"));
    let size = reference
        .iter()
        .map(|value| f64::from(*value).powi(2))
        .sum::<f64>()
        .sqrt();
    // Distances of whole latents relative to their length: what the format's own rounding of every weight comes to.
    for (format, limit) in [
        (Dtype::F16, 0.0),
        (Dtype::F32, 0.0),
        (Dtype::BF16, 0.02),
        (Dtype::F8_E4M3, 0.2),
        (Dtype::F8_E5M2, 0.35),
    ] {
        let path = folder.path().join(format!("{format:?}.safetensors"));
        std::fs::write(&path, packed(&converted(format))).unwrap();
        let got = latent(&load("sd15", path).unwrap());
        let off = got
            .iter()
            .zip(&reference)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
            .sqrt()
            / size;
        println!("{format:?}: {off:.4}");
        assert!(off <= limit, "{format:?}: {off}");
        assert!(limit == 0.0 || off > 0.0, "{format:?} was not read as what it is");
    }
}

/// Writes what `change` makes of the checkpoint, and expects a refusal with the file's name and `words`.
fn refused(change: impl FnOnce(&mut Parts), words: &[&str]) {
    let mut parts = parts();
    change(&mut parts);
    refused_bytes(&packed(&parts), words);
}

fn refused_bytes(bytes: &[u8], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("hurt.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let error = load("sd15", path).map(drop).expect_err("it is damaged").to_string();
    for words in words.iter().chain(&["hurt.safetensors"]) {
        assert!(error.contains(words), "`{words}` is not in: {error}");
    }
}

const RES: &str = "model.diffusion_model.output_blocks.1.0.in_layers.2";

#[test]
fn a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name() {
    for key in [
        "in_layers.0.weight",
        "in_layers.2.weight",
        "in_layers.2.bias",
        "out_layers.3.bias",
    ] {
        let key = format!("output_blocks.1.0.{key}");
        refused(
            |parts| assert!(parts.remove(&format!("model.diffusion_model.{key}")).is_some()),
            &[&key, "is missing"],
        );
    }
    refused(
        |parts| parts.retain(|name, _| !name.contains("output_blocks.1.")),
        &["model.diffusion_model.output_blocks.", "is missing"],
    );
    refused(
        |parts| parts.retain(|name, _| !name.ends_with("encoder.layers.0.self_attn.q_proj.weight")),
        &["self_attn.q_proj.weight", "is missing"],
    );
    refused(
        |parts| parts.retain(|name, _| !name.ends_with("decoder.mid.block_1.conv1.weight")),
        &["decoder.mid.block_1.conv1.weight", "is missing"],
    );
}

#[test]
fn a_tensor_of_another_shape_is_refused_by_its_name() {
    let turned = |name: &str, shape: fn(&[usize]) -> Vec<usize>| {
        let end = name.to_owned();
        move |parts: &mut Parts| {
            let found = parts.iter_mut().find(|(name, _)| name.ends_with(&end));
            let (_, (_, old, _)) = found.expect("the tiny model has it");
            *old = shape(old);
        }
    };
    let halved = |shape: &[usize]| [&[shape[0] / 2, shape[1] * 2], &shape[2..]].concat();
    refused(
        turned(&format!("{RES}.weight"), halved),
        &["output_blocks.1.0.in_layers.2", "shape"],
    );
    let doubled = |shape: &[usize]| [&[shape[0] * 2, shape[1] / 2], &shape[2..]].concat();
    refused(turned(".attn2.to_k.weight", doubled), &[".attn2.to_k.weight", "shape"]);
    refused(turned(".mlp.fc1.weight", halved), &[".mlp.fc1.", "shape"]);
    refused(
        turned("decoder.mid.block_1.conv1.weight", halved),
        &["decoder.mid.block_1.conv1", "shape"],
    );
}

#[test]
fn values_that_are_no_numbers_are_refused_by_their_tensor() {
    for (format, bad) in [
        (Dtype::F16, f16::NAN.to_le_bytes().to_vec()),
        (Dtype::F16, f16::NEG_INFINITY.to_le_bytes().to_vec()),
        (Dtype::F32, f32::NAN.to_le_bytes().to_vec()),
        (Dtype::BF16, bf16::INFINITY.to_le_bytes().to_vec()),
        (Dtype::F8_E4M3, vec![0x7f]),
        (Dtype::F8_E5M2, vec![0xfd]),
    ] {
        let mut parts = converted(format);
        let (_, _, bytes) = parts.get_mut(&format!("{RES}.weight")).unwrap();
        let at = bytes.len() / 2 / bad.len() * bad.len();
        bytes[at..at + bad.len()].copy_from_slice(&bad);
        refused_bytes(&packed(&parts), &[&format!("{RES}.weight"), "no numbers"]);
    }
}

#[test]
fn truncated_files_and_damaged_headers_are_refused() {
    let whole = packed(&parts());
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        refused_bytes(&whole[..length], &["damaged"]);
    }
    let mut hurt = whole.clone();
    hurt[9] = b'{';
    refused_bytes(&hurt, &["its header"]);
    let mut endless = whole;
    endless[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused_bytes(&endless, &["header"]);
}

/// The tiny SD 1 model as a folder in diffusers' layout, with the U-Net that has other heads on each level.
pub fn folder_with_heads(heads: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (part, prefix, config) in [
        ("vae", "first_stage_model.", json!({ "norm_num_groups": 8 })),
        (
            "text_encoder",
            "cond_stage_model.transformer.",
            json!({ "num_attention_heads": 2, "hidden_act": "quick_gelu" }),
        ),
    ] {
        let own = parts()
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor)));
        std::fs::create_dir(folder.path().join(part)).unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(part).join(name), bytes).unwrap();
        write("model.safetensors", &packed(&own.collect()));
        write("config.json", config.to_string().as_bytes());
    }
    let unet = folder.path().join("unet");
    std::fs::create_dir(&unet).unwrap();
    let weights = "diffusion_pytorch_model.safetensors";
    std::fs::copy(
        fixtures::path(&format!("models/heads/unet/{weights}")),
        unet.join(weights),
    )
    .unwrap();
    let mut config = fixtures::json("models/heads/unet/config.json");
    if !heads.is_null() {
        config["attention_head_dim"] = heads.clone();
    }
    std::fs::write(unet.join("config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn a_list_of_heads_is_followed_level_by_level() {
    let case = fixtures::Case::open("cases/heads.safetensors");
    let conditions = Conditions {
        context: &case.tensor("context"),
        label: None,
        residuals: None,
        circular: false,
    };
    let open = |heads: Value| {
        let folder = folder_with_heads(&heads);
        let files = ModelFiles {
            checkpoint: folder.path().to_owned(),
            ..ModelFiles::default()
        };
        Pipeline::load(&files, &Device::Cpu, Overrides::default())
    };
    let off = |heads: Value| {
        let unet = &open(heads).unwrap();
        let out = unet
            .model()
            .unet
            .forward(&case.tensor("x"), &case.values("t"), &conditions);
        let out: Vec<f32> = out.unwrap().flatten_all().unwrap().to_vec1().unwrap();
        fixtures::distance(&out, &case.values("out"))
    };
    let own = off(Value::Null);
    assert!(own < 2e-4, "{own}");
    for wrong in [json!(4), json!([2, 8, 8]), json!([2, 4, 4]), json!([8, 8, 4])] {
        assert!(off(wrong.clone()) > 0.1, "{wrong}");
    }
    for (bad, why) in [
        (json!([2, 8]), "no heads are told for a level of width 8"),
        (json!([2, 0, 4]), "no heads are told for a level of width 8"),
        (json!([2, 8, 3]), "3 heads do not divide a width of 8"),
        (json!([]), "no list of 1 to 8 numbers"),
        (json!(["2"]), "no list of 1 to 8 numbers"),
        (json!(vec![2; 9]), "no list of 1 to 8 numbers"),
    ] {
        let error = open(bad.clone()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{bad}: {error}");
    }
}
