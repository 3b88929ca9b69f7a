//! The U-Net of Stable Diffusion 1, 2 and XL; its structure is read from the names of its weights.

use candle_core::{DType, Device, Tensor};
use tensor_ops::Attention;

use super::layers::{Conv, LayerNorm, Linear, Norm};
use crate::{Error, Result, weights::Loader};

/// What the weights do not tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UNetConfig {
    /// Groups of the group norms; 32 in all real models.
    pub norm_groups: usize,
    /// Attention heads.
    pub heads: Heads,
}

/// How a width is split into heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// So many heads whatever the width (8 in SD 1).
    Count(usize),
    /// Heads of this size (64 in SD 2 and XL).
    Size(usize),
    /// So many heads on each level, from the outermost; 0 beyond the last.
    Levels([usize; MAX_LEVELS]),
}

/// Most levels whose heads can be told one by one; real models have 3 or 4.
pub const MAX_LEVELS: usize = 8;

impl Heads {
    /// From a list of one number for each level; `None` for an empty or too long one.
    pub fn listed(counts: &[usize]) -> Option<Self> {
        let mut levels = [0; MAX_LEVELS];
        levels.get_mut(..counts.len())?.copy_from_slice(counts);
        (!counts.is_empty()).then_some(Self::Levels(levels))
    }

    /// Those of one level.
    fn on(self, level: usize) -> Self {
        match self {
            Self::Levels(counts) => Self::Count(counts.get(level).copied().unwrap_or(0)),
            same => same,
        }
    }

    fn of(self, width: usize) -> Result<usize> {
        let heads = match self {
            Self::Count(count) => count,
            Self::Size(size) => width.checked_div(size).unwrap_or(0),
            Self::Levels(counts) => counts[0],
        };
        if heads == 0 || !width.is_multiple_of(heads) {
            return Err(Error::Weights(match self {
                Self::Size(size) => format!("heads of size {size} do not divide a width of {width}"),
                _ if heads == 0 => format!("no heads are told for a level of width {width}"),
                _ => format!("{heads} heads do not divide a width of {width}"),
            }));
        }
        Ok(heads)
    }
}

/// What a ControlNet adds to the skips and the middle.
pub struct Residuals {
    /// One per input block, in their order.
    pub input: Vec<Tensor>,
    /// Added to the middle's result.
    pub middle: Tensor,
}

/// One call's inputs besides the sample.
pub struct Conditions<'a> {
    /// `(b, tokens, context)`.
    pub context: &'a Tensor,
    /// `(b, adm)` for models with a label embedding.
    pub label: Option<&'a Tensor>,
    /// From a ControlNet.
    pub residuals: Option<&'a Residuals>,
    /// Convolutions wrap around, for pictures that tile.
    pub circular: bool,
}

/// The network.
pub struct UNet {
    time: [Linear; 2],
    label: Option<[Linear; 2]>,
    input: Vec<Vec<Layer>>,
    middle: Vec<Layer>,
    output: Vec<Vec<Layer>>,
    out_norm: Norm,
    out_conv: Conv,
    channels: usize,
    in_channels: usize,
    dtype: DType,
}

enum Layer {
    Conv(Conv),
    Res(Box<Res>),
    Transformer(Transformer),
    Up(Conv),
}

impl UNet {
    /// Reads the network at `loader`, in LDM's names.
    pub fn new(loader: &Loader<'_>, config: UNetConfig) -> Result<Self> {
        let first = loader.shape("input_blocks.0.0.weight")?;
        let [channels, in_channels, ..] = first[..] else {
            return Err(Error::Weights("the first convolution has no channels".into()));
        };
        let on = |level: usize| UNetConfig {
            heads: config.heads.on(level),
            ..config
        };
        let blocks = |name: &str, level: &mut usize| -> Result<Vec<Vec<Layer>>> {
            let mut blocks = Vec::new();
            loop {
                let at = loader.at(format!("{name}.{}", blocks.len()));
                let layers = layers(&at, on(*level))?;
                if layers.is_empty() {
                    return Ok(blocks);
                }
                // A halving block ends a level on the way in, an enlarging layer on the way out.
                if at.has("0.op.weight") {
                    *level += 1;
                } else if layers.iter().any(|layer| matches!(layer, Layer::Up(_))) {
                    *level = level.saturating_sub(1);
                }
                blocks.push(layers);
            }
        };
        let mut level = 0;
        let input = blocks("input_blocks", &mut level)?;
        let middle = layers(&loader.at("middle_block"), on(level))?;
        let output = blocks("output_blocks", &mut level)?;
        let label = if loader.has("label_emb.0.0.weight") {
            Some([
                Linear::new(&loader.at("label_emb.0.0"))?,
                Linear::new(&loader.at("label_emb.0.2"))?,
            ])
        } else {
            None
        };
        let out = loader.at("out.0");
        Ok(Self {
            time: [
                Linear::new(&loader.at("time_embed.0"))?,
                Linear::new(&loader.at("time_embed.2"))?,
            ],
            label,
            input,
            middle,
            output,
            out_norm: Norm::new(&out, config.norm_groups, 1e-5, true)?,
            out_conv: Conv::new(&loader.at("out.2"), 1)?,
            channels,
            in_channels,
            dtype: loader.dtype(),
        })
    }

