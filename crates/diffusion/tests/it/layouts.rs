//! Checkpoints as they are published: names of several makers, parts in files of their own, shards and variants. All are made
//! of the tiny model, so that each must give its very picture.

use std::path::{Path, PathBuf};

use candle_core::Device;
use diffusion::{Error, ModelFiles, Overrides, Pipeline, model::Family, nn::unet::Heads, sigma::Prediction};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::{
    checkpoints::{Parts, folder_with_heads, latent, packed, parts, parts_of},
    fixtures,
    networks::{load, pipeline},
};

const TEXT: &str = "cond_stage_model.transformer.";
const UNET: &str = "model.diffusion_model.";
const VAE: &str = "first_stage_model.";

fn write(path: &Path, parts: &Parts) {
    std::fs::write(path, packed(parts)).unwrap();
}

fn renamed(parts: &Parts, rename: impl Fn(&str) -> Option<String>) -> Parts {
    let kept = parts
        .iter()
        .filter_map(|(name, tensor)| Some((rename(name)?, tensor.clone())));
    kept.collect()
}

fn overrides() -> Overrides {
    Overrides {
        norm_groups: Some(8),
        heads: Some(Heads::Count(8)),
        text_heads: Some(2),
        ..Overrides::default()
    }
}

fn open(files: &ModelFiles) -> diffusion::Result<Pipeline> {
    Pipeline::load(files, &Device::Cpu, overrides())
}

fn zeros(format: Dtype, shape: &[usize], bytes: usize) -> (Dtype, Vec<usize>, Vec<u8>) {
    (format, shape.to_vec(), vec![0; bytes * shape.iter().product::<usize>()])
}

#[test]
fn what_makers_leave_in_their_checkpoints_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let reference = latent(&pipeline("sd15"));
    let mut full = parts();
    for (name, tensor) in [
        (
            format!("{TEXT}text_model.embeddings.position_ids"),
            zeros(Dtype::I64, &[1, 77], 8),
        ),
        (
            format!("{TEXT}vision_model.pre_layrnorm.weight"),
            zeros(Dtype::F16, &[4], 2),
        ),
        (format!("{TEXT}logit_scale"), zeros(Dtype::F32, &[], 4)),
        ("model_ema.decay".into(), zeros(Dtype::F32, &[], 4)),
        (
            "model_ema.diffusion_modelinput_blocks00weight".into(),
            zeros(Dtype::F16, &[32, 4, 3, 3], 2),
        ),
        ("model_ema.num_updates".into(), zeros(Dtype::I32, &[], 4)),
        ("betas".into(), zeros(Dtype::F32, &[1000], 4)),
        (format!("{VAE}loss.logvar"), zeros(Dtype::F32, &[], 4)),
        ("state.flags".into(), zeros(Dtype::BOOL, &[3], 1)),
    ] {
        full.insert(name, tensor);
    }
    write(&path, &full);
    assert!(latent(&load("sd15", path.clone()).unwrap()) == reference);
    // The oldest files name the text encoder without its inner level.
    let old = renamed(&parts(), |name| {
        Some(name.replace("transformer.text_model.", "transformer."))
    });
    write(&path, &old);
    assert!(latent(&load("sd15", path).unwrap()) == reference);
}

/// The tiny model with its text encoder in OpenCLIP's names under `prefix`: what it says differs, for its activation does.
fn with_open_clip(prefix: &str) -> Parts {
    let all = parts();
    let mut out = renamed(&all, |name| (!name.starts_with(TEXT)).then(|| name.to_owned()));
    for (name, tensor) in &all {
        let Some(name) = name.strip_prefix(&format!("{TEXT}text_model.")) else {
            continue;
        };
        let name = name
            .replace("embeddings.position_embedding.weight", "positional_embedding")
            .replace("embeddings.token_embedding", "token_embedding")
            .replace("final_layer_norm", "ln_final")
            .replace("encoder.layers", "transformer.resblocks")
            .replace("layer_norm", "ln_")
            .replace("mlp.fc1", "mlp.c_fc")
            .replace("mlp.fc2", "mlp.c_proj")
            .replace("self_attn.", "attn.");
        let Some((layer, kind)) = name.split_once(".q_proj.") else {
            if !name.contains(".k_proj.") && !name.contains(".v_proj.") {
                out.insert(format!("{prefix}{name}"), tensor.clone());
            }
            continue;
        };
        let of = |head: &str| &all[&format!("{TEXT}text_model.{}", theirs(layer, head, kind))];
        let (format, shape, mut bytes) = tensor.clone();
        bytes.extend(&of("k_proj").2);
        bytes.extend(&of("v_proj").2);
        let shape = [&[3 * shape[0]], &shape[1..]].concat();
        out.insert(format!("{prefix}{layer}.in_proj_{kind}"), (format, shape, bytes));
    }
    out
}

