//! DAT, the dual aggregation transformer: windowed attention over places and attention over channels in turn.
//!
//! Structure: Chen et al. 2023 (arXiv 2308.03364), checked against spandrel 0.4.2. Tokens are (1, h w, c), row by row.
//! The attention over channels and the pooled gates see a whole tile, so a tile's result depends a little on all of it.

mod windows;

use candle_core::{D, Tensor};

use windows::Windows;

use super::{Network, Step};
use crate::error::Result;
use crate::layers::{Act, Conv, LayerNorm, Linear, pixel_shuffle, sigmoid, softmax};
use crate::transformer::heads;
use crate::weights::Weights;

pub(crate) struct Dat {
    first: Conv,
    before: LayerNorm,
    groups: Vec<Group>,
    norm: LayerNorm,
    after_body: Residual,
    up: Up,
    scale: usize,
}

struct Group {
    blocks: Vec<Block>,
    end: Residual,
}

/// One convolution, or three with leaky activations between them.
struct Residual(Vec<Conv>);

struct Block {
    norm1: LayerNorm,
    qkv: Linear,
    seen: Seen,
    depthwise: Conv,
    channel_gate: [Conv; 2],
    place_gate: [Conv; 2],
    out: Linear,
    norm2: LayerNorm,
    ffn: GatedMlp,
}

/// What a block's attention runs over.
enum Seen {
    /// Windows of two shapes, each for half of the channels.
    Places([Windows; 2]),
    /// Channels; the temperature is (heads, 1, 1).
    Channels(Tensor),
}

struct GatedMlp {
    up: Linear,
    norm: LayerNorm,
    gate: Conv,
    down: Linear,
}

enum Up {
    /// Convolutions and shuffles at 64 channels, then one to colours.
    Shuffles {
        before: Conv,
        steps: Vec<(Conv, usize)>,
        last: Conv,
    },
    /// One convolution and one shuffle.
    Direct(Conv),
}

const MEAN: [f32; 3] = [0.4488, 0.4371, 0.4040];
const EPS: f64 = 1e-5;

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    w.has("before_RG.1.weight") && w.has("layers.0.blocks.0.attn.attns.0.pos.pos_proj.weight")
}

impl Dat {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        let (up, scale) = Up::load(w)?;
        Ok(Self {
            first: Conv::load(w, "conv_first")?,
            before: LayerNorm::load(w, "before_RG.1", EPS)?,
            groups: (0..w.count("layers"))
                .map(|n| Group::load(&w.at(format!("layers.{n}")), n))
                .collect::<Result<_>>()?,
            norm: LayerNorm::load(w, "norm", EPS)?,
            after_body: Residual::load(w, "conv_after_body")?,
            up,
            scale,
        })
    }
}

impl Up {
    fn load(w: &Weights) -> Result<(Self, usize)> {
        let factor = |key: &str, inner: usize| {
            let name = format!("{key}.weight");
            let [out, _, _, _] = w.dims(&name)?;
            let factor = (out as f64 / inner.max(1) as f64).sqrt() as usize;
            if !(1..=8).contains(&factor) || factor * factor * inner != out {
                let expected = format!("a square of 1 to 8 times {inner} channels are needed");
                return Err(w.misshapen(&name, w.shape(&name)?, expected));
            }
            Ok(factor)
        };
        if !w.has("conv_last.weight") {
            let scale = factor("upsample.0", 3)?;
            return Ok((Self::Direct(Conv::load(w, "upsample.0")?), scale));
        }
        let mut steps = Vec::new();
        // Between two convolutions stands a shuffle without weights; x8 has three.
        for n in (0..=4).step_by(2).map(|n| format!("upsample.{n}")) {
            if w.has(&format!("{n}.weight")) {
                let [_, inner, _, _] = w.dims(&format!("{n}.weight"))?;
                steps.push((Conv::load(w, &n)?, factor(&n, inner)?));
            }
        }
        let scale = steps.iter().map(|(_, factor)| factor).product();
        let up = Self::Shuffles {
            before: Conv::load(w, "conv_before_upsample.0")?,
            steps,
            last: Conv::load(w, "conv_last")?,
        };
        Ok((up, scale))
    }

    fn forward(&self, x: &Tensor, scale: usize) -> Result<Tensor> {
        match self {
            Self::Direct(conv) => pixel_shuffle(&conv.forward(x)?, scale),
            Self::Shuffles { before, steps, last } => {
                let mut y = before.forward_act(x, Act::Leaky(0.01))?;
                for (conv, factor) in steps {
                    y = pixel_shuffle(&conv.forward(&y)?, *factor)?;
                }
                last.forward(&y)
            }
        }
    }
}

