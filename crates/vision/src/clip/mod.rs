//! CLIP: pictures and words in one space.
//!
//! Radford et al. 2021 (arXiv 2103.00020). Both published layouts are read: OpenAI's and Hugging Face's.

mod aesthetic;
mod interrogate;
mod places;
mod tokens;

use candle_core::{D, DType, Tensor};
use imaging::Picture;

use crate::error::{Result, VisionError};
use crate::layers::{Act, LayerNorm, Linear};
use crate::transformer::{HF_CLIP, Layer, LayerKeys, LayerStyle, OPENAI_CLIP, TowerKeys, VisionTower, heads};
use crate::weights::Weights;
pub use aesthetic::{AestheticHead, AestheticScorer};
pub use interrogate::{Interrogator, Tag, WordList};
pub use places::PlaceCache;
pub use tokens::ClipTokenizer;

/// Numbers that the tensors do not tell; `None` is what every published CLIP has (one head per 64 channels).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClipConfig {
    /// Attention heads of the vision tower.
    pub vision_heads: Option<usize>,
    /// Attention heads of the text tower.
    pub text_heads: Option<usize>,
}

impl ClipConfig {
    /// Reads the head counts from a Hugging Face `config.json`.
    pub fn from_json(json: &str) -> Result<Self> {
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| VisionError::Side {
            what: "config.json".into(),
            reason: e.to_string(),
        })?;
        let heads = |part: &str| Some(value.get(part)?.get("num_attention_heads")?.as_u64()? as usize);
        Ok(Self {
            vision_heads: heads("vision_config"),
            text_heads: heads("text_config"),
        })
    }
}

/// The half that looks.
pub struct ClipVision {
    tower: VisionTower,
    projection: Linear,
    device: candle_core::Device,
}

/// The half that reads.
pub struct ClipText {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<Layer>,
    after: LayerNorm,
    projection: Linear,
    context_len: usize,
}

/// Both halves.
pub struct Clip {
    /// The half that looks.
    pub vision: ClipVision,
    /// The half that reads.
    pub text: ClipText,
    /// What cosines are multiplied with before a softmax (100 in OpenAI's models).
    pub logit_scale: f32,
}

/// Mean and deviation of red, green, blue that CLIP was trained with.
pub(crate) const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub(crate) const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

const HF_TOWER: TowerKeys = TowerKeys {
    patches: "embeddings.patch_embedding",
    class: "embeddings.class_embedding",
    positions: "embeddings.position_embedding.weight",
    before: Some("pre_layrnorm"),
    layers: "encoder.layers",
    after: "post_layernorm",
    layer: HF_CLIP,
};
const OPENAI_TOWER: TowerKeys = TowerKeys {
    patches: "conv1",
    class: "class_embedding",
    positions: "positional_embedding",
    before: Some("ln_pre"),
    layers: "transformer.resblocks",
    after: "ln_post",
    layer: OPENAI_CLIP,
};

impl Clip {
    /// Reads both halves; the layout is told by the keys.
    pub fn load(w: &Weights, config: &ClipConfig) -> Result<Self> {
        let logit_scale = w.get("logit_scale")?.exp()?.to_scalar::<f32>()?;
        Ok(Self {
            vision: ClipVision::load(w, config)?,
            text: ClipText::load(w, config)?,
            logit_scale,
        })
    }
}

impl ClipVision {
    /// Reads `visual.*` (OpenAI), or `vision_model.*` and `visual_projection` (Hugging Face, also nested twice as the
    /// Stable Diffusion safety checker has it).
    pub fn load(w: &Weights, config: &ClipConfig) -> Result<Self> {
        let (tower, keys, projection) = if w.has("visual.proj") {
            (
                w.at("visual"),
                OPENAI_TOWER,
                Linear::from_parts(w.get("visual.proj")?.t()?, None)?,
            )
        } else if w.has("visual_projection.weight") {
            let once = w.at("vision_model");
            (
                once.unwrapped(&["vision_model"]),
                HF_TOWER,
                Linear::load(w, "visual_projection")?,
            )
        } else {
            return Err(w.unknown("CLIP vision tower"));
        };
        let tower = VisionTower::load(&tower, &keys, config.vision_heads, Act::QuickGelu, 1e-5)?;
        Ok(Self {
            tower,
            projection,
            device: w.device().clone(),
        })
    }