    /// Channels of its input: 4, or 9 for inpainting models.
    pub fn in_channels(&self) -> usize {
        self.in_channels
    }

    /// `x (b, channels, h, w)` at `timesteps` (one per sample, or one for all) -> the raw output `(b, 4, h, w)` in f32.
    pub fn forward(&self, x: &Tensor, timesteps: &[f32], conditions: &Conditions<'_>) -> Result<Tensor> {
        let device = x.device();
        let circular = conditions.circular;
        let emb = timestep_embedding(timesteps, self.channels, device)?.to_dtype(self.dtype)?;
        let mut emb = self.time[1].forward(&tensor_ops::silu(&self.time[0].forward(&emb)?)?)?; // (b, 4c)
        match (&self.label, conditions.label) {
            (Some(layers), Some(label)) => {
                let label = layers[0].forward(&label.to_dtype(self.dtype)?)?;
                emb = emb.broadcast_add(&layers[1].forward(&tensor_ops::silu(&label)?)?)?;
            }
            (None, None) => {}
            (Some(_), None) => return Err(Error::Weights("this U-Net wants a label vector".into())),
            (None, Some(_)) => return Err(Error::Weights("this U-Net takes no label vector".into())),
        }
        let emb = tensor_ops::silu(&emb)?;
        let context = conditions.context.to_dtype(self.dtype)?;
        let mut h = x.to_dtype(self.dtype)?;
        let mut skips = Vec::with_capacity(self.input.len());
        for block in &self.input {
            for layer in block {
                h = layer.forward(&h, &emb, &context, (circular, None))?;
            }
            skips.push(h.clone());
        }
        for layer in &self.middle {
            h = layer.forward(&h, &emb, &context, (circular, None))?;
        }
        if let Some(residuals) = conditions.residuals {
            h = (h + residuals.middle.to_dtype(self.dtype)?)?;
            for (skip, residual) in skips.iter_mut().zip(&residuals.input) {
                *skip = (&*skip + residual.to_dtype(self.dtype)?)?;
            }
        }
        for block in &self.output {
            let skip = skips
                .pop()
                .ok_or_else(|| Error::Weights("more output blocks than input blocks".into()))?;
            h = Tensor::cat(&[&h, &skip], 1)?;
            let follow = match skips.last() {
                Some(next) => Some((next.dim(2)?, next.dim(3)?)),
                None => None,
            };
            for layer in block {
                h = layer.forward(&h, &emb, &context, (circular, follow))?;
            }
        }
        let h = self.out_conv.forward(&self.out_norm.forward(&h)?, circular)?;
        Ok(h.to_dtype(DType::F32)?)
    }
}

/// The layers of one block, until a slot is empty.
fn layers(loader: &Loader<'_>, config: UNetConfig) -> Result<Vec<Layer>> {
    let mut layers = Vec::new();
    loop {
        let at = loader.at(layers.len());
        layers.push(if at.has("in_layers.0.weight") {
            Layer::Res(Box::new(Res::new(&at, config.norm_groups)?))
        } else if at.has("proj_in.weight") {
            Layer::Transformer(Transformer::new(&at, config)?)
        } else if at.has("op.weight") {
            Layer::Conv(Conv::new(&at.at("op"), 2)?)
        } else if at.has("conv.weight") {
            Layer::Up(Conv::new(&at.at("conv"), 1)?)
        } else if at.has("weight") {
            Layer::Conv(Conv::new(&at, 1)?)
        } else {
            return Ok(layers);
        });
    }
}

impl Layer {
    /// `follow` is the size an upsampler brings the picture to; without it, twice the size.
    fn forward(
        &self,
        x: &Tensor,
        emb: &Tensor,
        context: &Tensor,
        (circular, follow): (bool, Option<(usize, usize)>),
    ) -> Result<Tensor> {
        match self {
            Self::Conv(conv) => Ok(conv.forward(x, circular)?),
            Self::Res(res) => res.forward(x, emb, circular),
            Self::Transformer(transformer) => transformer.forward(x, context),
            Self::Up(conv) => {
                let (_, _, h, w) = x.dims4()?;
                let (h, w) = follow.unwrap_or((2 * h, 2 * w));
                Ok(conv.forward(&tensor_ops::upsample_nearest(x, h, w)?, circular)?)
            }
        }
    }
}

struct Res {
    norm_in: Norm,
    conv_in: Conv,
    emb: Linear,
    norm_out: Norm,
    conv_out: Conv,
    skip: Option<Conv>,
}