impl Residual {
    fn load(w: &Weights, name: &str) -> Result<Self> {
        if w.has(&format!("{name}.weight")) {
            return Ok(Self(vec![Conv::load(w, name)?]));
        }
        let convs = [0, 2, 4].map(|n| Conv::load(w, &format!("{name}.{n}")));
        Ok(Self(convs.into_iter().collect::<Result<_>>()?))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut y = x.clone();
        for (n, conv) in self.0.iter().enumerate() {
            let act = if n + 1 < self.0.len() {
                Act::Leaky(0.2)
            } else {
                Act::None
            };
            y = conv.forward_act(&y, act)?;
        }
        Ok(y)
    }
}

impl Group {
    fn load(w: &Weights, group_idx: usize) -> Result<Self> {
        let blocks = (0..w.count("blocks"))
            .map(|n| {
                // Every second spatial block is shifted: the second, fourth, … of even groups, the first, third, … of odd.
                let shifted = n % 4 == if group_idx.is_multiple_of(2) { 2 } else { 0 };
                Block::load(&w.at(format!("blocks.{n}")), shifted)
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            blocks,
            end: Residual::load(w, "conv")?,
        })
    }

    fn forward(&self, x: &Tensor, height: usize, width: usize, step: &mut Step<'_>) -> Result<Tensor> {
        let mut y = x.clone();
        for block in &self.blocks {
            y = block.forward(&y, height, width)?;
            step()?;
        }
        let y = tokens(&self.end.forward(&planes(&y, height, width)?)?)?;
        Ok((x + y)?)
    }
}

impl Block {
    fn load(w: &Weights, shifted: bool) -> Result<Self> {
        let a = w.at("attn");
        let [width, _] = a.dims("proj.weight")?;
        a.get_shaped("qkv.weight", &[3 * width, width])?;
        let seen = if a.has("temperature") {
            let [n, _, _] = a.dims("temperature")?;
            heads(Some(n), width)?;
            Seen::Channels(a.get("temperature")?)
        } else {
            let windows = |n: usize| Windows::load(&a.at(format!("attns.{n}")), width / 2, shifted);
            Seen::Places([windows(0)?, windows(1)?])
        };
        Ok(Self {
            norm1: LayerNorm::load(w, "norm1", EPS)?,
            qkv: Linear::load(&a, "qkv")?,
            seen,
            depthwise: Conv::load_with_norm(&a, "dwconv.0", "dwconv.1")?.groups(width),
            channel_gate: [
                Conv::load_with_norm(&a, "channel_interaction.1", "channel_interaction.2")?,
                Conv::load(&a, "channel_interaction.4")?,
            ],
            place_gate: [
                Conv::load_with_norm(&a, "spatial_interaction.0", "spatial_interaction.1")?,
                Conv::load(&a, "spatial_interaction.3")?,
            ],
            out: Linear::load(&a, "proj")?,
            norm2: LayerNorm::load(w, "norm2", EPS)?,
            ffn: GatedMlp::load(&w.at("ffn"))?,
        })
    }

    fn forward(&self, x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        let x = (x + self.aggregate(&self.norm1.forward(x)?, height, width)?)?;
        let inner = self.ffn.forward(&self.norm2.forward(&x)?, height, width)?;
        Ok((x + inner)?)
    }

    /// Attention beside a depthwise convolution of the values; each gates the other.
    fn aggregate(&self, x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?; // (1, h w, 3 c)
        let c = qkv.dim(D::Minus1)? / 3;
        let values = planes(&qkv.narrow(2, 2 * c, c)?, height, width)?;
        let local = self.depthwise.forward_act(&values, Act::Gelu)?; // (1, c, h, w)
        let (attended, local) = match &self.seen {
            Seen::Places(windows) => {
                let halves = [0, 1].map(|n| windows[n].attend(&qkv, n * (c / 2), height, width));
                let [first, second] = halves;
                let attended = planes(&Tensor::cat(&[first?, second?], 2)?, height, width)?;
                (
                    attended.broadcast_mul(&self.of_channels(&local)?)?,
                    local.broadcast_mul(&self.of_places(&attended)?)?,
                )
            }
            Seen::Channels(temperature) => {
                let attended = attend_channels(&qkv, temperature, height, width)?;
                (
                    attended.broadcast_mul(&self.of_places(&local)?)?,
                    local.broadcast_mul(&self.of_channels(&attended)?)?,
                )
            }
        };
        self.out.forward(&tokens(&(attended + local)?)?)
    }

