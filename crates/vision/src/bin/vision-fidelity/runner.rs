//! One case of the fixtures: load the model, run it on the inputs, name the outputs as the manifest does.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use imaging::{Limits, Mask, Picture, Planar};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use vision::background::{BackgroundRemover, MattingSettings, cut_out, cut_out_plain};
use vision::blip::{Blip, BlipConfig, CaptionSettings, Search};
use vision::clip::{Clip, ClipConfig};
use vision::face::FaceRestorer;
use vision::nsfw::SdSafetyChecker;
use vision::upscale::{Tiling, Upscaler};
use vision::{VisionError, Weights};

/// Groups of the manifest that this room answers for.
pub const GROUPS: [&str; 7] = ["upscale", "face", "clip", "safety", "blip", "u2net", "matting"];

/// One case as the manifest has it.
#[derive(Debug, Deserialize)]
pub struct Case {
    pub id: String,
    pub group: String,
    pub inputs: serde_json::Value,
    pub files: HashMap<String, String>,
}

/// What a case made.
#[derive(Default)]
pub struct Made {
    pub tensors: HashMap<String, Tensor>,
    pub png: Option<Vec<u8>>,
}

type Outcome<T> = Result<T, String>;

/// Cases of this room's groups, with as much of each as `C` asks for.
pub fn cases<C: DeserializeOwned>(root: &Path) -> Outcome<Vec<C>> {
    #[derive(Deserialize)]
    struct Manifest {
        cases: Vec<serde_json::Value>,
    }
    let path = root.join("manifest.json");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let manifest: Manifest = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    manifest
        .cases
        .into_iter()
        .filter(|case| case["group"].as_str().is_some_and(|g| GROUPS.contains(&g)))
        .map(|case| serde_json::from_value(case).map_err(|e| e.to_string()))
        .collect()
}

/// Runs one case.
pub fn run(root: &Path, case: &Case) -> Outcome<Made> {
    let made = match case.group.as_str() {
        "upscale" => upscale(root, case),
        "face" => face(root, case),
        "clip" => clip(root, case),
        "safety" => safety(root, case),
        "blip" => blip(root, case),
        "u2net" => u2net(root, case),
        "matting" => matting(root, case),
        other => Err(VisionError::Input(format!("no group `{other}`"))),
    };
    made.map_err(|e| e.to_string())
}

type Run = Result<Made, VisionError>;

/// The case's model. Two of the fixtures are pickles that are known to be harmless; the workers never read one.
fn weights(root: &Path, case: &Case) -> Result<Weights, VisionError> {
    let name = case.inputs["file"]
        .as_str()
        .ok_or_else(|| VisionError::Input("the case names no file".into()))?;
    open(&root.join(name))
}

/// A checkpoint, whichever way it is stored.
pub fn open(path: &Path) -> Result<Weights, VisionError> {
    let device = Device::Cpu;
    if path.extension().is_some_and(|e| e == "pth") {
        let wrapped = ["params_ema", "params"];
        let tensors = wrapped
            .iter()
            .find_map(|key| candle_core::pickle::read_all_with_key(path, Some(key)).ok())
            .map_or_else(|| candle_core::pickle::read_all(path), Ok)?;
        return Ok(Weights::from_tensors(BTreeMap::from_iter(tensors), &device));
    }
    Weights::open(path, &device)
}

/// Tensors that came with the case (inputs among them).
pub fn given(root: &Path, case: &Case) -> Result<HashMap<String, Tensor>, VisionError> {
    let name = case
        .files
        .get("tensors")
        .ok_or_else(|| VisionError::Input("the case has no tensors".into()))?;
    // SAFETY: nobody writes to the fixtures while they are read.
    let file = unsafe { candle_core::safetensors::MmapedSafetensors::new(root.join(name)) }?;
    // The expected flags are booleans, which candle does not know; nothing needs them here.
    let names = file.tensors().into_iter().map(|(name, _)| name);
    Ok(names
        .filter_map(|name| Some((name.clone(), file.load(&name, &Device::Cpu).ok()?)))
        .collect())
}

