//! The published weights, as the program fetches and converts them, give on photographs what ncnn and onnxruntime give with
//! the files that they were published in (`fixtures/real_cases.py`). `./x` fetches them; `HORDE_WORKERS_MODELS` says where
//! they lie.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use imaging::{Limits, Picture};
use vision::Weights;
use vision::background::BackgroundRemover;
use vision::nsfw::OpenNsfw;
use vision::upscale::Upscaler;

use crate::fidelity::root;

fn weights(file: &str) -> Weights {
    let path = test_support::models_dir().join(file);
    assert!(
        path.is_file(),
        "{} is not there\nhint: `./x models realesrgan-x4plus realesrgan-x4plus-anime-6b realesr-animevideov3 u2netp open-nsfw`",
        path.display()
    );
    Weights::open(&path, &Device::Cpu).unwrap()
}

fn photo(name: &str) -> Picture {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/photos/{name}.png"));
    imaging::decode(&std::fs::read(path).unwrap(), &Limits::image_job())
        .unwrap()
        .to_rgb()
}

fn expected(name: &str) -> Tensor {
    let all = candle_core::safetensors::load(root().join("cases/real/real.safetensors"), &Device::Cpu).unwrap();
    all[name].to_dtype(DType::F32).unwrap()
}

/// The largest difference of the numbers.
fn apart(got: impl IntoIterator<Item = f32>, expected: &Tensor) -> f32 {
    let got: Vec<f32> = got.into_iter().collect();
    let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(got.len(), expected.len());
    let apart = got.iter().zip(&expected).map(|(a, b)| (a - b).abs());
    apart.fold(0.0, f32::max)
}

#[test]
fn upscalers_draw_what_ncnn_draws_with_the_published_files() {
    for (file, name, [left, top, width, height]) in [
        ("RealESRGAN_x4plus", "astronaut", [200, 90, 32, 32]),
        ("RealESRGAN_x4plus_anime_6B", "coffee", [300, 150, 32, 32]),
        ("realesr-animevideov3", "chelsea", [120, 80, 40, 32]),
    ] {
        let net = Upscaler::load(&weights(&format!("esrgan/{file}.safetensors"))).unwrap();
        let crop = photo(name).crop(left, top, width, height).unwrap();
        let drawn = net.forward(&crop.to_planar()).unwrap();
        // Numbers from 0 to 1, of which half of the f16's last digit is 2.5e-4.
        let apart = apart(drawn.data().iter().copied(), &expected(file));
        assert!(apart <= 5e-4, "{file}: {apart}");
    }
}

#[test]
fn u2netp_and_open_nsfw_see_what_onnxruntime_sees_with_the_published_files() {
    let remover = BackgroundRemover::load(&weights("rembg/u2netp.safetensors")).unwrap();
    let (side, mask) = remover.forward(&photo("chelsea")).unwrap();
    assert_eq!(side, 320);
    let every_second = mask.chunks_exact(640).flat_map(|rows| rows[..320].iter().step_by(2));
    let apart_mask = apart(every_second.copied(), &expected("u2netp"));
    assert!(apart_mask <= 1e-3, "{apart_mask}");

    let judge = OpenNsfw::load(&weights("nsfw/open_nsfw.safetensors")).unwrap();
    let scores = ["astronaut", "chelsea", "coffee"].map(|name| judge.score(&photo(name)).unwrap());
    let apart_scores = apart(scores, &expected("open_nsfw"));
    assert!(apart_scores <= 2e-5, "{scores:?}, {apart_scores} apart");
}
