//! LoRAs of every kind against weights computed apart (`tests/reference/loras.py`), and their taking off.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use diffusion::{
    Error, Pipeline,
    adapter::{self, Lora},
    safetensors_file::SafetensorsFile,
};

use crate::{
    fixtures::{self, Case},
    networks::pipeline,
};

const KINDS: [&str; 8] = [
    "kohya",
    "kohya_ldm",
    "peft",
    "diffusers",
    "loha",
    "lokr",
    "whole",
    "dora",
];

fn lora(kind: &str) -> Lora {
    Lora::open(&fixtures::path(&format!("loras/{kind}.safetensors")), 0.7, -0.4).unwrap()
}

/// The bits of every weight in use.
fn all_weights(pipeline: &Pipeline) -> HashMap<String, Vec<u32>> {
    let model = pipeline.model();
    let names = ["unet.", "clip_l.", "clip_g.", "vae."].into_iter().flat_map(|part| {
        let names: Vec<String> = model
            .weights()
            .names_under(part)
            .map(|name| format!("{part}{name}"))
            .collect();
        names
    });
    names
        .filter_map(|name| {
            let values = model.params().get(&name)?.get().flatten_all().unwrap();
            let bits = values
                .to_vec1::<f32>()
                .unwrap()
                .iter()
                .map(|value| value.to_bits())
                .collect();
            Some((name, bits))
        })
        .collect()
}

#[test]
fn every_kind_of_lora_gives_the_weights_computed_apart_and_nothing_else_changes() {
    let pipeline = pipeline("sd15");
    let model = pipeline.model();
    let before = all_weights(&pipeline);
    assert!(before.len() > 500, "{} weights", before.len());
    let expected = SafetensorsFile::open(&fixtures::path("loras/expected.safetensors")).unwrap();
    let case = Case::open("loras/expected.safetensors");
    for kind in KINDS {
        let applied = adapter::apply(model, &[lora(kind)]).unwrap();
        assert_eq!(applied.unknown_layers(), 0, "{kind}");
        let (mut judged, mut changed) = (0, 0);
        for (name, bits) in all_weights(&pipeline) {
            let key = format!("{kind}/{name}");
            if expected.shape(&key).is_some() {
                let got: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
                let error = fixtures::distance(&got, &case.values(&key));
                assert!(error < 2e-5, "{key}: {error}");
                judged += 1;
            }
            changed += usize::from(before[&name] != bits);
        }
        assert!(judged >= 2, "{kind} changed {judged} of the expected weights");
        assert_eq!(changed, judged, "{kind}");
        adapter::take_off(model, applied).unwrap();
        assert!(all_weights(&pipeline) == before, "{kind} was not taken off exactly");
    }
}

#[test]
fn five_loras_at_once_add_up_in_any_order_of_calls_and_come_off_exactly() {
    let pipeline = pipeline("sd15");
    let model = pipeline.model();
    let before = all_weights(&pipeline);
    let kinds = ["kohya", "peft", "loha", "lokr", "whole"];
    let loras: Vec<Lora> = kinds.iter().map(|kind| lora(kind)).collect();
    let together = adapter::apply(model, &loras).unwrap();
    let sum = all_weights(&pipeline);
    adapter::take_off(model, together).unwrap();
    let apart: Vec<_> = loras
        .iter()
        .map(|lora| adapter::apply(model, std::slice::from_ref(lora)).unwrap())
        .collect();
    assert!(all_weights(&pipeline) == sum);
    // All five change this layer; their differences add up.
    let name = "unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight";
    let case = Case::open("loras/expected.safetensors");
    let plain: Vec<f32> = before[name].iter().copied().map(f32::from_bits).collect();
    let mut total = plain.clone();
    for kind in kinds {
        for ((total, one), plain) in total.iter_mut().zip(case.values(&format!("{kind}/{name}"))).zip(&plain) {
            *total += one - plain;
        }
    }
    let got: Vec<f32> = sum[name].iter().copied().map(f32::from_bits).collect();
    assert!(fixtures::distance(&got, &total) < 5e-5);
    for one in apart {
        adapter::take_off(model, one).unwrap();
    }
    assert!(all_weights(&pipeline) == before);
}

fn written(tensors: &[(&str, Tensor)]) -> (tempfile::TempDir, Lora) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let map: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
    candle_core::safetensors::save(&map, &path).unwrap();
    let lora = Lora::open(&path, 1.0, 1.0).unwrap();
    (dir, lora)
}

fn zeros(shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap()
}

const LAYER: &str = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";

#[test]
fn a_layer_is_known_by_the_names_of_every_maker() {
    let pipeline = pipeline("sd15");
    let to_q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let q_proj = "text_model.encoder.layers.0.self_attn.q_proj";
    for (layer, width) in [
        (LAYER.to_owned(), 32),
        (format!("lycoris_{}", to_q.replace('.', "_")), 32),
        (format!("lycoris_unet_{}", to_q.replace('.', "_")), 32),
        (format!("unet.{to_q}"), 32),
        (
            "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q".to_owned(),
            32,
        ),
        (
            "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q".to_owned(),
            32,
        ),
        (format!("lora_te_{}", q_proj.replace('.', "_")), 16),
        (format!("lora_te1_{}", q_proj.replace('.', "_")), 16),
        (format!("text_encoder.{q_proj}"), 16),
        (format!("text_encoders.clip_l.transformer.{q_proj}"), 16),
    ] {
        let (_dir, lora) = written(&[
            (&format!("{layer}.lora_up.weight"), zeros((width, 2))),
            (&format!("{layer}.lora_down.weight"), zeros((2, width))),
        ]);
        let before = all_weights(&pipeline);
        let applied = adapter::apply(pipeline.model(), &[lora]).unwrap();
        assert_eq!(applied.unknown_layers(), 0, "{layer}");
        let changed: Vec<String> = all_weights(&pipeline)
            .into_iter()
            .filter_map(|(name, bits)| (before[&name] != bits).then_some(name))
            .collect();
        let expected = match width {
            32 => "unet.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight".to_owned(),
            _ => format!("clip_l.{q_proj}.weight"),
        };
        assert_eq!(changed, [expected], "{layer}");
        adapter::take_off(pipeline.model(), applied).unwrap();
    }
}