fn input(root: &Path, case: &Case, key: &str) -> Result<Picture, VisionError> {
    let name = case.inputs[key]
        .as_str()
        .ok_or_else(|| VisionError::Input(format!("the case names no {key}")))?;
    let bytes = std::fs::read(root.join("inputs").join(name)).map_err(|e| VisionError::Input(e.to_string()))?;
    imaging::decode(&bytes, &Limits::image_job()).map_err(|e| VisionError::Input(e.to_string()))
}

fn tensor(planar: &Planar) -> Result<Tensor, VisionError> {
    let shape = (1, planar.channels(), planar.height() as usize, planar.width() as usize);
    Ok(Tensor::from_slice(planar.data(), shape, &Device::Cpu)?)
}

fn png(picture: &Picture) -> Result<Vec<u8>, VisionError> {
    imaging::encode_png(picture).map_err(|e| VisionError::Input(e.to_string()))
}

fn upscale(root: &Path, case: &Case) -> Run {
    let net = Upscaler::load(&weights(root, case)?)?;
    let source = input(root, case, "source_image")?
        .crop(0, 0, 32, 26)
        .ok_or_else(|| VisionError::Input("the source is too small".into()))?;
    let part = |n: usize| case.inputs["tile"][n].as_u64().map(|v| v as usize);
    let tiling = Tiling {
        tile: part(0).unwrap_or(512),
        overlap: part(1).unwrap_or(0),
        context: 0,
        max_bytes: usize::MAX,
    };
    let picture = net.upscale(&source, tiling, &mut |_, _| true)?;
    let raw = net.upscale_planar(&source.to_planar(), tiling, &mut |_, _| true)?;
    Ok(Made {
        tensors: HashMap::from([("raw".into(), tensor(&raw)?)]),
        png: Some(png(&picture)?),
    })
}

fn face(root: &Path, case: &Case) -> Run {
    let net = FaceRestorer::load(&weights(root, case)?)?;
    let given = given(root, case)?;
    let x = named(&given, "x")?;
    let (_, c, h, w) = x.dims4()?;
    let face = Planar::new(c, w as u32, h as u32, x.flatten_all()?.to_vec1()?)?;
    let out = net.forward(&face)?;
    Ok(Made {
        tensors: HashMap::from([("out".into(), tensor(&out)?)]),
        png: Some(png(&net.repair(&face)?)?),
    })
}

fn named<'a>(given: &'a HashMap<String, Tensor>, name: &str) -> Result<&'a Tensor, VisionError> {
    given
        .get(name)
        .ok_or_else(|| VisionError::Input(format!("the case has no tensor `{name}`")))
}

/// Both tiny towers have four heads in vision and one in text.
const TINY: ClipConfig = ClipConfig {
    vision_heads: Some(4),
    text_heads: Some(1),
};

fn clip(root: &Path, case: &Case) -> Run {
    let clip = Clip::load(&weights(root, case)?, &TINY)?;
    let given = given(root, case)?;
    let pixels = named(&given, "pixel_values")?.to_dtype(DType::F32)?;
    let image = clip.vision.embed_pixels(&pixels)?;
    let end = 49407;
    let texts: Vec<Vec<u32>> = named(&given, "input_ids")?
        .to_dtype(DType::U32)?
        .to_vec2::<u32>()?
        .into_iter()
        .map(|row| {
            let len = row.iter().position(|id| *id == end).map_or(row.len(), |at| at + 1);
            row[..len].to_vec()
        })
        .collect();
    let text = clip.text.embed(&texts)?;
    let cosine = image.matmul(&text.t()?)?;
    let own_pixels = clip.vision.pixels(&input(root, case, "source_image")?)?;
    let tensors = HashMap::from([
        ("image_embeds".into(), image),
        ("text_embeds".into(), text),
        ("cosine".into(), cosine),
        ("pixel_values".into(), own_pixels.clone()),
        ("own_pixel_values".into(), own_pixels),
    ]);
    Ok(Made { tensors, png: None })
}

