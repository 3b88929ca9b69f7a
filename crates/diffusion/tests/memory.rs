//! Memory: what the plan promises against what is taken, and that nothing is kept twice. A binary of its own, because it
//! counts every byte that is allocated, in one test at a time.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::PathBuf;

use candle_core::Device;
use diffusion::{
    ModelFiles, Overrides, Pipeline, Request, Source,
    adapter::{self, Lora},
    nn::unet::Heads,
    pipeline::WHOLE_PIXELS,
    plan,
    sample::Sampler,
};
use imaging::Picture;
use test_support::{Counting, alone, held, most_during};

#[global_allocator]
static COUNTING: Counting = Counting;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn files(name: &str) -> ModelFiles {
    ModelFiles {
        checkpoint: path(&format!("models/{name}/tiny_{name}.safetensors")),
        ..ModelFiles::default()
    }
}

fn load(name: &str) -> Pipeline {
    let overrides = Overrides {
        norm_groups: Some(8),
        heads: Some(match name {
            "sd15" => Heads::Count(8),
            _ => Heads::Size(16),
        }),
        text_heads: Some(2),
        ..Overrides::default()
    };
    Pipeline::load(&files(name), &Device::Cpu, overrides).unwrap()
}

fn request(width: u32, height: u32, batch: usize) -> Request {
    Request {
        steps: 1,
        batch,
        sampler: Sampler::Euler,
        ..Request::new("a cat ### dog", width, height)
    }
}

/// Within these factors the plan holds: it may promise a third too little, or half of it may not be needed.
const FACTORS: std::ops::RangeInclusive<f64> = 0.75..=2.0;

#[test]
fn the_plan_tells_what_is_taken_within_its_factor() {
    let _alone = alone();
    // What is read once and kept, such as the vocabulary, is no part of any request.
    load("sd15").generate(&request(64, 64, 1), &mut ()).unwrap();
    let mut wrong = Vec::new();
    for (name, width, height, batch, with_source, in_tiles) in [
        ("sd15", 256, 256, 1, false, false),
        ("sd15", 384, 256, 1, true, false),
        ("sd15", 256, 256, 3, false, false),
        ("sdxl", 256, 384, 1, false, false),
        ("sd15", 1024, 512, 1, false, true),
    ] {
        let whole_pixels = if in_tiles { 0 } else { WHOLE_PIXELS };
        let mut request = request(width, height, batch);
        if with_source {
            request.source = Some(Source {
                picture: Picture::from_rgb(width, height, vec![77; (width * height * 3) as usize]).unwrap(),
                mask: None,
                inpaint: false,
                denoise: 1.0,
            });
        }
        let plan = plan(&files(name), &[], &request, &Device::Cpu, whole_pixels).unwrap();
        let (loading, mut pipeline) = most_during(|| load(name));
        pipeline.whole_pixels = whole_pixels;
        let held = plan.weights_bytes as f64 / loading as f64;
        let (taken, _) = most_during(|| pipeline.generate(&request, &mut ()));
        let planned = plan.peak_bytes() - plan.weights_bytes;
        let factor = planned as f64 / taken as f64;
        println!(
            "{name} {width}x{height} x{batch}: weights {held:.2}, {planned} planned for {taken}: {factor:.2} {plan:?}"
        );
        if !FACTORS.contains(&factor) || !(0.8..=1.1).contains(&held) {
            wrong.push(format!(
                "{name} {width}x{height} x{batch}: {factor:.2}, weights {held:.2}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_lora_is_applied_without_a_second_copy_of_the_model() {
    let _alone = alone();
    let pipeline = load("sd15");
    let lora = || Lora::open(&path("models/lora/sd15_lora_r4.safetensors"), 0.6, 0.6).unwrap();
    // Matrix products keep a small workspace per thread from their first use on.
    adapter::take_off(pipeline.model(), adapter::apply(pipeline.model(), &[lora()]).unwrap()).unwrap();
    let before = held();
    let (most, applied) = most_during(|| adapter::apply(pipeline.model(), &[lora()]).unwrap());
    let kept = held() - before;
    let plan = plan(&files("sd15"), &[], &request(64, 64, 1), &Device::Cpu, WHOLE_PIXELS).unwrap();
    let weights = plan.weights_bytes as usize;
    assert!(kept < weights / 20, "{kept} bytes kept beside {weights} of weights");
    assert!(most < weights / 5, "{most} bytes at most beside {weights} of weights");
    adapter::take_off(pipeline.model(), applied).unwrap();
    let after = held();
    assert!(after <= before + 4096, "{} bytes are left", after - before);
}
