//! RRDBNet, the network of ESRGAN and Real-ESRGAN, in the three key layouts that exist.
//!
//! Structure: Wang et al. 2018 (ESRGAN), 2021 (Real-ESRGAN, which folds the picture with pixel-unshuffle for x2 and x1).

use candle_core::Tensor;
use tensor_ops::After;

use super::strips::{in_strips, strip_pixels};
use super::{Network, Step};
use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv, pixel_unshuffle, upsample_nearest};
use crate::weights::Weights;

const SLOPE: Act = Act::Leaky(0.2);
/// Most doublings that are looked for; published networks have at most three.
const MAX_UP: usize = 8;

/// Residual-in-residual dense blocks, then nearest-neighbour enlargement with convolutions.
pub(crate) struct Rrdb {
    first: Conv,
    blocks: Vec<[Dense; 3]>,
    trunk: Conv,
    up: Vec<Conv>,
    high_res: Conv,
    last: Conv,
    unshuffle: usize,
}

/// Five convolutions, each of which sees all that came before.
struct Dense([Conv; 5]);

/// How many rows up and down the enlargement looks: the last two convolutions two, and behind each enlargement one more of
/// half the size, which are two again.
const HALO: usize = 2;

/// Where a layout keeps its parts.
struct Layout {
    first: String,
    block: fn(usize, usize, usize) -> String,
    n_blocks: usize,
    trunk: String,
    up: Vec<String>,
    high_res: String,
    last: String,
}

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    [
        "body.0.rdb1.conv1.weight",
        "RRDB_trunk.0.RDB1.conv1.weight",
        "model.1.sub.0.RDB1.conv1.0.weight",
    ]
    .iter()
    .any(|key| w.has(key))
}

impl Layout {
    fn of(w: &Weights) -> Result<Self> {
        let has = |name: &str| w.has(&format!("{name}.weight"));
        if w.has("model.0.weight") {
            // The old layout is one `Sequential`: 0 first, 1 trunk, then (upsample, convolution, activation) per
            // doubling, convolution, activation, convolution.
            let last = w
                .at("model")
                .keys()
                .filter_map(|key| key.split('.').next()?.parse::<usize>().ok())
                .max();
            // A file may number its layers as it likes.
            let n_up = (last.unwrap_or(0).saturating_sub(4) / 3).min(MAX_UP);
            let n_blocks = w.count("model.1.sub").saturating_sub(1);
            return Ok(Self {
                first: "model.0".into(),
                block: |i, j, k| format!("model.1.sub.{i}.RDB{j}.conv{k}.0"),
                n_blocks,
                trunk: format!("model.1.sub.{n_blocks}"),
                up: (1..=n_up).map(|n| format!("model.{}", 3 * n)).collect(),
                high_res: format!("model.{}", 3 * n_up + 2),
                last: format!("model.{}", 3 * n_up + 4),
            });
        }
        let real = w.has("body.0.rdb1.conv1.weight");
        let up_name = if real { "conv_up" } else { "upconv" };
        Ok(Self {
            first: "conv_first".into(),
            block: if real {
                |i, j, k| format!("body.{i}.rdb{j}.conv{k}")
            } else {
                |i, j, k| format!("RRDB_trunk.{i}.RDB{j}.conv{k}")
            },
            n_blocks: w.count(if real { "body" } else { "RRDB_trunk" }),
            trunk: if real { "conv_body".into() } else { "trunk_conv".into() },
            up: (1..=MAX_UP)
                .map(|n| format!("{up_name}{n}"))
                .take_while(|n| has(n))
                .collect(),
            high_res: if real { "conv_hr".into() } else { "HRconv".into() },
            last: "conv_last".into(),
        })
    }
}

impl Rrdb {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        if w.keys().any(|k| k.contains("conv1x1")) {
            return Err(VisionError::Misfit(
                "ESRGAN+ (with 1x1 side branches) is not supported".into(),
            ));
        }
        let layout = Layout::of(w)?;
        let dense = |i: usize, j: usize| -> Result<Dense> {
            let conv = |k: usize| Conv::load(w, &(layout.block)(i, j, k));
            Ok(Dense([conv(1)?, conv(2)?, conv(3)?, conv(4)?, conv(5)?]))
        };
        let net = Self {
            first: Conv::load(w, &layout.first)?,
            blocks: (0..layout.n_blocks)
                .map(|i| Ok([dense(i, 1)?, dense(i, 2)?, dense(i, 3)?]))
                .collect::<Result<_>>()?,
            trunk: Conv::load(w, &layout.trunk)?,
            up: layout
                .up
                .iter()
                .map(|name| Conv::load(w, name))
                .collect::<Result<_>>()?,
            high_res: Conv::load(w, &layout.high_res)?,
            last: Conv::load(w, &layout.last)?,
            unshuffle: 1,
        };
        let channels = net.first.in_channels();
        let unshuffle = match channels {
            3 => 1,
            12 => 2,
            48 => 4,
            _ => {
                let key = format!("{}.weight", layout.first);
                return Err(w.misshapen(&key, w.shape(&key)?, "3, 12 or 48 input channels are needed"));
            }
        };
        if net.last.out_channels() != 3 || (1usize << net.up.len()) < unshuffle {
            let key = format!("{}.weight", layout.last);
            return Err(w.misshapen(
                &key,
                w.shape(&key)?,
                "three colours and at least the folded scale are needed",
            ));
        }
        Ok(Self { unshuffle, ..net })
    }
}

