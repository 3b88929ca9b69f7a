//! Reference values copied into this repository; `tests/fixtures/README.md` tells their origin.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use diffusion::safetensors_file::SafetensorsFile;
use serde_json::Value;

pub fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

pub fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(name)).unwrap()).unwrap()
}

pub struct Case(SafetensorsFile);

impl Case {
    pub fn open(name: &str) -> Self {
        Self(SafetensorsFile::open(&path(name)).unwrap())
    }

    pub fn tensor(&self, name: &str) -> Tensor {
        self.0.tensor(name, DType::F32, &Device::Cpu).unwrap()
    }

    pub fn values(&self, name: &str) -> Vec<f32> {
        self.tensor(name).flatten_all().unwrap().to_vec1().unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.shape(name).is_some()
    }
}

/// The largest difference; infinite where lengths differ or a value is not a number.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    let worst = |worst: f32, (a, b): (&f32, &f32)| {
        let d = (a - b).abs();
        if d.is_nan() { f32::INFINITY } else { worst.max(d) }
    };
    a.iter().zip(b).fold(0.0, worst)
}
