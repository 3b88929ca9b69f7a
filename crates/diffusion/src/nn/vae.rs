//! The autoencoder between pictures and latents, an eighth of the size.

use candle_core::{DType, Tensor};
use tensor_ops::{Attention, Conv as Geometry};

use super::layers::{Conv, Linear, Norm};
use crate::{Error, Result, weights::Loader};

/// Both ways.
pub struct Vae {
    encoder: Option<Encoder>,
    decoder: Decoder,
    latent_channels: usize,
    dtype: DType,
}

struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm: Norm,
    conv_out: Conv,
    quant: Option<Conv>,
}

pub(super) struct Decoder {
    post_quant: Option<Conv>,
    conv_in: Conv,
    middle: Middle,
    pub(super) levels: Vec<Level>, // the smallest picture first
    norm: Norm,
    conv_out: Conv,
}

pub(super) struct Level {
    blocks: Vec<Res>,
    resample: Option<Conv>,
}

struct Middle {
    first: Res,
    attention: SelfAttention,
    second: Res,
}

struct Res {
    norms: [Norm; 2],
    convs: [Conv; 2],
    skip: Option<Conv>,
}

struct SelfAttention {
    norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
}

impl Vae {
    /// Reads the autoencoder at `loader`, in LDM's names; the encoder may be missing.
    pub fn new(loader: &Loader<'_>, groups: usize) -> Result<Self> {
        let decoder = loader.at("decoder");
        let latent_channels = decoder.shape("conv_in.weight")?.get(1).copied().unwrap_or(0);
        let optional = |name: &str| -> Result<Option<Conv>> {
            if loader.has(&format!("{name}.weight")) {
                Ok(Some(Conv::new(&loader.at(name), 1)?))
            } else {
                Ok(None)
            }
        };
        let mut levels = levels(&decoder.at("up"), "upsample", groups)?;
        levels.reverse();
        let decoder = Decoder {
            post_quant: optional("post_quant_conv")?,
            conv_in: Conv::new(&decoder.at("conv_in"), 1)?,
            middle: Middle::new(&decoder.at("mid"), groups)?,
            levels,
            norm: Norm::new(&decoder.at("norm_out"), groups, 1e-6, true)?,
            conv_out: Conv::new(&decoder.at("conv_out"), 1)?,
        };
        let encoder = loader.at("encoder");
        let encoder = if encoder.has("conv_in.weight") {
            Some(Encoder {
                conv_in: Conv::new(&encoder.at("conv_in"), 1)?,
                levels: self::levels(&encoder.at("down"), "downsample", groups)?,
                middle: Middle::new(&encoder.at("mid"), groups)?,
                norm: Norm::new(&encoder.at("norm_out"), groups, 1e-6, true)?,
                conv_out: Conv::new(&encoder.at("conv_out"), 1)?,
                quant: optional("quant_conv")?,
            })
        } else {
            None
        };
        Ok(Self {
            encoder,
            decoder,
            latent_channels,
            dtype: loader.dtype(),
        })
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// `(b, z, h, w)` unscaled latents -> `(b, 3, 8h, 8w)` f32, about -1..=1.
    pub fn decode(&self, latents: &Tensor, circular: bool) -> Result<Tensor> {
        let mut h = self.decoder.begin(&latents.to_dtype(self.dtype)?, circular)?;
        for level in &self.decoder.levels {
            h = level.blocks(&h, circular, &mut plain)?;
            h = level.enlarge(&h, circular)?;
        }
        self.decoder.end(&h, circular, &mut plain)
    }

    /// As [`Self::decode`], one picture `(1, z, h, w)`, its larger half in tiles, so that the memory needed hardly grows with
    /// its size. `each` is asked before every tile and may end the work.
    pub fn decode_tiled(
        &self,
        latent: &Tensor,
        circular: bool,
        each: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let h = self.decoder.begin(&latent.to_dtype(self.dtype)?, circular)?;
        super::vae_tiled::decode(&self.decoder, h, circular, each)
    }

    /// `(b, 3, h, w)` in -1..=1 -> the posterior's mean `(b, z, h/8, w/8)` f32, unscaled.
    pub fn encode(&self, picture: &Tensor, circular: bool) -> Result<Tensor> {
        let encoder = self
            .encoder
            .as_ref()
            .ok_or_else(|| Error::Weights("this VAE has no encoder".into()))?;
        let mut h = encoder.conv_in.forward(&picture.to_dtype(self.dtype)?, circular)?;
        for level in &encoder.levels {
            h = level.blocks(&h, circular, &mut plain)?;
            if let Some(conv) = &level.resample {
                // One row below and one column to the right, never around the edge.
                let padded = h.pad_with_zeros(2, 0, 1)?.pad_with_zeros(3, 0, 1)?;
                h = conv.forward(&padded, false)?;
            }
        }
        h = encoder.middle.forward(&h, circular)?;
        h = encoder.conv_out.forward(&encoder.norm.forward(&h)?, circular)?;
        if let Some(conv) = &encoder.quant {
            h = conv.forward(&h, circular)?;
        }
        Ok(h.narrow(1, 0, self.latent_channels)?.to_dtype(DType::F32)?)
    }
}

fn levels(loader: &Loader<'_>, resample: &str, groups: usize) -> Result<Vec<Level>> {
    let mut levels = Vec::new();
    loop {
        let level = loader.at(levels.len());
        let mut blocks = Vec::new();
        while level.has(&format!("block.{}.norm1.weight", blocks.len())) {
            blocks.push(Res::new(&level.at(format!("block.{}", blocks.len())), groups)?);
        }
        if blocks.is_empty() {
            return Ok(levels);
        }
        let conv = level.at(resample).at("conv");
        let resample = match (conv.has("weight"), resample) {
            (false, _) => None,
            (true, "upsample") => Some(Conv::new(&conv, 1)?),
            (true, _) => {
                let geometry = Geometry {
                    stride: 2,
                    ..Geometry::default()
                };
                Some(Conv::with(&conv, geometry)?)
            }
        };
        levels.push(Level { blocks, resample });
    }
}

/// How a group norm is done.
pub(super) type Norming<'a> = dyn FnMut(&Norm, &Tensor) -> Result<Tensor> + 'a;

/// With the moments of the tensor itself.
fn plain(norm: &Norm, x: &Tensor) -> Result<Tensor> {
    Ok(norm.forward(x)?)
}

impl Decoder {
    /// `(b, z, h, w)` -> `(b, c, h, w)` before the first level.
    fn begin(&self, latents: &Tensor, circular: bool) -> Result<Tensor> {
        let mut h = latents.clone();
        if let Some(conv) = &self.post_quant {
            h = conv.forward(&h, circular)?;
        }
        self.middle.forward(&self.conv_in.forward(&h, circular)?, circular)
    }

