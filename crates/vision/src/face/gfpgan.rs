//! GFPGAN (clean architecture, v1.3 and v1.4): a U-Net that steers a StyleGAN2 generator.
//!
//! Structure: Wang et al. 2021 (arXiv 2101.04061). Sizes are told by the file. Noise is the file's own, so that the same
//! face gives the same picture.

use candle_core::{D, Tensor};

use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv, Linear, resize_bilinear};
use crate::weights::Weights;

pub(crate) struct Gfpgan {
    first: Conv,
    down: Vec<Residual>,
    last: Conv,
    up: Vec<Residual>,
    style: Linear,
    scale: Vec<[Conv; 2]>,
    shift: Vec<[Conv; 2]>,
    constant: Tensor,
    style_conv1: StyleConv,
    to_rgb1: ToRgb,
    style_convs: Vec<[StyleConv; 2]>,
    to_rgbs: Vec<ToRgb>,
    n_style: usize,
}

struct Residual {
    conv1: Conv,
    conv2: Conv,
    skip: Conv,
}

/// Convolution whose weights are scaled by a style.
struct Modulated {
    weight: Tensor,
    modulation: Linear,
    demodulate: bool,
}

struct StyleConv {
    conv: Modulated,
    noise: Option<Tensor>,
    bias: Tensor,
    enlarge: bool,
}

struct ToRgb {
    conv: Modulated,
    bias: Tensor,
}

const SLOPE: Act = Act::Leaky(0.2);

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    w.has("stylegan_decoder.style_conv1.modulated_conv.weight") && w.has("conv_body_first.weight")
}

impl Gfpgan {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        let n_levels = w.count("conv_body_down");
        let residual = |name: String| -> Result<Residual> {
            let w = w.at(name);
            Ok(Residual {
                conv1: Conv::load(&w, "conv1")?,
                conv2: Conv::load(&w, "conv2")?,
                skip: Conv::load(&w, "skip")?,
            })
        };
        let pair = |name: String| -> Result<[Conv; 2]> {
            let w = w.at(name);
            Ok([Conv::load(&w, "0")?, Conv::load(&w, "2")?])
        };
        let each = 0..n_levels;
        let decoder = w.at("stylegan_decoder");
        let noise = |n: usize| -> Result<Option<Tensor>> {
            let key = format!("noises.noise{n}");
            if decoder.has(&key) {
                decoder.get(&key).map(Some)
            } else {
                Ok(None)
            }
        };
        let [_, n_style] = decoder.dims("style_conv1.modulated_conv.modulation.weight")?;
        let net = Self {
            first: Conv::load(w, "conv_body_first")?,
            down: each
                .clone()
                .map(|n| residual(format!("conv_body_down.{n}")))
                .collect::<Result<_>>()?,
            last: Conv::load(w, "final_conv")?,
            up: each
                .clone()
                .map(|n| residual(format!("conv_body_up.{n}")))
                .collect::<Result<_>>()?,
            style: Linear::load(w, "final_linear")?,
            scale: each
                .clone()
                .map(|n| pair(format!("condition_scale.{n}")))
                .collect::<Result<_>>()?,
            shift: each
                .clone()
                .map(|n| pair(format!("condition_shift.{n}")))
                .collect::<Result<_>>()?,
            constant: decoder.get("constant_input.weight")?,
            style_conv1: StyleConv::load(&decoder.at("style_conv1"), noise(0)?, false)?,
            to_rgb1: ToRgb::load(&decoder.at("to_rgb1"))?,
            style_convs: each
                .clone()
                .map(|n| {
                    let conv = |i: usize| decoder.at(format!("style_convs.{i}"));
                    Ok([
                        StyleConv::load(&conv(2 * n), noise(2 * n + 1)?, true)?,
                        StyleConv::load(&conv(2 * n + 1), noise(2 * n + 2)?, false)?,
                    ])
                })
                .collect::<Result<_>>()?,
            to_rgbs: each
                .map(|n| ToRgb::load(&decoder.at(format!("to_rgbs.{n}"))))
                .collect::<Result<_>>()?,
            n_style,
        };
        // One style per layer: two for the first level, two more for each further one.
        let [n_out, _] = w.dims("final_linear.weight")?;
        let wanted = (2 * (n_levels + 2) - 2) * n_style;
        if n_out != wanted {
            let shape = w.shape("final_linear.weight")?;
            return Err(w.misshapen(
                "final_linear.weight",
                shape,
                format!("{wanted} rows are needed (v1.3 or v1.4)"),
            ));
        }
        Ok(net)
    }

    /// Side of the square faces it takes.
    pub(crate) fn side(&self) -> usize {
        let times = u32::try_from(self.down.len()).ok().and_then(|n| 1usize.checked_shl(n));
        4usize.saturating_mul(times.unwrap_or(usize::MAX))
    }

    /// (1, 3, side, side) RGB in -1..=1 to the same.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, _, h, w) = x.dims4()?;
        if (b, h, w) != (1, self.side(), self.side()) {
            let side = self.side();
            return Err(VisionError::Input(format!(
                "GFPGAN takes one face of {side}x{side}, not {b} of {w}x{h}"
            )));
        }
        let mut feature = self.first.forward_act(x, SLOPE)?;
        let mut skips = Vec::new();
        for block in &self.down {
            feature = block.forward(&feature, |n| n / 2)?;
            skips.push(feature.clone());
        }
        feature = self.last.forward_act(&feature, SLOPE)?;
        let styles = self
            .style
            .forward(&feature.flatten_from(1)?)?
            .reshape(((), self.n_style))?;
        let style = |n: usize| styles.narrow(0, n, 1);

        let mut conditions = Vec::new();
        for (n, block) in self.up.iter().enumerate() {
            if let Some(skip) = skips.pop() {
                feature = (feature + skip)?;
            }
            feature = block.forward(&feature, |n| n * 2)?;
            let run = |pair: &[Conv; 2]| pair[1].forward(&pair[0].forward_act(&feature, SLOPE)?);
            conditions.push((run(&self.scale[n])?, run(&self.shift[n])?));
        }

        let mut out = self.style_conv1.forward(&self.constant, &style(0)?)?;
        let mut rgb = self.to_rgb1.forward(&out, &style(1)?, None)?;
        for (n, ([conv1, conv2], (scale, shift))) in self.style_convs.iter().zip(&conditions).enumerate() {
            let first = 2 * n + 1;
            out = conv1.forward(&out, &style(first)?)?;
            // The condition steers the last channels: all of them, or half.
            let (channels, steered) = (out.dim(1)?, scale.dim(1)?);
            let free = channels.checked_sub(steered).ok_or_else(|| {
                VisionError::Misfit(format!("a condition of {steered} channels does not fit {channels}"))
            })?;
            let kept = out.narrow(1, 0, free)?;
            let changed = ((out.narrow(1, free, steered)? * scale)? + shift)?;
            out = Tensor::cat(&[&kept, &changed], 1)?;
            out = conv2.forward(&out, &style(first + 1)?)?;
            rgb = self.to_rgbs[n].forward(&out, &style(first + 2)?, Some(&rgb))?;
        }
        Ok(rgb)
    }
}

