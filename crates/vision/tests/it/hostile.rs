//! Weights that lie: every network, with one tensor after another left out, emptied, bent, retyped or filled with what is no
//! number, either runs or says why not.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use imaging::{Picture, Planar};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use vision::background::BackgroundRemover;
use vision::blip::{Blip, BlipConfig, CaptionSettings, Search};
use vision::clip::{Clip, ClipConfig};
use vision::face::{FaceDetector, FaceParser, FaceRestorer};
use vision::nsfw::SdSafetyChecker;
use vision::upscale::{Tiling, Upscaler};
use vision::{Result, Weights};

use crate::fidelity::root;
use crate::made_up;

/// A tensor as a file holds it.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type File = BTreeMap<String, Stored>;

impl Stored {
    fn f32(shape: Vec<usize>, values: impl Iterator<Item = f32>) -> Self {
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        Self {
            dtype: Dtype::F32,
            shape,
            bytes,
        }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn last(&self) -> usize {
        self.shape.len().saturating_sub(1)
    }

    /// As many values as before of this many bytes each.
    fn retyped(&self, dtype: Dtype, size: usize, byte: u8) -> Self {
        let bytes = vec![byte; size * self.len()];
        let shape = self.shape.clone();
        Self { dtype, shape, bytes }
    }

    fn filled(&self, value: f32) -> Self {
        Self::f32(self.shape.clone(), std::iter::repeat_n(value, self.len()))
    }

    fn values(&self) -> impl Iterator<Item = f32> + '_ {
        self.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
    }

    fn of(tensor: &Tensor) -> Self {
        let values = tensor
            .to_dtype(DType::F32)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        Self::f32(tensor.dims().to_vec(), values.into_iter())
    }

    /// The same values again and again in another shape.
    fn bent(&self, shape: Vec<usize>) -> Self {
        let n = shape.iter().product();
        let values: Vec<f32> = self.values().collect();
        Self::f32(
            shape,
            values
                .iter()
                .copied()
                .cycle()
                .take(if values.is_empty() { 0 } else { n }),
        )
    }

    fn with_axis(&self, axis: usize, change: impl Fn(usize) -> usize) -> Self {
        let mut shape = self.shape.clone();
        if let Some(len) = shape.get_mut(axis) {
            *len = change(*len);
        }
        self.bent(shape)
    }
}

/// A tensor with another shape, type or values; nothing where it is left out.
type Change = fn(&Stored) -> Option<Stored>;

const CHANGES: [(&str, Change); 19] = [
    ("left out", |_| None),
    ("without a first axis' values", |old| Some(old.with_axis(0, |_| 0))),
    ("without a second axis' values", |old| Some(old.with_axis(1, |_| 0))),
    ("without a last axis' values", |old| {
        Some(old.with_axis(old.last(), |_| 0))
    }),
    ("with one more", |old| Some(old.with_axis(0, |n| n + 1))),
    ("twice as wide", |old| Some(old.with_axis(1, |n| n * 2))),
    ("with a longer last axis", |old| {
        Some(old.with_axis(old.last(), |n| n + 1))
    }),
    ("with one only", |old| Some(old.with_axis(0, |_| 1))),
    ("with half of it", |old| Some(old.with_axis(0, |n| n / 2))),
    ("with a shorter last axis", |old| {
        Some(old.with_axis(old.last(), |n| n.saturating_sub(1)))
    }),
    ("in a row", |old| Some(old.bent(vec![old.len()]))),
    ("with one more axis", |old| {
        Some(old.bent([&[1][..], &old.shape].concat()))
    }),
    ("as one number", |old| Some(old.bent(Vec::new()))),
    ("as bytes", |old| Some(old.retyped(Dtype::U8, 1, 200))),
    ("as whole numbers", |old| Some(old.retyped(Dtype::I64, 8, 0x7f))),
    ("as truths", |old| Some(old.retyped(Dtype::BOOL, 1, 1))),
    ("as doubles", |old| Some(old.retyped(Dtype::F64, 8, 0x40))),
    ("as no numbers", |old| Some(old.filled(f32::NAN))),
    ("as huge numbers", |old| Some(old.filled(3e38))),
];

