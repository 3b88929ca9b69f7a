use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use imaging::Limits;

use crate::runner::{self, Case, Made};

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A case and what it is judged by.
#[derive(serde::Deserialize)]
struct Judged {
    #[serde(flatten)]
    case: Case,
    expect: Vec<serde_json::Value>,
}

fn check_group(group: &str) {
    let cases: Vec<Judged> = runner::cases::<Judged>(&root())
        .unwrap()
        .into_iter()
        .filter(|judged| judged.case.group == group)
        .collect();
    assert!(!cases.is_empty(), "the manifest has no case of {group}");
    for Judged { case, expect } in &cases {
        let made = runner::run(&root(), case).unwrap_or_else(|e| panic!("{group}/{}: {e}", case.id));
        for expected in expect {
            judge(case, expected, &made);
        }
    }
}

fn judge(case: &Case, expected: &serde_json::Value, made: &Made) {
    let limit = |key: &str| expected[key].as_f64();
    let (name, wanted, got) = if expected["image"] == true {
        let read = |bytes: &[u8]| {
            let picture = imaging::decode(bytes, &Limits::image_job()).unwrap();
            picture.data().iter().map(|v| f64::from(*v)).collect::<Vec<_>>()
        };
        let wanted = std::fs::read(root().join(&case.files["image"])).unwrap();
        (
            "image",
            read(&wanted),
            read(made.png.as_ref().expect("the case makes a picture")),
        )
    } else if let Some(name) = expected["tensor"].as_str() {
        let wanted = stored(&root().join(&case.files["tensors"]), name);
        ("tensor", wanted, values(&made.tensors[name]))
    } else {
        return;
    };
    assert_eq!(wanted.len(), got.len(), "{}: {name} has another size", case.id);
    let apart: Vec<f64> = wanted.iter().zip(&got).map(|(a, b)| (a - b).abs()).collect();
    let most = apart.iter().copied().fold(0.0, f64::max);
    let mean = apart.iter().sum::<f64>() / apart.len() as f64;
    let bound = if expected["exact"] == true {
        0.0
    } else {
        limit("max_abs").unwrap_or(f64::INFINITY)
    };
    assert!(most <= bound, "{}: {expected} differs by {most}", case.id);
    assert!(
        mean <= limit("mean_abs").unwrap_or(f64::INFINITY),
        "{}: {expected} differs by {mean} on average",
        case.id
    );
    if let Some(decibels) = limit("psnr") {
        let square = apart.iter().map(|d| d * d).sum::<f64>() / apart.len() as f64;
        assert!(
            10.0 * (255.0 * 255.0 / square).log10() >= decibels,
            "{}: {expected} mean square {square}",
            case.id
        );
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// A stored tensor, booleans as 0 and 1.
fn stored(path: &Path, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(name).unwrap();
    if view.dtype() == safetensors::Dtype::BOOL {
        return view.data().iter().map(|b| f64::from(*b)).collect();
    }
    values(&candle_core::safetensors::load_buffer(&with_only(&view, name), &Device::Cpu).unwrap()[name])
}

fn with_only(view: &safetensors::tensor::TensorView<'_>, name: &str) -> Vec<u8> {
    safetensors::serialize([(name, view)], None).unwrap()
}

#[test]
fn upscalers_give_the_references_numbers() {
    check_group("upscale");
}

#[test]
fn gfpgan_gives_the_references_numbers() {
    check_group("face");
}

#[test]
fn clip_gives_the_references_numbers() {
    check_group("clip");
}

#[test]
fn the_safety_checker_gives_the_references_numbers() {
    check_group("safety");
}

#[test]
fn blip_says_the_references_tokens() {
    check_group("blip");
}

#[test]
fn u2net_gives_the_references_mask() {
    check_group("u2net");
}

#[test]
fn matting_gives_the_references_cut_out() {
    check_group("matting");
}