impl Res {
    fn new(loader: &Loader<'_>, groups: usize) -> Result<Self> {
        Ok(Self {
            norm_in: Norm::new(&loader.at("in_layers.0"), groups, 1e-5, true)?,
            conv_in: Conv::new(&loader.at("in_layers.2"), 1)?,
            emb: Linear::new(&loader.at("emb_layers.1"))?,
            norm_out: Norm::new(&loader.at("out_layers.0"), groups, 1e-5, true)?,
            conv_out: Conv::new(&loader.at("out_layers.3"), 1)?,
            skip: if loader.has("skip_connection.weight") {
                Some(Conv::new(&loader.at("skip_connection"), 1)?)
            } else {
                None
            },
        })
    }

    fn forward(&self, x: &Tensor, emb: &Tensor, circular: bool) -> Result<Tensor> {
        let h = self.conv_in.forward(&self.norm_in.forward(x)?, circular)?;
        let shift = self.emb.forward(emb)?.unsqueeze(2)?.unsqueeze(3)?; // (b, c, 1, 1)
        let h = h.broadcast_add(&shift)?;
        let h = self.conv_out.forward(&self.norm_out.forward(&h)?, circular)?;
        match &self.skip {
            Some(skip) => Ok((skip.forward(x, circular)? + h)?),
            None => Ok((x + h)?),
        }
    }
}

struct Transformer {
    norm: Norm,
    proj_in: Linear,
    blocks: Vec<Block>,
    proj_out: Linear,
}

struct Block {
    norms: [LayerNorm; 3],
    own: CrossAttention,
    text: CrossAttention,
    up: Linear,
    down: Linear,
}

struct CrossAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    heads: usize,
}

impl Transformer {
    fn new(loader: &Loader<'_>, config: UNetConfig) -> Result<Self> {
        let mut blocks = Vec::new();
        loop {
            let at = loader.at(format!("transformer_blocks.{}", blocks.len()));
            if !at.has("norm1.weight") {
                break;
            }
            blocks.push(Block {
                norms: [
                    LayerNorm::new(&at.at("norm1"))?,
                    LayerNorm::new(&at.at("norm2"))?,
                    LayerNorm::new(&at.at("norm3"))?,
                ],
                own: CrossAttention::new(&at.at("attn1"), config.heads)?,
                text: CrossAttention::new(&at.at("attn2"), config.heads)?,
                up: Linear::new(&at.at("ff.net.0.proj"))?,
                down: Linear::new(&at.at("ff.net.2"))?,
            });
        }
        Ok(Self {
            norm: Norm::new(&loader.at("norm"), config.norm_groups, 1e-6, false)?,
            proj_in: Linear::new(&loader.at("proj_in"))?,
            blocks,
            proj_out: Linear::new(&loader.at("proj_out"))?,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (b, c, height, width) = x.dims4()?;
        let rows = self.norm.forward(x)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?; // (b, h·w, c)
        let mut h = self.proj_in.forward(&rows)?;
        for block in &self.blocks {
            let y = block.norms[0].forward(&h)?;
            h = (h + block.own.forward(&y, &y)?)?;
            let y = block.norms[1].forward(&h)?;
            h = (h + block.text.forward(&y, context)?)?;
            let y = tensor_ops::geglu(&block.up.forward(&block.norms[2].forward(&h)?)?)?;
            h = (h + block.down.forward(&y)?)?;
        }
        let h = self.proj_out.forward(&h)?.transpose(1, 2)?.contiguous()?; // (b, c, h·w)
        Ok((h.reshape((b, c, height, width))? + x)?)
    }
}

impl CrossAttention {
    fn new(loader: &Loader<'_>, heads: Heads) -> Result<Self> {
        let width = loader.shape("to_q.weight")?.first().copied().unwrap_or(0);
        Ok(Self {
            query: Linear::new(&loader.at("to_q"))?,
            key: Linear::new(&loader.at("to_k"))?,
            value: Linear::new(&loader.at("to_v"))?,
            out: Linear::new(&loader.at("to_out.0"))?,
            heads: heads.of(width)?,
        })
    }

    fn forward(&self, x: &Tensor, context: &Tensor) -> Result<Tensor> {
        let y = tensor_ops::attention(
            &self.query.forward(x)?,
            &self.key.forward(context)?,
            &self.value.forward(context)?,
            &Attention::new(self.heads),
        )?;
        Ok(self.out.forward(&y)?)
    }
}

/// Cosines, then sines, of `t` at `dim / 2` frequencies from 1 to 1/10000: `(values, dim)` f32.
pub fn timestep_embedding(values: &[f32], dim: usize, device: &Device) -> Result<Tensor> {
    let half = dim / 2;
    let frequency = |i: usize| (-(10_000f64.ln()) * i as f64 / half.max(1) as f64).exp() as f32;
    let mut out = Vec::with_capacity(values.len() * dim);
    for value in values {
        let angle = |i: usize| value * frequency(i);
        out.extend((0..half).map(|i| f64::from(angle(i)).cos() as f32));
        out.extend((0..half).map(|i| f64::from(angle(i)).sin() as f32));
        out.resize(out.len() + dim % 2, 0.0);
    }
    Ok(Tensor::from_vec(out, (values.len(), dim), device)?)
}
