//! One network on one case: `check-network KIND WEIGHTS GIVEN RESULT`, started by `tools/networks/check.py`.
//!
//! GIVEN and RESULT are safetensors: what goes in and what came out, by the names of the reference's side. Pictures are
//! (height, width, 3) bytes, numbers f32, tokens i64.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Tensor};
use imaging::{Picture, Planar};
use vision::background::BackgroundRemover;
use vision::blip::{Blip, BlipConfig, CaptionSettings, Search};
use vision::clip::{Clip, ClipConfig};
use vision::face::{FaceDetector, FaceParser, FaceRestorer, RestoreSettings, restore_faces};
use vision::nsfw::SdSafetyChecker;
use vision::upscale::{Tiling, Upscaler};
use vision::{Device, Weights};

type Tensors = HashMap<String, Tensor>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, weights, given, result] = args.as_slice() else {
        bail!("usage: check-network KIND WEIGHTS GIVEN RESULT");
    };
    let w = Weights::open(Path::new(weights), &Device::Cpu)?;
    let given = Given(candle_core::safetensors::load(given, &Device::Cpu)?);
    let made = match kind.as_str() {
        "upscaler" => upscaler(&w, &given)?,
        "tiles" => tiles(&w, &given)?,
        "restorer" => {
            let face = FaceRestorer::load(&w)?.forward(&given.planar("x")?)?;
            Tensors::from([("y".into(), tensor(&face)?)])
        }
        "repair" => repair(&w, &given)?,
        "parser" => Tensors::from([("y".into(), FaceParser::load(&w)?.scores(&given.planar("x")?)?)]),
        "detector" => detector(&w, &given)?,
        "cutter" => {
            let (side, map) = BackgroundRemover::load(&w)?.forward(&given.picture("picture")?)?;
            let side = side as usize;
            Tensors::from([("y".into(), Tensor::from_vec(map, (side, side), &Device::Cpu)?)])
        }
        "clip" => clip(&w, &given)?,
        "safety" => safety(&w, &given)?,
        "blip" => blip(&w, &given)?,
        other => bail!("no kind `{other}`"),
    };
    candle_core::safetensors::save(&made, result)?;
    Ok(())
}

struct Given(Tensors);

impl Given {
    fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.0.get(name).with_context(|| format!("`{name}` is not given"))
    }

    fn planar(&self, name: &str) -> Result<Planar> {
        let x = self.tensor(name)?;
        let (_, c, h, w) = x.dims4()?;
        Ok(Planar::new(c, w as u32, h as u32, x.flatten_all()?.to_vec1()?)?)
    }

    fn picture(&self, name: &str) -> Result<Picture> {
        let x = self.tensor(name)?;
        let (h, w, _) = x.dims3()?;
        Ok(Picture::from_rgb(w as u32, h as u32, x.flatten_all()?.to_vec1()?)?)
    }

    fn ids(&self, name: &str) -> Result<Vec<u32>> {
        Ok(self.tensor(name)?.to_dtype(DType::U32)?.flatten_all()?.to_vec1()?)
    }
}

fn tensor(planar: &Planar) -> Result<Tensor> {
    let shape = (1, planar.channels(), planar.height() as usize, planar.width() as usize);
    Ok(Tensor::from_slice(planar.data(), shape, &Device::Cpu)?)
}

fn row(values: &[f32]) -> Result<Tensor> {
    Ok(Tensor::new(values, &Device::Cpu)?)
}

fn upscaler(w: &Weights, given: &Given) -> Result<Tensors> {
    let net = Upscaler::load(w)?;
    eprintln!("{} x{}", net.architecture(), net.scale());
    Ok(Tensors::from([(
        "y".into(),
        tensor(&net.forward(&given.planar("x")?)?)?,
    )]))
}

/// The picture as a whole, and in tiles by each row of `tilings` (side, shared, left out): `whole`, `tiled0`, `tiled1`, …
fn tiles(w: &Weights, given: &Given) -> Result<Tensors> {
    let (net, picture) = (Upscaler::load(w)?, given.picture("picture")?);
    let run = |tile: u32, overlap: u32, context: u32| -> Result<Tensor> {
        let tiling = Tiling {
            tile: tile as usize,
            overlap: overlap as usize,
            context: context as usize,
            max_bytes: usize::MAX,
        };
        let enlarged = net.upscale(&picture, tiling, &mut |_, _| true)?;
        let shape = (enlarged.height() as usize, enlarged.width() as usize, 3);
        Ok(Tensor::from_slice(enlarged.data(), shape, &Device::Cpu)?)
    };
    let side = picture.width().max(picture.height());
    let mut made = Tensors::from([("whole".into(), run(side, 0, 0)?)]);
    for (n, tiling) in given.ids("tilings")?.chunks(3).enumerate() {
        let [tile, overlap, context] = *tiling else {
            bail!("each of `tilings` has three numbers");
        };
        made.insert(format!("tiled{n}"), run(tile, overlap, context)?);
    }
    Ok(made)
}

