//! BLIP: one sentence about a picture.
//!
//! Li et al. 2022 (arXiv 2201.12086), base and large, in Salesforce's and Hugging Face's layouts.

mod decoder;
mod generate;

use std::path::Path;

use candle_core::Tensor;
use imaging::{Filter, Picture};
use tokenizers::Tokenizer;

use crate::clip::{MEAN, STD};
use crate::error::{Result, VisionError};
use crate::layers::Act;
use crate::transformer::{HF_BLIP, SALESFORCE_BLIP, TowerKeys, VisionTower};
use crate::weights::Weights;
use decoder::Decoder;
pub use generate::{CaptionSettings, Search};

/// Numbers that the tensors do not tell; `None` is what every published BLIP has (one head per 64 channels).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlipConfig {
    /// Attention heads of the vision tower.
    pub vision_heads: Option<usize>,
    /// Attention heads of the decoder.
    pub text_heads: Option<usize>,
}

impl BlipConfig {
    /// Reads the head counts from a Hugging Face `config.json`.
    pub fn from_json(json: &str) -> Result<Self> {
        let heads = crate::clip::ClipConfig::from_json(json)?;
        Ok(Self {
            vision_heads: heads.vision_heads,
            text_heads: heads.text_heads,
        })
    }
}

/// The network.
pub struct Blip {
    vision: VisionTower,
    decoder: Decoder,
    device: candle_core::Device,
}

/// The network with its words.
pub struct Captioner {
    blip: Blip,
    tokenizer: Tokenizer,
}

const HF_TOWER: TowerKeys = TowerKeys {
    patches: "vision_model.embeddings.patch_embedding",
    class: "vision_model.embeddings.class_embedding",
    positions: "vision_model.embeddings.position_embedding",
    before: None,
    layers: "vision_model.encoder.layers",
    after: "vision_model.post_layernorm",
    layer: HF_BLIP,
};
const SALESFORCE_TOWER: TowerKeys = TowerKeys {
    patches: "visual_encoder.patch_embed.proj",
    class: "visual_encoder.cls_token",
    positions: "visual_encoder.pos_embed",
    before: None,
    layers: "visual_encoder.blocks",
    after: "visual_encoder.norm",
    layer: SALESFORCE_BLIP,
};

/// `[DEC]`, which begins a caption.
const START: u32 = 30522;
/// `[SEP]`, which ends one.
const END: u32 = 102;

impl Blip {
    /// Reads the network; the layout is told by the keys.
    pub fn load(weights: &Weights, config: &BlipConfig) -> Result<Self> {
        let w = &weights.unwrapped(&["model"]);
        // Salesforce's tower uses the vision transformer library's eps, Hugging Face's port another.
        let (keys, eps) = if w.has("visual_encoder.cls_token") {
            (SALESFORCE_TOWER, 1e-6)
        } else if w.has("vision_model.embeddings.class_embedding") {
            (HF_TOWER, 1e-5)
        } else {
            return Err(w.unknown("captioner"));
        };
        Ok(Self {
            vision: VisionTower::load(w, &keys, config.vision_heads, Act::Gelu, eps)?,
            decoder: Decoder::load(&w.at("text_decoder"), config.text_heads)?,
            device: w.device().clone(),
        })
    }

    /// The prepared picture: (1, 3, side, side), squashed and normalised.
    pub fn pixels(&self, picture: &Picture) -> Result<Tensor> {
        let side = self.vision.side() as u32;
        let planar = picture
            .over([255; 3])
            .resized(side, side, Filter::Bicubic)
            .to_planar()
            .normalised(&MEAN, &STD);
        Ok(Tensor::from_vec(
            planar.into_data(),
            (1, 3, side as usize, side as usize),
            &self.device,
        )?)
    }

    /// What the decoder looks at: (1, 1 + patches, width).
    pub fn look(&self, pixels: &Tensor) -> Result<Tensor> {
        self.vision.norm(&self.vision.hidden(pixels)?)
    }

    /// Scores of the next token after `ids`: one per word of the vocabulary.
    pub fn next_scores(&self, seen: &Tensor, ids: &[u32]) -> Result<Vec<f32>> {
        let mut memory = self.decoder.memory(seen)?;
        let scores = self.decoder.forward(&[ids.to_vec()], &mut memory)?;
        Ok(scores.flatten_all()?.to_vec1()?)
    }

    /// What a nucleus would draw the token after `ids` from: tokens with their probabilities, most likely first.
    pub fn choices(&self, seen: &Tensor, ids: &[u32], settings: &CaptionSettings) -> Result<Vec<(u32, f32)>> {
        generate::choices(&self.decoder, seen, ids, END, settings)
    }

    /// Tokens of a caption, from the start token (and `prompt`) to the end token. `stop` is asked before each token.
    pub fn generate(
        &self,
        seen: &Tensor,
        prompt: &[u32],
        settings: &CaptionSettings,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<u32>> {
        let begin: Vec<u32> = [START].into_iter().chain(prompt.iter().copied()).collect();
        generate::run(&self.decoder, seen, &begin, END, settings, stop)
    }
}

impl Captioner {
    /// Joins the network and a `tokenizer.json` of BERT's uncased vocabulary.
    pub fn new(blip: Blip, tokenizer: &Path) -> Result<Self> {
        let broken = |reason: String| VisionError::Side {
            what: format!("tokenizer `{}`", tokenizer.display()),
            reason,
        };
        let bytes = std::fs::read(tokenizer).map_err(|e| broken(e.to_string()))?;
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| broken(e.to_string()))?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| broken(e.to_string()))?;
        Ok(Self { blip, tokenizer })
    }

    /// One sentence, without the prompt. `stop` is asked before each token whether to give up.
    pub fn caption(&self, picture: &Picture, settings: &CaptionSettings, stop: &dyn Fn() -> bool) -> Result<String> {
        let seen = self.blip.look(&self.blip.pixels(picture)?)?;
        let unreadable = |e: tokenizers::Error| VisionError::Input(format!("the text cannot be tokenized: {e}"));
        let prompt = self
            .tokenizer
            .encode(settings.prompt.as_str(), false)
            .map_err(unreadable)?;
        let ids = self.blip.generate(&seen, prompt.get_ids(), settings, stop)?;
        let said: Vec<u32> = ids
            .into_iter()
            .skip(1 + prompt.get_ids().len())
            .filter(|id| *id != END && *id < START)
            .collect();
        let text = self.tokenizer.decode(&said, true).map_err(unreadable)?;
        Ok(text.trim().to_owned())
    }
}