    /// The prepared picture: (1, 3, side, side), normalised.
    pub fn pixels(&self, picture: &Picture) -> Result<Tensor> {
        let side = self.tower.side();
        let planar = picture
            .over([255; 3])
            .clip_square(side as u32)
            .to_planar()
            .normalised(&MEAN, &STD);
        Ok(Tensor::from_vec(planar.into_data(), (1, 3, side, side), &self.device)?)
    }

    /// (b, 3, side, side) to (b, dimension), each of length 1.
    pub fn embed_pixels(&self, pixels: &Tensor) -> Result<Tensor> {
        unit(&self.raw_embedding(pixels)?)
    }

    /// A picture's place: a vector of length 1.
    pub fn embed(&self, picture: &Picture) -> Result<Vec<f32>> {
        Ok(self.embed_pixels(&self.pixels(picture)?)?.flatten_all()?.to_vec1()?)
    }

    fn raw_embedding(&self, pixels: &Tensor) -> Result<Tensor> {
        let class = self.tower.hidden(pixels)?.narrow(1, 0, 1)?.squeeze(1)?;
        self.projection.forward(&self.tower.norm(&class)?)
    }
}

impl ClipText {
    /// Reads the text half.
    pub fn load(w: &Weights, config: &ClipConfig) -> Result<Self> {
        let (root, names, keys): (_, [&str; 4], LayerKeys) = if w.has("token_embedding.weight") {
            let names = [
                "token_embedding.weight",
                "positional_embedding",
                "transformer.resblocks",
                "ln_final",
            ];
            (w.clone(), names, OPENAI_CLIP)
        } else if w.has("text_model.embeddings.token_embedding.weight") {
            let names = [
                "embeddings.token_embedding.weight",
                "embeddings.position_embedding.weight",
                "encoder.layers",
                "final_layer_norm",
            ];
            (w.at("text_model"), names, HF_CLIP)
        } else {
            return Err(w.unknown("CLIP text tower"));
        };
        let [_, width] = root.dims(names[0])?;
        let style = LayerStyle {
            heads: heads(config.text_heads, width)?,
            act: Act::QuickGelu,
            eps: 1e-5,
        };
        let positions = root.get(names[1])?;
        Ok(Self {
            tokens: root.get(names[0])?,
            context_len: positions.dim(0)?,
            positions,
            layers: (0..root.count(names[2]))
                .map(|n| Layer::load(&root.at(format!("{}.{n}", names[2])), &keys, style))
                .collect::<Result<_>>()?,
            after: LayerNorm::load(&root, names[3], 1e-5)?,
            projection: if w.has("text_projection.weight") {
                Linear::load(w, "text_projection")?
            } else {
                Linear::from_parts(w.get("text_projection")?.t()?, None)?
            },
        })
    }

    /// Longest text in tokens, start and end included.
    pub fn context_len(&self) -> usize {
        self.context_len
    }

    /// Texts as tokens, each from start to end token, to (texts, dimension), each of length 1.
    pub fn embed(&self, texts: &[Vec<u32>]) -> Result<Tensor> {
        let rows = texts
            .iter()
            .map(|ids| self.embed_one(ids))
            .collect::<Result<Vec<_>>>()?;
        if rows.is_empty() {
            return Err(VisionError::Input("there is no text to embed".into()));
        }
        unit(&Tensor::cat(&rows, 0)?)
    }

    fn embed_one(&self, ids: &[u32]) -> Result<Tensor> {
        let n = ids.len();
        if n == 0 || n > self.context_len {
            return Err(VisionError::Input(format!(
                "a text of {n} tokens does not fit the context of {}",
                self.context_len
            )));
        }
        let device = self.tokens.device();
        let ids = Tensor::new(ids, device)?;
        let mut x = (self.tokens.index_select(&ids, 0)? + self.positions.narrow(0, 0, n)?)?.unsqueeze(0)?; // (1, n, width)
        let mask: Vec<f32> = (0..n * n)
            .map(|i| if i % n > i / n { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        let mask = Tensor::from_vec(mask, (1, 1, n, n), device)?;
        for layer in &self.layers {
            x = layer.forward(&x, Some(&mask))?;
        }
        let last = x.narrow(1, n - 1, 1)?.squeeze(1)?;
        self.projection.forward(&self.after.forward(&last)?)
    }
}

/// Rows of length 1.
pub(crate) fn unit(x: &Tensor) -> Result<Tensor> {
    let length = x.to_dtype(DType::F32)?.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(x.broadcast_div(&length.maximum(1e-12)?)?)
}
