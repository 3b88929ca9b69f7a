//! Each network alone: text encoders, one denoiser call, the VAE both ways.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use diffusion::{
    ModelFiles, Overrides, Pipeline,
    nn::unet::{Conditions, Heads},
    safetensors_file::SafetensorsFile,
};
use imaging::{Limits, Picture};

use crate::fixtures::{self, Case};

pub fn pipeline(name: &str) -> Pipeline {
    load(name, fixtures::path(&format!("models/{name}/tiny_{name}.safetensors"))).unwrap()
}

/// A checkpoint of the tiny model `name` in another file.
pub fn load(name: &str, checkpoint: PathBuf) -> diffusion::Result<Pipeline> {
    let files = ModelFiles {
        checkpoint,
        ..ModelFiles::default()
    };
    let overrides = Overrides {
        norm_groups: Some(8),
        heads: Some(if name == "sd15" {
            Heads::Count(8)
        } else {
            Heads::Size(16)
        }),
        text_heads: Some(2),
        ..Overrides::default()
    };
    Pipeline::load(&files, &Device::Cpu, overrides)
}

pub fn input(name: &str) -> Picture {
    let bytes = std::fs::read(fixtures::path(&format!("inputs/{name}"))).unwrap();
    imaging::decode(&bytes, &Limits::image_job()).unwrap()
}

pub fn close(got: &Tensor, case: &Case, name: &str, limit: f32) {
    let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
    let error = fixtures::distance(&got, &case.values(name));
    assert!(error <= limit, "{name}: {error} above {limit}");
}

#[test]
fn text_encoders_give_the_references_states_at_every_layer() {
    let prompt = "(golden:1.4) dragon over a (burning castle), [night], 8k ";
    for name in ["sd15", "sdxl"] {
        let (pipeline, case) = (pipeline(name), Case::open(&format!("cases/text/{name}_1.safetensors")));
        for (key, skip) in [
            ("default", None),
            ("skip1", Some(1)),
            ("skip2", Some(2)),
            ("skip3", Some(3)),
        ] {
            let encoded = pipeline.model().encode(prompt, skip, &*pipeline.embeddings).unwrap();
            close(&encoded.context, &case, key, 2e-4);
            close(&encoded.pooled, &case, &format!("{key}_pooled"), 2e-4);
        }
    }
}

#[test]
fn layers_that_an_encoder_does_not_have_mean_its_last_with_the_final_norm() {
    // The tiny encoders have 4 and 5 layers: the fifth from the end is one of them, the sixth of neither.
    let (pipeline, case) = (pipeline("sdxl"), Case::open("cases/text/sdxl_deep_skips.safetensors"));
    for skip in [5, 6] {
        let prompt = "a (red:1.3) fox in the snow ";
        let encoded = pipeline
            .model()
            .encode(prompt, Some(skip), &*pipeline.embeddings)
            .unwrap();
        close(&encoded.context, &case, &format!("skip{skip}"), 2e-4);
        close(&encoded.pooled, &case, &format!("skip{skip}_pooled"), 2e-4);
    }
}

#[test]
fn one_call_of_the_denoiser_gives_the_references_output() {
    for name in ["sd15", "sdxl"] {
        let (pipeline, case) = (
            pipeline(name),
            Case::open(&format!("cases/denoiser/{name}_1.safetensors")),
        );
        let label = case.has("y").then(|| case.tensor("y"));
        let conditions = Conditions {
            context: &case.tensor("context"),
            label: label.as_ref(),
            residuals: None,
            circular: false,
        };
        let out = pipeline
            .model()
            .unet
            .forward(&case.tensor("x"), &case.values("t"), &conditions)
            .unwrap();
        close(&out, &case, "out", 2.1e-4);
    }
}

#[test]
fn the_vae_gives_the_references_values_both_ways() {
    let source = input("init_64x64.png").to_rgb().to_planar().into_data();
    let pixels = source.iter().map(|value| value * 2.0 - 1.0).collect();
    let pixels = Tensor::from_vec(pixels, (1, 3, 64, 64), &Device::Cpu).unwrap();
    for name in ["sd15", "sdxl"] {
        let (pipeline, case) = (pipeline(name), Case::open(&format!("cases/vae/{name}.safetensors")));
        let vae = &pipeline.model().vae;
        close(
            &vae.decode(&case.tensor("latent"), false).unwrap(),
            &case,
            "decoded_raw",
            1e-4,
        );
        close(&vae.encode(&pixels, false).unwrap(), &case, "encoded", 5e-4);
    }
}

#[test]
fn a_lora_file_is_no_checkpoint_and_a_truncated_one_is_refused() {
    let open = |path| {
        let files = ModelFiles {
            checkpoint: path,
            ..ModelFiles::default()
        };
        Pipeline::load(&files, &Device::Cpu, Overrides::default())
    };
    assert!(open(fixtures::path("models/lora/sd15_lora_r4.safetensors")).is_err());
    let whole = std::fs::read(fixtures::path("models/sd15/tiny_sd15.safetensors")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.safetensors");
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(open(path.clone()).is_err());
    assert!(SafetensorsFile::open(&path).is_err());
    let none = fixtures::path("models/none.safetensors");
    assert!(open(none).is_err());
}