fn write(file: &File, path: &Path) {
    let views = file.iter().map(|(key, stored)| {
        (
            key,
            TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes).unwrap(),
        )
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn file_of(name: &str) -> File {
    let tensors: BTreeMap<String, Tensor> = if name.starts_with("models/") {
        let path = root().join(name);
        candle_core::safetensors::load(path, &Device::Cpu)
            .unwrap()
            .into_iter()
            .collect()
    } else if root().join(format!("cases/{name}.json")).is_file() {
        made_up::case(name).0
    } else {
        let all =
            candle_core::safetensors::load(root().join(format!("cases/{name}.safetensors")), &Device::Cpu).unwrap();
        all.into_iter()
            .filter_map(|(key, t)| Some((key.strip_prefix("net.")?.to_owned(), t)))
            .collect()
    };
    tensors
        .iter()
        .map(|(key, tensor)| (key.clone(), Stored::of(tensor)))
        .collect()
}

fn picture(width: u32, height: u32) -> Picture {
    let bytes = (0..width * height * 3).map(|i| (i * 31 % 251) as u8).collect();
    Picture::from_rgb(width, height, bytes).unwrap()
}

fn upscaler(w: &Weights) -> Result<()> {
    let net = Upscaler::load(w)?;
    net.plan(300, 200, true, Tiling::default())?;
    net.upscale(&picture(13, 9), Tiling::default(), &mut |_, _| true)
        .map(drop)
}

fn restorer(w: &Weights) -> Result<()> {
    let net = FaceRestorer::load(w)?;
    let side = net.side();
    assert!(side <= 1024, "a side of {side}");
    net.repair(&Planar::new(3, side as u32, side as u32, vec![0.25; 3 * side * side])?)
        .map(drop)
}

fn loaded(w: &Weights) -> Result<()> {
    FaceRestorer::load(w).map(drop)
}

fn parser(w: &Weights) -> Result<()> {
    FaceParser::load(w).map(drop)
}

fn detector(w: &Weights) -> Result<()> {
    FaceDetector::load(w)?.detect(&picture(64, 40), 0.5, 640).map(drop)
}

fn remover(w: &Weights) -> Result<()> {
    BackgroundRemover::load(w)?.forward(&picture(40, 30)).map(drop)
}

fn clip(w: &Weights) -> Result<()> {
    let config = ClipConfig {
        vision_heads: Some(2),
        text_heads: Some(2),
    };
    let clip = Clip::load(w, &config)?;
    clip.vision.embed(&picture(40, 30))?;
    clip.text.embed(&[vec![0, 5, 7, 1], vec![0, 1]]).map(drop)
}

fn safety(w: &Weights) -> Result<()> {
    let config = ClipConfig {
        vision_heads: Some(2),
        text_heads: Some(2),
    };
    SdSafetyChecker::load(w, &config)?.check(&picture(40, 30)).map(drop)
}

fn blip(w: &Weights) -> Result<()> {
    let blip = Blip::load(
        w,
        &BlipConfig {
            vision_heads: Some(2),
            text_heads: Some(2),
        },
    )?;
    let seen = blip.look(&blip.pixels(&picture(40, 30))?)?;
    let settings = CaptionSettings {
        search: Search::Beams(2),
        max_length: 6,
        ..CaptionSettings::default()
    };
    blip.generate(&seen, &[5], &settings, &|| false).map(drop)
}

type Run = fn(&Weights) -> Result<()>;

/// Networks, and of how many changes each tensor meets one: the larger ones would take minutes.
const NETWORKS: [(&str, Run, usize); 15] = [
    ("models/alchemy/esrgan_x4.safetensors", upscaler, 3),
    ("models/alchemy/compact_x4.safetensors", upscaler, 1),
    ("own/span_x2", upscaler, 7),
    ("own/plksr_x4", upscaler, 1),
    ("own/plksr_dysample_x4", upscaler, 1),
    ("own/dat_x2", upscaler, 13),
    ("models/alchemy/gfpgan_64.safetensors", restorer, 13),
    ("faces/codeformer", restorer, 101),
    ("own/restoreformer", loaded, 13),
    ("faces/parsenet", parser, 3),
    ("models/retinaface_mobilenet0.25.safetensors", detector, 5),
    ("models/alchemy/u2netp_tiny.safetensors", remover, 211),
    ("models/alchemy/clip_tiny.safetensors", clip, 5),
    ("models/alchemy/safety_checker_tiny.safetensors", safety, 3),
    ("models/alchemy/blip_tiny.safetensors", blip, 5),
];

#[test]
fn a_network_with_one_bad_tensor_runs_or_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    let open = || Weights::open(&path, &Device::Cpu);
    let mut panicked = Vec::new();
    for (name, run, one_of) in NETWORKS {
        let file = file_of(name);
        write(&file, &path);
        open()
            .and_then(|w| run(&w))
            .unwrap_or_else(|e| panic!("{name} as it is: {e}"));
        let cases = file
            .keys()
            .flat_map(|key| CHANGES.map(|(how, change)| (key, how, change)));
        let (mut n_refused, mut n_of) = (0, 0);
        for (key, how, change) in cases.step_by(one_of) {
            let mut bad = file.clone();
            match change(&file[key]) {
                Some(changed) => bad.insert(key.clone(), changed),
                None => bad.remove(key),
            };
            write(&bad, &path);
            let end = catch_unwind(AssertUnwindSafe(|| open().and_then(|w| run(&w))));
            n_of += 1;
            match end {
                Ok(Ok(())) => {}
                Ok(Err(_)) => n_refused += 1,
                Err(_) => panicked.push(format!("{name}: {key} {how}")),
            }
        }
        assert!(3 * n_refused > n_of, "{name}: only {n_refused} of {n_of} were refused");
    }
    assert!(panicked.is_empty(), "{panicked:#?}");
}

#[test]
fn what_is_no_weight_is_told_by_its_key_and_by_what_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    let file = file_of("models/alchemy/compact_x4.safetensors");
    let key = "body.2.weight";
    let of = |values: [f32; 4], dtype: Dtype| {
        let bytes = values.iter().flat_map(|value| match dtype {
            Dtype::F16 => half::f16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::BF16 => half::bf16::from_f32(*value).to_le_bytes().to_vec(),
            Dtype::F64 => f64::from(*value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        });
        Stored {
            dtype,
            shape: vec![4],
            bytes: bytes.collect(),
        }
    };
    let told = |stored: Stored| {
        let mut bad = file.clone();
        bad.insert(key.into(), stored);
        write(&bad, &path);
        let read = Weights::open(&path, &Device::Cpu).unwrap().get(key);
        read.map(drop).map_err(|e| e.to_string())
    };
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
        assert_eq!(told(of([0.0, -1.5, 65_000.0, 1e-4], dtype)), Ok(()), "{dtype:?}");
        for value in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = told(of([0.0, 1.0, 2.0, value], dtype)).unwrap_err();
            assert!(
                error.contains(key) && error.contains("no numbers") && error.contains("\nhint: "),
                "{error}"
            );
        }
    }
    let beyond = Stored {
        bytes: 1e300f64.to_le_bytes().repeat(4),
        ..of([0.0; 4], Dtype::F64)
    };
    assert!(told(beyond).unwrap_err().contains("infinities"));
    let error = told(file[key].retyped(Dtype::I64, 8, 0)).unwrap_err();
    assert!(error.contains("`body.2.weight` holds values of type I64"), "{error}");
    let error = told(file[key].with_axis(1, |_| 0)).unwrap_err();
    assert!(error.contains("no axis of a weight is empty"), "{error}");
}