    /// (1, c, h, w) to a share per channel, (1, c, 1, 1).
    fn of_channels(&self, x: &Tensor) -> Result<Tensor> {
        let mean = x.mean_keepdim(3)?.mean_keepdim(2)?;
        let [inner, outer] = &self.channel_gate;
        sigmoid(&outer.forward(&inner.forward_act(&mean, Act::Gelu)?)?)
    }

    /// (1, c, h, w) to a share per place, (1, 1, h, w).
    fn of_places(&self, x: &Tensor) -> Result<Tensor> {
        let [inner, outer] = &self.place_gate;
        sigmoid(&outer.forward(&inner.forward_act(x, Act::Gelu)?)?)
    }
}

/// Every channel looks at the channels of its head: (1, h w, 3 c) to (1, c, h, w).
fn attend_channels(qkv: &Tensor, temperature: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, n, c3) = qkv.dims3()?;
    let (heads, c) = (temperature.dim(0)?, c3 / 3);
    let all = qkv.squeeze(0)?.t()?.contiguous()?.reshape((3, heads, c / heads, n))?;
    let unit = |x: &Tensor| -> Result<Tensor> {
        let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(1e-12)?;
        Ok(x.broadcast_div(&length)?)
    };
    let (q, k) = (unit(&all.get(0)?)?, unit(&all.get(1)?)?);
    let scores = q.matmul(&k.t()?)?.broadcast_mul(temperature)?; // (heads, c / heads, c / heads)
    Ok(softmax(&scores)?.matmul(&all.get(2)?)?.reshape((1, c, height, width))?)
}

impl GatedMlp {
    fn load(w: &Weights) -> Result<Self> {
        let gate = Conv::load(w, "sg.conv")?;
        let channels = gate.out_channels();
        Ok(Self {
            up: Linear::load(w, "fc1")?,
            norm: LayerNorm::load(w, "sg.norm", EPS)?,
            gate: gate.groups(channels),
            down: Linear::load(w, "fc2")?,
        })
    }

    fn forward(&self, x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        let inner = self.up.forward_act(x, Act::Gelu)?;
        let half = inner.dim(D::Minus1)? / 2;
        let gate = self.norm.forward(&inner.narrow(2, half, half)?.contiguous()?)?;
        let gate = tokens(&self.gate.forward(&planes(&gate, height, width)?)?)?;
        self.down.forward(&(inner.narrow(2, 0, half)? * gate)?)
    }
}

/// (1, h w, c) to (1, c, h, w).
fn planes(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (b, _, c) = x.dims3()?;
    Ok(x.transpose(1, 2)?.contiguous()?.reshape((b, c, height, width))?)
}

/// (1, c, h, w) to (1, h w, c).
fn tokens(x: &Tensor) -> Result<Tensor> {
    Ok(x.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
}

impl Network for Dat {
    fn scale(&self) -> usize {
        self.scale
    }

    fn grid(&self) -> usize {
        let blocks = self.groups.iter().flat_map(|group| &group.blocks);
        let sides = blocks.filter_map(|block| match &block.seen {
            Seen::Places(windows) => windows.iter().map(Windows::longest).max(),
            Seen::Channels(_) => None,
        });
        sides.max().unwrap_or(1)
    }

    fn floats_per_pixel(&self) -> usize {
        // A block holds queries, keys, values, their windows and the results; the end holds two enlarged maps of 64.
        let blocks = 20 * self.first.out_channels();
        let end = match &self.up {
            Up::Direct(conv) => 2 * conv.out_channels(),
            Up::Shuffles { before, .. } => 3 * before.out_channels() * self.scale * self.scale,
        };
        blocks.max(end)
    }

    fn steps(&self) -> usize {
        self.groups.iter().map(|group| group.blocks.len()).sum::<usize>() + 1
    }

    fn forward(&self, x: &Tensor, step: &mut Step<'_>) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let mean = Tensor::new(&MEAN, x.device())?.reshape((1, 3, 1, 1))?;
        let first = self.first.forward(&x.broadcast_sub(&mean)?)?;
        let mut y = self.before.forward(&tokens(&first)?)?;
        for group in &self.groups {
            y = group.forward(&y, height, width, step)?;
        }
        let y = planes(&self.norm.forward(&y)?, height, width)?;
        let y = (self.after_body.forward(&y)? + first)?;
        Ok(self.up.forward(&y, self.scale)?.broadcast_add(&mean)?)
    }
}
