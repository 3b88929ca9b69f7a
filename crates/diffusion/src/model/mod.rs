//! A model in use: its family told from its weights, its networks, its noise levels.

mod files;
mod folder;
mod sound;

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use tensor_ops::Activation;

use crate::{
    Error, Result,
    nn::{
        clip::{Clip, ClipConfig, encode_weighted},
        unet::{Heads, UNet, UNetConfig, timestep_embedding},
        vae::Vae,
    },
    sigma::{Levels, Prediction},
    tokens::{self, END, Embeddings},
    weights::{Loader, Params, Weights},
};

pub(crate) use files::{family, open};

/// What a model is, as far as the pipeline cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1.x: CLIP-L.
    Sd1,
    /// Stable Diffusion 2.x: OpenCLIP-H.
    Sd2,
    /// Stable Diffusion XL: CLIP-L and OpenCLIP-G, size conditioning.
    Sdxl,
}

impl Family {
    /// What its latents are multiplied by before the U-Net sees them.
    pub fn vae_scale(self) -> f64 {
        match self {
            Self::Sd1 | Self::Sd2 => 0.18215,
            Self::Sdxl => 0.13025,
        }
    }
}

/// The files of a model.
#[derive(Clone, Debug, Default)]
pub struct ModelFiles {
    /// A single-file checkpoint, or a folder in diffusers' layout.
    pub checkpoint: PathBuf,
    /// A U-Net that replaces the checkpoint's.
    pub unet: Option<PathBuf>,
    /// A VAE that replaces the checkpoint's.
    pub vae: Option<PathBuf>,
}

/// Numbers weights do not tell; each unset one is taken from the file's metadata or config.json, else from the family.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Groups of the U-Net's norms (32).
    pub norm_groups: Option<usize>,
    /// Groups of the VAE's norms (32).
    pub vae_norm_groups: Option<usize>,
    /// The U-Net's attention heads.
    pub heads: Option<Heads>,
    /// Heads of the text encoders (their width / 64).
    pub text_heads: Option<usize>,
    /// Heads of OpenCLIP's H or G beside another encoder (`text_heads`, else its width / 64).
    pub big_text_heads: Option<usize>,
    /// What the U-Net predicts.
    pub prediction: Option<Prediction>,
    /// What latents are multiplied by before the U-Net sees them.
    pub vae_scale: Option<f64>,
    /// Whether the last noise level is almost pure noise.
    pub zero_terminal_snr: Option<bool>,
}

/// A loaded model.
pub struct Model {
    /// Its family.
    pub family: Family,
    /// Its noise levels.
    pub levels: Levels,
    /// What the U-Net's output means.
    pub prediction: Prediction,
    /// Latents are multiplied by this before the U-Net sees them.
    pub scale: f64,
    /// The noise predictor.
    pub unet: UNet,
    /// The autoencoder.
    pub vae: Vae,
    clip_l: Option<Clip>,
    clip_big: Option<Clip>, // H or G
    weights: Weights,
    params: Params,
    device: Device,
    vae_groups: usize,
}

/// Finds the vectors of a textual inversion: its name, and whether the big encoder (G, H) asks.
pub type Find = dyn Fn(&str, bool) -> Option<Vec<Vec<f32>>> + Send + Sync;

/// A prompt as the U-Net takes it.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// `(1, tokens, context)` f32.
    pub context: Tensor,
    /// `(1, d)` f32.
    pub pooled: Tensor,
    /// Tokens at the end of the prompt that found no room.
    pub dropped_tokens: usize,
}

impl Model {
    /// Loads a model; on the CPU everything is f32, elsewhere the networks are f16 and the VAE f32.
    pub fn load(files: &ModelFiles, device: &Device, overrides: Overrides) -> Result<Self> {
        Self::load_with_encoders(files, &[], device, overrides)
    }