impl Residual {
    fn forward(&self, x: &Tensor, resize: impl Fn(usize) -> usize) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let resized = |x: &Tensor| resize_bilinear(x, resize(h), resize(w));
        let y = self.conv1.forward_act(x, SLOPE)?;
        let y = self.conv2.forward_act(&resized(&y)?, SLOPE)?;
        Ok((y + self.skip.forward(&resized(x)?)?)?)
    }
}

impl Modulated {
    fn load(w: &Weights, demodulate: bool) -> Result<Self> {
        Ok(Self {
            weight: w.get("weight")?.squeeze(0)?,
            modulation: Linear::load(w, "modulation")?,
            demodulate,
        })
    }

    fn forward(&self, x: &Tensor, style: &Tensor) -> Result<Tensor> {
        let style = self.modulation.forward(style)?.reshape((1, (), 1, 1))?;
        let mut weight = self.weight.broadcast_mul(&style)?; // (out, in, k, k)
        if self.demodulate {
            let energy = weight.flatten_from(1)?.sqr()?.sum_keepdim(D::Minus1)?; // (out, 1)
            let demodulation = (energy + 1e-8)?.sqrt()?.recip()?.reshape(((), 1, 1, 1))?;
            weight = weight.broadcast_mul(&demodulation)?;
        }
        Conv::from_parts(weight, None)?.forward(x)
    }
}

impl StyleConv {
    fn load(w: &Weights, noise: Option<Tensor>, enlarge: bool) -> Result<Self> {
        let noise = match noise {
            Some(noise) => Some(noise.broadcast_mul(&w.get("weight")?.reshape((1, 1, 1, 1))?)?),
            None => None,
        };
        Ok(Self {
            conv: Modulated::load(&w.at("modulated_conv"), true)?,
            noise,
            bias: w.get("bias")?,
            enlarge,
        })
    }

    fn forward(&self, x: &Tensor, style: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let x = if self.enlarge {
            resize_bilinear(x, 2 * h, 2 * w)?
        } else {
            x.clone()
        };
        let y = (self.conv.forward(&x, style)? * std::f64::consts::SQRT_2)?;
        let y = match &self.noise {
            Some(noise) => y.broadcast_add(noise)?,
            None => y,
        };
        SLOPE.run(&y.broadcast_add(&self.bias)?)
    }
}

impl ToRgb {
    fn load(w: &Weights) -> Result<Self> {
        Ok(Self {
            conv: Modulated::load(&w.at("modulated_conv"), false)?,
            bias: w.get("bias")?,
        })
    }

    fn forward(&self, x: &Tensor, style: &Tensor, below: Option<&Tensor>) -> Result<Tensor> {
        let y = self.conv.forward(x, style)?.broadcast_add(&self.bias)?;
        let Some(below) = below else { return Ok(y) };
        let (_, _, h, w) = y.dims4()?;
        Ok((y + resize_bilinear(below, h, w)?)?)
    }
}