/// The whole way of [`vision::face::restore_faces`], with the weights of three networks below their names.
fn repair(w: &Weights, given: &Given) -> Result<Tensors> {
    let picture = given.picture("picture")?;
    let detector = FaceDetector::load(&w.at("detector"))?;
    let restorer = FaceRestorer::load(&w.at("restorer"))?.with_parser(FaceParser::load(&w.at("parser"))?);
    let mut n_faces = 0;
    let repaired = restore_faces(
        &picture,
        &detector,
        &restorer,
        &RestoreSettings::default(),
        &mut |_, of| {
            n_faces = of;
            true
        },
    )?;
    let shape = (picture.height() as usize, picture.width() as usize, 3);
    Ok(Tensors::from([
        (
            "picture".into(),
            Tensor::from_slice(repaired.data(), shape, &Device::Cpu)?,
        ),
        ("faces".into(), row(&[n_faces as f32])?),
    ]))
}

fn detector(w: &Weights, given: &Given) -> Result<Tensors> {
    let raw = FaceDetector::load(w)?.forward(&given.picture("picture")?)?;
    Ok(Tensors::from([
        ("scores".into(), row(&raw.scores)?),
        ("bounds".into(), row(&raw.bounds)?),
        ("landmarks".into(), row(&raw.landmarks)?),
    ]))
}

fn clip(w: &Weights, given: &Given) -> Result<Tensors> {
    let clip = Clip::load(w, &ClipConfig::default())?;
    let texts: Vec<Vec<u32>> = (0..)
        .map_while(|n| {
            given
                .0
                .contains_key(&format!("ids{n}"))
                .then(|| given.ids(&format!("ids{n}")))
        })
        .collect::<Result<_>>()?;
    Ok(Tensors::from([
        ("pixels".into(), clip.vision.pixels(&given.picture("picture")?)?),
        ("image".into(), clip.vision.embed_pixels(given.tensor("given_pixels")?)?),
        ("texts".into(), clip.text.embed(&texts)?),
        ("scale".into(), row(&[clip.logit_scale])?),
    ]))
}

fn safety(w: &Weights, given: &Given) -> Result<Tensors> {
    let checker = SdSafetyChecker::load(w, &ClipConfig::default())?;
    let verdict = checker.check_pixels(given.tensor("given_pixels")?)?;
    Ok(Tensors::from([
        ("special".into(), row(&verdict.special)?),
        ("concepts".into(), row(&verdict.concepts)?),
        ("flagged".into(), row(&[f32::from(u8::from(verdict.flagged))])?),
    ]))
}

fn blip(w: &Weights, given: &Given) -> Result<Tensors> {
    let blip = Blip::load(w, &BlipConfig::default())?;
    let pixels = blip.pixels(&given.picture("picture")?)?;
    let seen = blip.look(given.tensor("given_pixels")?)?;
    let begin = given.ids("begin")?;
    let said = |search, repetition_penalty, min_length| -> Result<Tensor> {
        let settings = CaptionSettings {
            search,
            repetition_penalty,
            min_length,
            max_length: 20,
            ..CaptionSettings::default()
        };
        // The first token is the start itself.
        let ids = blip.generate(&seen, begin.get(1..).unwrap_or(&[]), &settings, &|| false)?;
        Ok(Tensor::new(
            ids.into_iter().map(i64::from).collect::<Vec<_>>(),
            &Device::Cpu,
        )?)
    };
    let nucleus = CaptionSettings {
        search: Search::Nucleus { top_p: 0.9, seed: 0 },
        repetition_penalty: 1.1,
        ..CaptionSettings::default()
    };
    let scores = blip.next_scores(&seen, &begin)?;
    let mut chances = vec![0f32; scores.len()];
    for (id, chance) in blip.choices(&seen, &begin, &nucleus)? {
        *chances.get_mut(id as usize).context("a token beyond the vocabulary")? = chance;
    }
    Ok(Tensors::from([
        ("pixels".into(), pixels),
        ("seen".into(), seen.clone()),
        ("scores".into(), row(&scores)?),
        ("greedy".into(), said(Search::Beams(1), 1.0, 5)?),
        ("beams".into(), said(Search::Beams(3), 1.0, 5)?),
        ("penalised".into(), said(Search::Beams(3), 1.4, 8)?),
        ("chances".into(), row(&chances)?),
    ]))
}