    /// As [`Self::load`]; text encoders from files of their own replace the checkpoint's. Which one a file holds is told
    /// from its weights.
    pub fn load_with_encoders(
        files: &ModelFiles,
        encoders: &[PathBuf],
        device: &Device,
        overrides: Overrides,
    ) -> Result<Self> {
        let mut overrides = overrides;
        let weights = open(files, encoders, &mut overrides)?;
        let family = family(&weights)?;
        let params = Params::default();
        let network = if device.is_cpu() { DType::F32 } else { DType::F16 };
        let at = |prefix: &str, dtype| Loader::new(&weights, &params, prefix, dtype, device);
        let conv_projection = weights.names_under("unet.").any(|name| {
            name.ends_with("proj_in.weight") && weights.shape(&format!("unet.{name}")).is_some_and(|s| s.len() == 4)
        });
        let heads = overrides
            .heads
            .or(weights.metadata_number("num_heads").map(Heads::Count));
        let config = UNetConfig {
            norm_groups: overrides
                .norm_groups
                .or(weights.metadata_number("norm_num_groups"))
                .unwrap_or(32),
            heads: heads.unwrap_or(if conv_projection {
                Heads::Count(8)
            } else {
                Heads::Size(64)
            }),
        };
        let vae_groups = overrides
            .vae_norm_groups
            .or(weights.metadata_number("vae_norm_num_groups"))
            .unwrap_or(32);
        let text_heads = overrides.text_heads.or(weights.metadata_number("text_num_heads"));
        let clip = |name: &str, activation, text_heads: Option<usize>| -> Result<Option<Clip>> {
            let Some(shape) = weights.shape(&format!("{name}.text_model.embeddings.token_embedding.weight")) else {
                return Ok(None);
            };
            let heads = text_heads.unwrap_or(shape.last().copied().unwrap_or(0) / 64);
            let config = ClipConfig { heads, activation };
            Ok(Some(Clip::new(&at(&format!("{name}."), network), config)?))
        };
        let big = if family == Family::Sd2 { "clip_h" } else { "clip_g" };
        let big_heads = overrides.big_text_heads.or(text_heads);
        let (clip_l, clip_big) = (
            clip("clip_l", Activation::QuickGelu, text_heads)?,
            clip(big, Activation::GeluErf, big_heads)?,
        );
        let complete = match family {
            Family::Sd1 => clip_l.is_some(),
            Family::Sd2 => clip_big.is_some(),
            Family::Sdxl => clip_l.is_some() && clip_big.is_some(),
        };
        if !complete && family == Family::Sdxl && weights.has_prefix("clip_h.") {
            return Err(Error::Weights(
                "its U-Net takes a label and it has one text encoder: SDXL's refiner and unCLIP models make no pictures by themselves".into(),
            ));
        }
        if !complete {
            return Err(Error::Weights(format!("a text encoder of {family:?} is missing")));
        }
        // Playground 2.5 and CosXL, by the marks that ComfyUI knows them by.
        if weights.has("edm_mean") || weights.has("edm_vpred.sigma_max") {
            return Err(folder::edm());
        }
        sound::check(&weights, family)?;
        let prediction = match overrides.prediction {
            Some(prediction) => prediction,
            None => prediction(&weights, family)?,
        };
        let unet = UNet::new(&at("unet.", network), config)?;
        let vae = Vae::new(&at("vae.", DType::F32), vae_groups)?;
        sound::check_all_used(&weights, |name| params.get(name).is_some())?;
        let (channels, z) = (unet.in_channels(), vae.latent_channels());
        if channels != z && (channels != 2 * z + 1 || z != 4) {
            return Err(Error::Weights(format!(
                "its U-Net takes {channels} channels and its VAE gives {z}; models for text, and for inpainting with 9, are supported"
            )));
        }
        // As ComfyUI reads these marks: without `v_pred` beside it, `ztsnr` says nothing.
        let marked = weights.has("v_pred") && weights.has("ztsnr");
        let levels = if overrides.zero_terminal_snr.unwrap_or(marked) {
            Levels::zero_terminal_snr()
        } else {
            Levels::stable_diffusion()
        };
        Ok(Self {
            family,
            levels,
            prediction,
            scale: overrides.vae_scale.unwrap_or(family.vae_scale()),
            unet,
            vae,
            clip_l,
            clip_big,
            device: device.clone(),
            weights,
            params,
            vae_groups,
        })
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Reads the VAE anew in f32, for a picture that came out black.
    pub fn fresh_vae(&self) -> Result<Vae> {
        let params = Params::default();
        let loader = Loader::new(&self.weights, &params, "vae.", DType::F32, &self.device);
        Vae::new(&loader, self.vae_groups)
    }

    /// The weights in use, by name.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The weights as they lie in the files.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Numbers per token in one of the text encoders (`big` is OpenCLIP's H or G, else CLIP-L); `None` where there is none.
    pub fn token_width(&self, big: bool) -> Option<usize> {
        let encoders: &[&str] = if big { &["clip_h", "clip_g"] } else { &["clip_l"] };
        encoders.iter().find_map(|encoder| {
            let name = format!("{encoder}.text_model.embeddings.token_embedding.weight");
            self.weights.shape(&name)?.last().copied()
        })
    }

    /// Encodes a prompt without its negative part. `skip` is the layer from the end; `None` is the family's own choice:
    /// the last but one for SDXL, else the last.
    pub fn encode(&self, prompt: &str, skip: Option<usize>, find: &Find) -> Result<Encoded> {
        let mut dropped_tokens = 0;
        let mut encode = |clip: &Option<Clip>, big: bool, layer: usize, norm: bool| -> Result<(Tensor, Tensor)> {
            let clip = clip
                .as_ref()
                .ok_or_else(|| Error::Weights("a text encoder is missing".into()))?;
            let fill = if big { 0 } else { END };
            let (rows, dropped) = tokens::rows_within(prompt, fill, &Finder { find, big })?;
            dropped_tokens = dropped_tokens.max(dropped);
            encode_weighted(clip, &rows, &tokens::empty_row(fill), layer, norm)
        };
        let (context, pooled) = match self.family {
            Family::Sd1 => encode(&self.clip_l, false, skip.unwrap_or(1), true)?,
            Family::Sd2 => encode(&self.clip_big, true, skip.unwrap_or(2), true)?,
            Family::Sdxl => {
                let layer = skip.unwrap_or(2);
                let (l, _) = encode(&self.clip_l, false, layer, false)?;
                let (g, pooled) = encode(&self.clip_big, true, layer, false)?;
                let tokens = l.dim(1)?.min(g.dim(1)?);
                (
                    Tensor::cat(&[&l.narrow(1, 0, tokens)?, &g.narrow(1, 0, tokens)?], 2)?,
                    pooled,
                )
            }
        };
        Ok(Encoded {
            context,
            pooled,
            dropped_tokens,
        })
    }

    /// The label vector of SDXL: the pooled text and six sizes. `None` for other families.
    pub fn label(&self, encoded: &Encoded, width: u32, height: u32) -> Result<Option<Tensor>> {
        if self.family != Family::Sdxl {
            return Ok(None);
        }
        let sizes = [height, width, 0, 0, height, width].map(|size| size as f32);
        let sizes = timestep_embedding(&sizes, 256, &self.device)?.reshape((1, 6 * 256))?;
        Ok(Some(Tensor::cat(&[&encoded.pooled, &sizes], 1)?))
    }

    /// The clean sample at `sigma` from the network's output for `x` (all f32, one shape).
    pub fn clean(&self, x: &[f32], output: &[f32], sigma: f32) -> Vec<f32> {
        let variance = sigma * sigma + 1.0;
        match self.prediction {
            Prediction::Epsilon => x.iter().zip(output).map(|(x, out)| x - out * sigma).collect(),
            Prediction::V => {
                let (keep, turn) = (1.0 / variance, sigma / variance.sqrt());
                x.iter().zip(output).map(|(x, out)| x * keep - out * turn).collect()
            }
            Prediction::Flow => x.iter().zip(output).map(|(x, out)| x - out * sigma).collect(),
        }
    }
}

struct Finder<'a> {
    find: &'a Find,
    big: bool,
}