fn theirs(layer: &str, head: &str, kind: &str) -> String {
    let layer = layer
        .replace("transformer.resblocks", "encoder.layers")
        .replace("attn", "self_attn");
    format!("{layer}.{head}.{kind}")
}

#[test]
fn both_layouts_of_stable_diffusion_2_are_one_model_and_its_bias_tells_what_it_predicts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let opened = |parts: &Parts| {
        write(&path, parts);
        let pipeline = load("sd15", path.clone()).unwrap();
        assert_eq!(pipeline.model().family, Family::Sd2);
        pipeline
    };
    let mut model = with_open_clip("cond_stage_model.model.");
    let reference = latent(&opened(&model));
    assert!(latent(&opened(&with_open_clip("conditioner.embedders.0.model."))) == reference);
    assert!(
        reference != latent(&pipeline("sd15")),
        "the activation is that of OpenCLIP"
    );

    // A bias whose values spread by 0.1 marks velocity models; 0.08 is too little.
    let telltale = format!("{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias");
    let spread = |by: f32| {
        let halves = (0..32).map(|i| half::f16::from_f32(if i % 2 == 0 { by } else { -by }));
        (
            Dtype::F16,
            vec![32],
            halves.flat_map(half::f16::to_le_bytes).collect::<Vec<u8>>(),
        )
    };
    for (by, prediction) in [(0.08, Prediction::Epsilon), (0.1, Prediction::V)] {
        model.insert(telltale.clone(), spread(by));
        assert_eq!(opened(&model).model().prediction, prediction, "{by}");
    }
    // Of nine channels they are inpainting models, which predict the noise.
    let widened = zeros(Dtype::F16, &[32, 9, 3, 3], 2);
    model.insert(format!("{UNET}input_blocks.0.0.weight"), widened);
    assert_eq!(opened(&model).model().prediction, Prediction::Epsilon);
}

#[test]
fn marks_in_a_file_of_sdxl_tell_what_it_predicts_and_its_last_level() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let whole = parts_of(&fixtures::path("models/sdxl/tiny_sdxl.safetensors"));
    for (marks, prediction, largest) in [
        (&[][..], Prediction::Epsilon, 14.6),
        (&["v_pred"], Prediction::V, 14.6),
        (&["v_pred", "ztsnr"], Prediction::V, 4518.8),
        // Alone it says nothing to ComfyUI either.
        (&["ztsnr"], Prediction::Epsilon, 14.6),
    ] {
        let mut marked = whole.clone();
        marked.extend(
            marks
                .iter()
                .map(|mark| ((*mark).to_owned(), zeros(Dtype::F32, &[0], 4))),
        );
        write(&path, &marked);
        let pipeline = load("sdxl", path.clone()).unwrap();
        let model = pipeline.model();
        assert_eq!(model.prediction, prediction, "{marks:?}");
        assert!(
            (model.levels.max() - largest).abs() < 0.1,
            "{marks:?}: {}",
            model.levels.max()
        );
    }
}

#[test]
fn a_vae_of_its_own_may_have_any_of_three_layouts() {
    let folder = tempfile::tempdir().unwrap();
    let [checkpoint, vae] = ["x.safetensors", "vae.safetensors"].map(|name| folder.path().join(name));
    let whole = parts();
    write(
        &checkpoint,
        &renamed(&whole, |name| (!name.starts_with(VAE)).then(|| name.to_owned())),
    );
    let without = open(&ModelFiles {
        checkpoint: checkpoint.clone(),
        ..ModelFiles::default()
    });
    let error = without.map(drop).unwrap_err().to_string();
    assert!(error.contains("vae."), "{error}");
    let reference = pipeline("sd15");
    let own = renamed(&whole, |name| Some(name.strip_prefix(VAE)?.to_owned()));
    let prefixed = renamed(&whole, |name| name.starts_with(VAE).then(|| name.to_owned()));
    let diffusers = renamed(&own, |name| Some(to_diffusers(name)));
    assert!(diffusers.contains_key("decoder.up_blocks.0.resnets.2.conv1.weight"));
    for (kind, parts) in [("own", own), ("prefixed", prefixed), ("diffusers", diffusers)] {
        write(&vae, &parts);
        let files = ModelFiles {
            checkpoint: checkpoint.clone(),
            unet: None,
            vae: Some(vae.clone()),
        };
        let request = diffusion::Request {
            steps: 1,
            ..diffusion::Request::new("a cat", 64, 64)
        };
        let made = open(&files).unwrap().generate(&request, &mut ()).unwrap();
        let expected = reference.generate(&request, &mut ()).unwrap();
        assert!(
            made[0].to_rgb().to_planar().into_data() == expected[0].to_rgb().to_planar().into_data(),
            "{kind}"
        );
    }
}

