//! LoRA files: which layer each of their tensors belongs to, and what it adds to that layer's weight.
//!
//! Names of kohya's scripts and of diffusers/PEFT; plain LoRA and LoCon (up·down), LoHa (Hadamard products) and LoKr
//! (Kronecker products). Applied weights replace those in use; taking off reads the originals from their files again.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result, layout::UNetNames, model::Model, safetensors_file::SafetensorsFile};

/// One LoRA and how strongly it acts.
pub struct Lora {
    name: String,
    file: SafetensorsFile,
    /// On the U-Net.
    pub model_strength: f64,
    /// On the text encoders.
    pub clip_strength: f64,
}

impl Lora {
    /// Maps a LoRA file; strengths that are no numbers count as 1.
    pub fn open(path: &Path, model_strength: f64, clip_strength: f64) -> Result<Self> {
        let number = |value: f64| if value.is_finite() { value.clamp(-5.0, 5.0) } else { 1.0 };
        Ok(Self {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            file: SafetensorsFile::open(path)?,
            model_strength: number(model_strength),
            clip_strength: number(clip_strength),
        })
    }
}

/// The layers that LoRAs have changed, to be taken off again.
#[derive(Default)]
#[must_use = "the model stays changed until this is taken off"]
pub struct Applied {
    names: Vec<String>,
}

/// The endings of a pair of factors, up first.
const PAIRS: [(&str, &str); 5] = [
    (".lora_up.weight", ".lora_down.weight"),
    (".lora_B.weight", ".lora_A.weight"),
    (".lora.up.weight", ".lora.down.weight"),
    ("_lora.up.weight", "_lora.down.weight"),
    (".lora_B.default.weight", ".lora_A.default.weight"),
];

/// Adds every LoRA to the weights in use, one after another. If one does not fit, none is applied.
pub fn apply(model: &Model, loras: &[Lora]) -> Result<Applied> {
    let mut applied = Applied::default();
    let layers = layers(model);
    for lora in loras {
        if let Err(error) = apply_one(model, lora, &layers, &mut applied) {
            take_off(model, applied)?;
            return Err(error);
        }
    }
    Ok(applied)
}

/// Brings the weights back as they lie in the files.
pub fn take_off(model: &Model, applied: Applied) -> Result<()> {
    for name in applied.names {
        if let Some(param) = model.params().get(&name) {
            let now = param.get();
            param.set(model.weights().tensor(&name, now.dtype(), now.device())?);
        }
    }
    Ok(())
}

fn apply_one(model: &Model, lora: &Lora, layers: &HashMap<String, String>, applied: &mut Applied) -> Result<()> {
    let refuse = |reason: String| Error::Adapter {
        name: lora.name.clone(),
        reason,
    };
    let mut prefixes: Vec<&str> = lora.file.names().filter_map(prefix_of).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    let mut matched = 0;
    for prefix in prefixes {
        let Some(name) = layers.get(prefix) else { continue };
        let strength = if name.starts_with("unet.") {
            lora.model_strength
        } else {
            lora.clip_strength
        };
        matched += 1;
        let Some(param) = model.params().get(name).filter(|_| strength != 0.0) else {
            continue;
        };
        let now = param.get();
        let difference = difference(&lora.file, prefix).map_err(|error| refuse(format!("`{prefix}`: {error}")))?;
        if difference.elem_count() != now.elem_count() {
            return Err(refuse(format!(
                "`{prefix}` changes a weight of {:?}, the model has {:?}",
                difference.dims(),
                now.dims()
            )));
        }
        let difference = (difference.reshape(now.dims())? * strength)?.to_device(now.device())?;
        param.set((now.to_dtype(DType::F32)? + difference)?.to_dtype(now.dtype())?);
        applied.names.push(name.clone());
    }
    if matched == 0 {
        return Err(refuse("it names no layer of this model".into()));
    }
    Ok(())
}