impl Embeddings for Finder<'_> {
    fn find(&self, name: &str) -> Option<Vec<Vec<f32>>> {
        (self.find)(name, self.big)
    }
}

/// V where the file says so (SDXL) or where a bias of the last block spreads as it does in v-models (SD 2).
fn prediction(weights: &Weights, family: Family) -> Result<Prediction> {
    const TELLTALE: &str = "unet.output_blocks.11.1.transformer_blocks.0.norm1.bias";
    if weights.has("v_pred") {
        return Ok(Prediction::V);
    }
    // SD 2's inpainting models of nine channels predict the noise, whatever that bias holds.
    let is_plain = weights
        .shape("unet.input_blocks.0.0.weight")
        .is_some_and(|shape| shape.get(1) == Some(&4));
    if family == Family::Sd2 && is_plain && weights.has(TELLTALE) {
        let bias = weights.tensor(TELLTALE, DType::F32, &Device::Cpu)?.to_vec1::<f32>()?;
        let n = bias.len().max(1) as f32;
        let mean = bias.iter().sum::<f32>() / n;
        let variance = bias.iter().map(|b| (b - mean) * (b - mean)).sum::<f32>() / n;
        if variance.sqrt() > 0.09 {
            return Ok(Prediction::V);
        }
    }
    Ok(Prediction::Epsilon)
}