/// A VAE's name in diffusers' terms; the tiny one has four levels.
fn to_diffusers(name: &str) -> String {
    let mut name = name.to_owned();
    for level in 0..4 {
        name = name.replace(
            &format!("decoder.up.{level}."),
            &format!("decoder.up_blocks.{}.", 3 - level),
        );
        name = name.replace(
            &format!("encoder.down.{level}."),
            &format!("encoder.down_blocks.{level}."),
        );
    }
    for (ours, theirs) in [
        (".block.", ".resnets."),
        ("downsample.", "downsamplers.0."),
        ("upsample.", "upsamplers.0."),
        ("mid.block_1.", "mid_block.resnets.0."),
        ("mid.block_2.", "mid_block.resnets.1."),
        ("mid.attn_1.norm.", "mid_block.attentions.0.group_norm."),
        ("mid.attn_1.q.", "mid_block.attentions.0.to_q."),
        ("mid.attn_1.k.", "mid_block.attentions.0.to_k."),
        ("mid.attn_1.v.", "mid_block.attentions.0.to_v."),
        ("mid.attn_1.proj_out.", "mid_block.attentions.0.to_out.0."),
        ("norm_out.", "conv_norm_out."),
        ("nin_shortcut.", "conv_shortcut."),
    ] {
        name = name.replace(ours, theirs);
    }
    name
}