fn safety(root: &Path, case: &Case) -> Run {
    let checker = SdSafetyChecker::load(&weights(root, case)?, &TINY)?;
    let mut given = given(root, case)?;
    if !given.contains_key("pixel_values") {
        // The same picture as the CLIP case's, whose pixels are stored there.
        let twin = root.join("cases/clip/clip_tiny.safetensors");
        given = candle_core::safetensors::load(twin, &Device::Cpu)?;
    }
    let verdict = checker.check_pixels(&named(&given, "pixel_values")?.to_dtype(DType::F32)?)?;
    let row = |values: &[f32]| -> Result<Tensor, VisionError> { Ok(Tensor::new(values, &Device::Cpu)?.unsqueeze(0)?) };
    let tensors = HashMap::from([
        ("special_cos".into(), row(&verdict.special)?),
        ("concept_cos".into(), row(&verdict.concepts)?),
        ("flag".into(), Tensor::new(&[u8::from(verdict.flagged)], &Device::Cpu)?),
    ]);
    Ok(Made { tensors, png: None })
}

fn blip(root: &Path, case: &Case) -> Run {
    let blip = Blip::load(
        &weights(root, case)?,
        &BlipConfig {
            vision_heads: Some(4),
            text_heads: Some(1),
        },
    )?;
    let given = given(root, case)?;
    let seen = blip.look(&named(&given, "pixel_values")?.to_dtype(DType::F32)?)?;
    let ids = named(&given, "input_ids")?
        .to_dtype(DType::U32)?
        .flatten_all()?
        .to_vec1::<u32>()?;
    let scores = blip.next_scores(&seen, &ids)?;
    let caption = |search, penalty, min_length| -> Result<Tensor, VisionError> {
        let settings = CaptionSettings {
            search,
            repetition_penalty: penalty,
            min_length,
            max_length: 14,
            ..CaptionSettings::default()
        };
        let ids: Vec<i64> = blip
            .generate(&seen, &[], &settings, &|| false)?
            .into_iter()
            .map(i64::from)
            .collect();
        Ok(Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)
    };
    let tensors = HashMap::from([
        ("vision".into(), seen.clone()),
        ("logits_last".into(), Tensor::new(scores, &Device::Cpu)?.unsqueeze(0)?),
        ("greedy_ids".into(), caption(Search::Beams(1), 1.0, 0)?),
        ("beam3_ids".into(), caption(Search::Beams(3), 1.4, 6)?),
    ]);
    Ok(Made { tensors, png: None })
}

fn u2net(root: &Path, case: &Case) -> Run {
    let net = BackgroundRemover::load(&weights(root, case)?)?;
    let source = input(root, case, "source_image")?;
    let (side, raw) = net.forward(&source)?;
    let d0 = Tensor::from_vec(raw, (1, 1, side as usize, side as usize), &Device::Cpu)?;
    let mask = imaging::encode_png_mask(&net.mask(&source)?).map_err(|e| VisionError::Input(e.to_string()))?;
    Ok(Made {
        tensors: HashMap::from([("d0_half".into(), d0)]),
        png: Some(mask),
    })
}

fn matting(root: &Path, case: &Case) -> Run {
    let source = input(root, case, "source_image")?;
    let mask: Mask = input(root, case, "mask")?.to_grey();
    let matted = cut_out(&source, &mask, &MattingSettings::default())?;
    let plain = cut_out_plain(&source, &mask);
    let shape = (plain.height() as usize, plain.width() as usize, 4);
    let naive = Tensor::from_slice(plain.data(), shape, &Device::Cpu)?;
    Ok(Made {
        tensors: HashMap::from([("naive".into(), naive)]),
        png: Some(png(&matted)?),
    })
}
