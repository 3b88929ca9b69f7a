//! Yahoo's open_nsfw: one probability, from a thin ResNet-50.
//!
//! Structure: Mahadeokar and Pesavento 2016 (BSD-2-Clause), as the TensorFlow port names its layers, batch norms folded.

use candle_core::{D, Tensor};
use imaging::{Filter, Picture};

use crate::error::{Result, VisionError};
use crate::layers::{Act, Conv, Linear, max_pool_ceil, softmax};
use crate::pixels::bgr_less_mean;
use crate::weights::Weights;

/// A loaded network.
pub struct OpenNsfw {
    stem: Conv,
    blocks: Vec<Block>,
    head: Linear,
    device: candle_core::Device,
}

struct Block {
    convs: [Conv; 3],
    shortcut: Option<Conv>,
}

impl OpenNsfw {
    /// Reads keys `conv_1`, `conv_stage{0..4}_block{n}_branch2{a,b,c}` or `…_proj_shortcut`, `fc_nsfw`.
    pub fn load(w: &Weights) -> Result<Self> {
        if !w.has("conv_1.weight") || !w.has("fc_nsfw.weight") {
            return Err(w.unknown("nsfw classifier"));
        }
        let mut blocks = Vec::new();
        for stage in 0..4 {
            for n in 0..64 {
                let name = format!("conv_stage{stage}_block{n}");
                if !w.has(&format!("{name}_branch2a.weight")) {
                    break;
                }
                let stride = if n == 0 && stage > 0 { 2 } else { 1 };
                let conv = |part: &str| Conv::load(w, &format!("{name}_{part}"));
                let shortcut = format!("{name}_proj_shortcut.weight");
                blocks.push(Block {
                    // As in Caffe's ResNet the stride is on the first 1×1 convolution.
                    convs: [conv("branch2a")?.stride(stride), conv("branch2b")?, conv("branch2c")?],
                    shortcut: if w.has(&shortcut) {
                        Some(conv("proj_shortcut")?.stride(stride))
                    } else {
                        None
                    },
                });
            }
        }
        Ok(Self {
            stem: Conv::load(w, "conv_1")?.stride(2),
            blocks,
            head: Linear::load(w, "fc_nsfw")?,
            device: w.device().clone(),
        })
    }

    /// Probability in 0..=1 that the picture is not safe for work.
    pub fn score(&self, picture: &Picture) -> Result<f32> {
        self.forward(&self.pixels(picture)?)
    }

    /// What the network looks at, (1, 3, 224, 224): the middle of the picture over white, shrunk.
    pub fn pixels(&self, picture: &Picture) -> Result<Tensor> {
        let side = 224;
        let square = picture.over([255; 3]).resized(256, 256, Filter::Bilinear);
        let crop = square
            .crop(16, 16, side, side)
            .ok_or_else(|| VisionError::Input("the picture could not be cropped".into()))?;
        let shape = (1, 3, side as usize, side as usize);
        Ok(Tensor::from_vec(bgr_less_mean(&crop), shape, &self.device)?)
    }

    /// (1, 3, 224, 224) blue, green, red minus the mean to the probability.
    pub fn forward(&self, x: &Tensor) -> Result<f32> {
        let mut x = max_pool_ceil(&self.stem.forward_act(x, Act::Relu)?, 3, 2)?;
        for block in &self.blocks {
            let y = block.convs[0].forward_act(&x, Act::Relu)?;
            let y = block.convs[1].forward_act(&y, Act::Relu)?;
            let shortcut = match &block.shortcut {
                Some(conv) => conv.forward(&x)?,
                None => x,
            };
            x = block.convs[2].forward_onto(&y, &shortcut, Act::Relu)?;
        }
        let pooled = x.mean(D::Minus1)?.mean(D::Minus1)?; // (1, 1024)
        let scores = softmax(&self.head.forward(&pooled)?)?.flatten_all()?.to_vec1::<f32>()?;
        scores
            .get(1)
            .copied()
            .filter(|s| s.is_finite())
            .ok_or_else(|| VisionError::Misfit("the nsfw network gave no number".into()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::made_up::case;

    #[test]
    fn a_thin_network_gives_the_published_graphs_scores() {
        let (mut tensors, stored) = case("nsfw/open_nsfw");
        let head = &tensors["fc_nsfw.weight"] / 16.0;
        tensors.insert("fc_nsfw.weight".into(), head.unwrap());
        let net = OpenNsfw::load(&Weights::from_tensors(tensors, &Device::Cpu)).unwrap();
        for (n, expected) in stored["y"].to_vec1::<f32>().unwrap().into_iter().enumerate() {
            let striped = (0..256 * 256).flat_map(|at| {
                let (x, y) = (at % 256, at / 256);
                [0, 1, 2].map(|c| ((x * (n + 1) + y * (2 * n + 1)) >> c) as u8)
            });
            let picture = Picture::from_rgb(256, 256, striped.collect()).unwrap();
            let score = net.score(&picture).unwrap();
            assert!(
                (score - expected).abs() <= 1e-5,
                "picture {n}: {score} and not {expected}"
            );
        }
    }
}