#[test]
fn a_lora_of_another_family_is_refused_as_such_and_leaves_the_others_on() {
    let pipeline = pipeline("sd15");
    let model = pipeline.model();
    let on = adapter::apply(model, &[lora("kohya")]).unwrap();
    let before = all_weights(&pipeline);
    let sdxl = fixtures::path("models/lora/sdxl_lora_r2.safetensors");
    let foreign = [
        Lora::open(&sdxl, 1.0, 1.0).unwrap(),
        // A layer of this name, for a context of another width.
        written(&[
            (
                "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight",
                zeros((32, 2)),
            ),
            (
                "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
                zeros((2, 2048)),
            ),
        ])
        .1,
        written(&[("transformer.single_blocks.0.linear1.lora_A.weight", zeros((2, 2)))]).1,
        // A text encoder that only SDXL has, beside layers that fit.
        written(&[
            (&format!("{LAYER}.lora_up.weight"), zeros((32, 2))),
            (&format!("{LAYER}.lora_down.weight"), zeros((2, 32))),
            (
                "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight",
                zeros((2, 2)),
            ),
        ])
        .1,
        written(&[("model.diffusion_model.input_blocks.0.0.weight", zeros((2, 2)))]).1,
    ];
    for (i, one) in foreign.iter().enumerate() {
        match adapter::apply(model, std::slice::from_ref(one)) {
            Err(Error::Adapter { reason, .. }) => assert!(reason.len() > 20, "{i}: {reason}"),
            Err(error) => panic!("{i}: {error}"),
            Ok(_) => panic!("{i} was applied"),
        }
    }
    // One bad LoRA among good ones keeps all of them off.
    assert!(adapter::apply(model, &[lora("peft"), written(&[("x.diff", zeros(3))]).1]).is_err());
    assert!(all_weights(&pipeline) == before);
    adapter::take_off(model, on).unwrap();
}

#[test]
fn damaged_loras_are_refused_as_such() {
    let pipeline = pipeline("sd15");
    let before = all_weights(&pipeline);
    let name = |ending: &str| format!("{LAYER}{ending}");
    let [up, down, alpha] = [".lora_up.weight", ".lora_down.weight", ".alpha"].map(name);
    let core = name(".lora_mid.weight");
    let kron = [".lokr_w1", ".lokr_w2"].map(name);
    let hada = [".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"].map(name);
    let files: [&[(&str, Tensor)]; 8] = [
        &[(&up, zeros((32, 2)))],
        &[(&up, zeros((32, 2))), (&down, zeros((3, 32)))],
        &[(&up, zeros(32)), (&down, zeros((1, 32)))],
        &[(&up, zeros((32, 2))), (&down, zeros((2, 32))), (&alpha, zeros(2))],
        &[
            (&up, zeros((32, 2))),
            (&down, zeros((2, 32))),
            (&alpha, (zeros(1) * f64::NAN).unwrap()),
        ],
        &[
            (&up, zeros((32, 2))),
            (&down, zeros((2, 32))),
            (&core, zeros((2, 3, 1, 1))),
        ],
        &[(&kron[0], zeros(())), (&kron[1], zeros((8, 8)))],
        &[
            (&hada[0], zeros((32, 2))),
            (&hada[1], zeros((2, 32))),
            (&hada[2], zeros((32, 2))),
        ],
    ];
    for (i, file) in files.iter().enumerate() {
        let (_dir, lora) = written(file);
        match adapter::apply(pipeline.model(), &[lora]) {
            Err(Error::Damaged { .. }) => {}
            Err(error) => panic!("{i}: {error}"),
            Ok(_) => panic!("{i} was applied"),
        }
    }
    // A product that promises 10^18 values is found by its shapes alone.
    let (_dir, lora) = written(&[
        (&kron[0], zeros((1 << 10, 1 << 10))),
        (&kron[1], zeros((1 << 10, 1 << 10))),
    ]);
    assert!(adapter::apply(pipeline.model(), &[lora]).is_err());
    assert!(all_weights(&pipeline) == before);
    let none = fixtures::path("loras/none.safetensors");
    assert!(matches!(Lora::open(&none, 1.0, 1.0), Err(Error::Open { .. })));
}

#[test]
fn strengths_that_are_no_numbers_or_absurd_are_brought_within_bounds() {
    let path = fixtures::path("loras/kohya.safetensors");
    let lora = Lora::open(&path, f64::NAN, 1e9).unwrap();
    assert_eq!((lora.model_strength, lora.clip_strength), (1.0, 5.0));
    let lora = Lora::open(&path, f64::INFINITY, -1e9).unwrap();
    assert_eq!((lora.model_strength, lora.clip_strength), (1.0, -5.0));
}