/// Cuts the one file of a folder into two shards with an index, called as `variant` has it.
fn cut(folder: &Path, stem: &str, variant: &str) {
    let whole = folder.join(format!("{stem}.safetensors"));
    let parts = parts_of(&whole);
    std::fs::remove_file(whole).unwrap();
    let mut map = serde_json::Map::new();
    for shard in 0..2 {
        let file = format!("{stem}{variant}-0000{}-of-00002.safetensors", shard + 1);
        // Neighbouring tensors part, so that no shard knows the whole structure.
        let mine = renamed(&parts, |name| (name.len() % 2 == shard).then(|| name.to_owned()));
        assert!(!mine.is_empty() && mine.len() < parts.len());
        map.extend(mine.keys().map(|name| (name.clone(), json!(file))));
        write(&folder.join(file), &mine);
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    write_json(&folder.join(format!("{stem}.safetensors.index{variant}.json")), &index);
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn folders_with_shards_and_variants_give_the_picture_of_whole_files() {
    let folder = folder_with_heads(&Value::Null);
    let root: PathBuf = folder.path().to_owned();
    let open = || {
        let files = ModelFiles {
            checkpoint: root.clone(),
            ..ModelFiles::default()
        };
        Pipeline::load(&files, &Device::Cpu, Overrides::default())
    };
    let reference = latent(&open().unwrap());
    let [unet, vae, text] = ["unet", "vae", "text_encoder"].map(|part| root.join(part));
    cut(&unet, "diffusion_pytorch_model", "");
    cut(&text, "model", ".fp16");
    std::fs::rename(
        vae.join("model.safetensors"),
        vae.join("diffusion_pytorch_model.fp16.safetensors"),
    )
    .unwrap();
    // Of two variants the plain one counts.
    std::fs::write(unet.join("diffusion_pytorch_model.fp16.safetensors"), [0; 8]).unwrap();
    assert!(latent(&open().unwrap()) == reference);
    // The number of heads under its other name, which diffusers prefers.
    let mut config = fixtures::json("models/heads/unet/config.json");
    config["num_attention_heads"] = config["attention_head_dim"].take();
    config["attention_head_dim"] = json!(1);
    write_json(&unet.join("config.json"), &config);
    assert!(latent(&open().unwrap()) == reference);

    std::fs::create_dir_all(root.join("scheduler")).unwrap();
    let scheduler = root.join("scheduler/scheduler_config.json");
    write_json(&scheduler, &json!({ "_class_name": "EDMDPMSolverMultistepScheduler" }));
    let error = open().map(drop).unwrap_err().to_string();
    assert!(error.contains("EDM's noise levels"), "{error}");
    write_json(&scheduler, &json!({ "_class_name": "EulerDiscreteScheduler" }));
    assert!(latent(&open().unwrap()) == reference);

    let index = unet.join("diffusion_pytorch_model.safetensors.index.json");
    for (bad, why) in [
        (
            json!({ "weight_map": { "a": "../../x.safetensors" } }),
            "is not beside it",
        ),
        (json!({ "weight_map": {} }), "it names 0 files"),
        (json!([]), "no `weight_map`"),
        (json!({ "weight_map": { "a": "gone.safetensors" } }), "cannot read"),
    ] {
        write_json(&index, &bad);
        let error = open().map(drop).unwrap_err().to_string();
        assert!(error.contains(why), "{bad}: {error}");
    }
    std::fs::remove_dir_all(&vae).unwrap();
    std::fs::create_dir(&vae).unwrap();
    std::fs::write(vae.join("diffusion_pytorch_model.bin"), [0x80, 2, b'}']).unwrap();
    let error = open().map(drop).unwrap_err().to_string();
    assert!(
        error.contains("holds no weights as safetensors") || error.contains("cannot read"),
        "{error}"
    );
}

#[test]
fn eight_bit_weights_are_multiplied_by_the_scale_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let mut model = parts();
    let layer = format!("{UNET}middle_block.1.transformer_blocks.0.attn1.to_q");
    let scaled = |byte: u8, scale: f32, model: &mut Parts| {
        let (_, shape, _) = model[&format!("{layer}.weight")].clone();
        let bytes = vec![byte; shape.iter().product()];
        model.insert(format!("{layer}.weight"), (Dtype::F8_E4M3, shape, bytes));
        model.insert(
            format!("{layer}.scale_weight"),
            (Dtype::F32, vec![], scale.to_le_bytes().to_vec()),
        );
        model.insert(format!("{layer}.scale_input"), zeros(Dtype::F32, &[], 4));
        model.insert(format!("{UNET}scaled_fp8"), zeros(Dtype::F8_E4M3, &[2], 1));
    };
    let of = |model: &Parts| {
        write(&path, model);
        let pipeline = load("sd15", path.clone()).unwrap();
        let weight = pipeline
            .model()
            .params()
            .get("unet.middle_block.1.transformer_blocks.0.attn1.to_q.weight");
        weight.unwrap().get().flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    scaled(0x38, 0.375, &mut model); // 1
    assert!(of(&model).iter().all(|value| *value == 0.375));
    model.insert(format!("{layer}.scale_weight"), zeros(Dtype::F32, &[2], 4));
    write(&path, &model);
    let error = load("sd15", path.clone()).map(drop).unwrap_err().to_string();
    assert!(error.contains("2 scales instead of one"), "{error}");
}

#[test]
fn what_is_no_model_of_ours_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.ckpt");
    for bytes in [
        &b"PK\x03\x04\0\0\x08\x08\0\0\0\0"[..],
        &[0x80, 2, b'}', b'q', 0, b'X', 5, 0, 0, 0],
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = load("sd15", path.clone()).map(drop).unwrap_err();
        assert!(matches!(error, Error::Pickle { .. }), "{error}");
        let words = error.to_string();
        assert!(
            words.contains("x.ckpt") && words.contains("hint: use the model's safetensors"),
            "{words}"
        );
    }
    let refused = |model: &Parts| {
        write(&path, model);
        load("sd15", path.clone()).map(drop).unwrap_err().to_string()
    };
    // InstructPix2Pix takes eight channels, depth models five.
    for channels in [5, 8] {
        let mut model = parts();
        let widened = zeros(Dtype::F16, &[32, channels, 3, 3], 2);
        model.insert(format!("{UNET}input_blocks.0.0.weight"), widened);
        let error = refused(&model);
        assert!(error.contains(&format!("takes {channels} channels")), "{error}");
    }
    let mut refiner = with_open_clip("conditioner.embedders.0.model.");
    for (layer, inputs) in [(0, 256), (2, 128)] {
        refiner.insert(
            format!("{UNET}label_emb.0.{layer}.weight"),
            zeros(Dtype::F16, &[128, inputs], 2),
        );
        refiner.insert(format!("{UNET}label_emb.0.{layer}.bias"), zeros(Dtype::F16, &[128], 2));
    }
    let error = refused(&refiner);
    assert!(error.contains("refiner"), "{error}");
    for mark in ["edm_mean", "edm_vpred.sigma_max"] {
        let mut model = parts();
        model.insert(mark.to_owned(), zeros(Dtype::F32, &[1], 4));
        let error = refused(&model);
        assert!(error.contains("EDM's noise levels"), "{error}");
    }
}