    /// `(b, c, 8h, 8w)` after the last level -> `(b, 3, 8h, 8w)` f32.
    pub(super) fn end(&self, h: &Tensor, circular: bool, norm: &mut Norming<'_>) -> Result<Tensor> {
        let h = self.conv_out.forward(&norm(&self.norm, h)?, circular)?;
        Ok(h.to_dtype(DType::F32)?)
    }
}

impl Level {
    pub(super) fn blocks(&self, x: &Tensor, circular: bool, norm: &mut Norming<'_>) -> Result<Tensor> {
        let mut h = x.clone();
        for block in &self.blocks {
            h = block.forward(&h, circular, norm)?;
        }
        Ok(h)
    }

    /// Twice the size, where the level ends so.
    pub(super) fn enlarge(&self, x: &Tensor, circular: bool) -> Result<Tensor> {
        let Some(conv) = &self.resample else {
            return Ok(x.clone());
        };
        let (_, _, height, width) = x.dims4()?;
        Ok(conv.forward(&tensor_ops::upsample_nearest(x, 2 * height, 2 * width)?, circular)?)
    }
}

impl Middle {
    fn new(loader: &Loader<'_>, groups: usize) -> Result<Self> {
        let attention = loader.at("attn_1");
        Ok(Self {
            first: Res::new(&loader.at("block_1"), groups)?,
            attention: SelfAttention {
                norm: Norm::new(&attention.at("norm"), groups, 1e-6, false)?,
                query: Linear::new(&attention.at("q"))?,
                key: Linear::new(&attention.at("k"))?,
                value: Linear::new(&attention.at("v"))?,
                out: Linear::new(&attention.at("proj_out"))?,
            },
            second: Res::new(&loader.at("block_2"), groups)?,
        })
    }

    fn forward(&self, x: &Tensor, circular: bool) -> Result<Tensor> {
        let x = self.first.forward(x, circular, &mut plain)?;
        let (b, c, height, width) = x.dims4()?;
        let attention = &self.attention;
        let rows = attention
            .norm
            .forward(&x)?
            .flatten_from(2)?
            .transpose(1, 2)?
            .contiguous()?; // (b, h·w, c)
        let y = tensor_ops::attention(
            &attention.query.forward(&rows)?,
            &attention.key.forward(&rows)?,
            &attention.value.forward(&rows)?,
            &Attention::new(1),
        )?;
        let y = attention
            .out
            .forward(&y)?
            .transpose(1, 2)?
            .contiguous()?
            .reshape((b, c, height, width))?;
        self.second.forward(&(x + y)?, circular, &mut plain)
    }
}

impl Res {
    fn new(loader: &Loader<'_>, groups: usize) -> Result<Self> {
        Ok(Self {
            norms: [
                Norm::new(&loader.at("norm1"), groups, 1e-6, true)?,
                Norm::new(&loader.at("norm2"), groups, 1e-6, true)?,
            ],
            convs: [Conv::new(&loader.at("conv1"), 1)?, Conv::new(&loader.at("conv2"), 1)?],
            skip: if loader.has("nin_shortcut.weight") {
                Some(Conv::new(&loader.at("nin_shortcut"), 1)?)
            } else {
                None
            },
        })
    }

    fn forward(&self, x: &Tensor, circular: bool, norm: &mut Norming<'_>) -> Result<Tensor> {
        let h = self.convs[0].forward(&norm(&self.norms[0], x)?, circular)?;
        let h = self.convs[1].forward(&norm(&self.norms[1], &h)?, circular)?;
        match &self.skip {
            Some(skip) => Ok((skip.forward(x, circular)? + h)?),
            None => Ok((x + h)?),
        }
    }
}