impl Dense {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [conv1, conv2, conv3, conv4, conv5] = &self.0;
        let x1 = conv1.forward_act(x, SLOPE)?;
        let x2 = conv2.forward_joined(&[x, &x1], SLOPE)?;
        let x3 = conv3.forward_joined(&[x, &x1, &x2], SLOPE)?;
        let x4 = conv4.forward_joined(&[x, &x1, &x2, &x3], SLOPE)?;
        let after = After {
            scaled_onto: Some((0.2, x)),
            ..After::default()
        };
        conv5.forward_after(&[x, &x1, &x2, &x3, &x4], &after)
    }
}

impl Rrdb {
    /// (b, features, h, w) to the colours.
    fn enlarged(&self, body: &Tensor) -> Result<Tensor> {
        let mut x = body.clone();
        for up in &self.up {
            x = up.forward_act(&upsample_nearest(&x, 2)?, SLOPE)?; // (b, features, 2 h, 2 w)
        }
        self.last.forward(&self.high_res.forward_act(&x, SLOPE)?)
    }
}

impl Network for Rrdb {
    fn scale(&self) -> usize {
        (1 << self.up.len()) / self.unshuffle
    }

    fn multiple(&self) -> usize {
        self.unshuffle
    }

    fn floats_per_pixel(&self) -> usize {
        // The last dense block's inputs side by side, on cards copied into one, at twice their size because a layer's
        // input and output live together.
        let features = self.first.out_channels();
        let growth = self.blocks.first().map_or(0, |b| b[0].0[0].out_channels());
        let dense = 2 * (features + 4 * growth) + 4 * features;
        // The colours of the result: as a tensor, as its strips, as planes and on the way between.
        let colours = 5 * 3 * self.scale() * self.scale();
        dense / (self.unshuffle * self.unshuffle) + colours
    }

    fn floats_beside(&self, width: usize, height: usize) -> usize {
        // Of a strip a layer's input and output and what comes of the former, enlarged.
        let enlarged = (3 * self.first.out_channels()) << (2 * self.up.len());
        let strip = strip_pixels(width.div_ceil(self.unshuffle), height.div_ceil(self.unshuffle), HALO);
        strip.saturating_mul(enlarged)
    }

    fn steps(&self) -> usize {
        self.blocks.len() + 1
    }

    fn forward(&self, x: &Tensor, step: &mut Step<'_>) -> Result<Tensor> {
        let x = if self.unshuffle > 1 {
            pixel_unshuffle(x, self.unshuffle)?
        } else {
            x.clone()
        };
        let first = self.first.forward(&x)?; // (b, features, h, w)
        let mut body = first.clone();
        for block in &self.blocks {
            let mut inner = body.clone();
            for dense in block {
                inner = dense.forward(&inner)?;
            }
            body = ((inner * 0.2)? + &body)?;
            step()?;
        }
        let body = (self.trunk.forward(&body)? + first)?;
        in_strips(&body, HALO, |strip| self.enlarged(strip))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;

    #[test]
    fn the_enlargement_in_strips_is_that_of_the_whole() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/alchemy/esrgan_x4.safetensors");
        let weights = Weights::open(&file, &Device::Cpu).unwrap();
        let mut net = Rrdb::load(&weights.unwrapped(&["net"])).unwrap();
        assert_eq!(net.up.len(), 2);
        for n_up in [2, 1, 0] {
            net.up.truncate(n_up);
            let features = net.first.out_channels();
            let body = Tensor::randn(0f32, 1.0, (1, features, 150, 128), &Device::Cpu).unwrap();
            let whole = net.enlarged(&body).unwrap();
            let cut = in_strips(&body, HALO, |strip| net.enlarged(strip)).unwrap();
            let apart = (&whole - cut).unwrap().abs().unwrap().flatten_all().unwrap();
            let apart = apart.max(0).unwrap().to_scalar::<f32>().unwrap();
            let size = whole.abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(apart <= 1e-3 * size, "{n_up} enlargements: {apart} of {size}");
            let blind = in_strips(&body, HALO - 1, |strip| net.enlarged(strip)).unwrap();
            let apart = (whole - blind).unwrap().abs().unwrap().flatten_all().unwrap();
            assert!(
                apart.max(0).unwrap().to_scalar::<f32>().unwrap() > 1e-2 * size,
                "{n_up}"
            );
        }
    }
}