/// A tensor's layer as the file calls it.
fn prefix_of(name: &str) -> Option<&str> {
    let pairs = PAIRS.iter().flat_map(|(up, down)| [*up, *down]);
    let others = [".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".diff"];
    pairs.chain(others).find_map(|ending| name.strip_suffix(ending))
}

/// What a layer's weight gains at strength 1, f32 on the CPU.
fn difference(file: &SafetensorsFile, prefix: &str) -> Result<Tensor> {
    let get = |ending: &str| -> Result<Option<Tensor>> {
        let name = format!("{prefix}{ending}");
        if file.shape(&name).is_none() {
            return Ok(None);
        }
        Ok(Some(file.tensor(&name, DType::F32, &Device::Cpu)?))
    };
    let need = |ending: &str| -> Result<Tensor> {
        get(ending)?.ok_or_else(|| Error::Weights(format!("`{prefix}{ending}` is missing")))
    };
    if let Some(difference) = get(".diff")? {
        return Ok(difference);
    }
    if get(".dora_scale")?.is_some() {
        return Err(Error::Weights(
            "weight-decomposed adapters (DoRA) are not supported".into(),
        ));
    }
    let alpha = match get(".alpha")? {
        Some(alpha) => alpha.flatten_all()?.to_vec1::<f32>()?.first().copied().map(f64::from),
        None => None,
    };
    let scale = |rank: usize| alpha.map_or(1.0, |alpha| alpha / rank.max(1) as f64);
    for (up, down) in PAIRS {
        let (Some(up), Some(down)) = (get(up)?, get(down)?) else {
            continue;
        };
        let rank = down.dim(0)?;
        return Ok((product(&up, &down, get(".lora_mid.weight")?.as_ref())? * scale(rank))?);
    }
    if let Some(first) = get(".hada_w1_a")? {
        let rank = need(".hada_w1_b")?.dim(0)?;
        let one = product(&first, &need(".hada_w1_b")?, get(".hada_t1")?.as_ref())?;
        let two = product(&need(".hada_w2_a")?, &need(".hada_w2_b")?, get(".hada_t2")?.as_ref())?;
        return Ok(((one * two)? * scale(rank))?);
    }
    let mut rank = None;
    let mut factor = |whole: &str, a: &str, b: &str, middle: &str| -> Result<Tensor> {
        if let Some(whole) = get(whole)? {
            return Ok(whole);
        }
        let b = need(b)?;
        rank = Some(b.dim(0)?);
        product(&need(a)?, &b, get(middle)?.as_ref())
    };
    let one = factor(".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ".lokr_t1")?;
    let two = factor(".lokr_w2", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2")?;
    Ok((kronecker(&one, &two)? * rank.map_or(1.0, scale))?)
}

/// `up (o, r, ..) · down (r, i, ..)`, with a core `(r, r, kh, kw)` between them where there is one (Tucker form).
fn product(up: &Tensor, down: &Tensor, core: Option<&Tensor>) -> Result<Tensor> {
    let Some(core) = core else {
        return Ok(up.flatten_from(1)?.matmul(&down.flatten_from(1)?)?);
    };
    // LoHa stores its first factor as (r, o).
    let rank = core.dim(0)?;
    let up = up.flatten_from(1)?;
    let up = if up.dim(1)? == rank { up } else { up.t()?.contiguous()? };
    let down = down.flatten_from(1)?; // (r2, i)
    let (r1, r2, kh, kw) = core.dims4()?;
    let (o, i) = (up.dim(0)?, down.dim(1)?);
    let left = up.matmul(&core.reshape((r1, r2 * kh * kw))?)?; // (o, r2·kh·kw)
    let left = left.reshape((o, r2, kh * kw))?.transpose(1, 2)?.contiguous()?; // (o, k, r2)
    let all = left.reshape((o * kh * kw, r2))?.matmul(&down)?; // (o·k, i)
    let all = all.reshape((o, kh * kw, i))?.transpose(1, 2)?.contiguous()?;
    Ok(all.reshape((o, i, kh, kw))?)
}

/// `(a, b) ⊗ (c, d, ..) -> (a·c, b·d, ..)`.
fn kronecker(one: &Tensor, two: &Tensor) -> Result<Tensor> {
    let one = one.flatten_from(1)?;
    let (a, b) = one.dims2()?;
    let (c, d) = (two.dim(0)?, two.dim(1)?);
    let rest: usize = two.dims()[2..].iter().product();
    let one = one.reshape(vec![a, 1, b, 1, 1])?;
    let two = two.reshape(vec![1, c, 1, d, rest])?;
    Ok(one.broadcast_mul(&two)?.reshape((a * c, b * d, rest))?)
}

/// Every name a LoRA may give a layer, with our name of its weight.
fn layers(model: &Model) -> HashMap<String, String> {
    let mut layers = HashMap::new();
    let names: Vec<&str> = model.weights().names_under("unet.").collect();
    let diffusers = UNetNames::from_ldm(names.iter().copied());
    for name in &names {
        let Some(module) = name.strip_suffix(".weight") else {
            continue;
        };
        let ours = format!("unet.{name}");
        layers.insert(format!("lora_unet_{}", module.replace('.', "_")), ours.clone());
        layers.insert(format!("diffusion_model.{module}"), ours.clone());
        let Some(theirs) = diffusers.to_diffusers(module) else {
            continue;
        };
        layers.insert(format!("lora_unet_{}", theirs.replace('.', "_")), ours.clone());
        layers.insert(format!("base_model.model.{theirs}"), ours.clone());
        layers.insert(format!("unet.{theirs}"), ours.clone());
        if let Some((block, projection)) = theirs.rsplit_once(".to_") {
            let projection = projection.strip_suffix(".0").unwrap_or(projection);
            layers.insert(format!("unet.{block}.processor.to_{projection}"), ours.clone());
        }
        layers.insert(theirs, ours);
    }
    for (encoder, forms) in [
        ("clip_l.", ["lora_te_", "lora_te1_", "text_encoder."]),
        ("clip_g.", ["lora_te2_", "lora_te2_", "text_encoder_2."]),
        ("clip_h.", ["lora_te_", "lora_te_", "text_encoder."]),
    ] {
        for name in model.weights().names_under(encoder) {
            let Some(module) = name.strip_suffix(".weight") else {
                continue;
            };
            for form in forms {
                let module = if form.ends_with('_') {
                    module.replace('.', "_")
                } else {
                    module.to_owned()
                };
                layers.insert(format!("{form}{module}"), format!("{encoder}{name}"));
            }
        }
    }
    layers
}
