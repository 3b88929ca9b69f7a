//! U²-Net, U²-NetP and ISNet: which pixels belong to the thing in front.
//!
//! Structure: Qin et al. 2020 (arXiv 2005.09007) and 2022 (arXiv 2203.03041). The three differ in width, in ISNet's
//! halving first convolution and in its missing fusion at the end; all of that is told by the file.

use candle_core::Tensor;

use crate::error::Result;
use crate::layers::{Act, Conv, max_pool_ceil, resize_bilinear, sigmoid};
use crate::weights::Weights;

/// One network of the family.
pub(crate) struct U2net {
    /// ISNet halves the picture first.
    halve: Option<Conv>,
    encoder: Vec<Block>,
    /// From the deepest (`stage5d`) to the outermost (`stage1d`).
    decoder: Vec<Block>,
    sides: Vec<Conv>,
    fuse: Option<Conv>,
}

/// Convolution, batch norm, ReLU.
struct Unit(Conv);

/// Residual U-block: a small U-Net (or a stack of dilations) around a residual.
struct Block {
    input: Unit,
    down: Vec<Unit>,
    up: Vec<Unit>,
    pooled: bool,
}

/// Recognises the keys.
pub(crate) fn fits(w: &Weights) -> bool {
    w.has("stage1.rebnconvin.conv_s1.weight")
}

impl U2net {
    pub(crate) fn load(w: &Weights) -> Result<Self> {
        let halve = if w.has("conv_in.weight") {
            Some(Conv::load(w, "conv_in")?.stride(2))
        } else {
            None
        };
        let encoder = (1..=6)
            .map(|n| Block::load(&w.at(format!("stage{n}")), n >= 5))
            .collect::<Result<_>>()?;
        let decoder = (1..=5)
            .rev()
            .map(|n| Block::load(&w.at(format!("stage{n}d")), n >= 5))
            .collect::<Result<_>>()?;
        let sides = (1..=6)
            .map(|n| Conv::load(w, &format!("side{n}")))
            .collect::<Result<_>>()?;
        let fuse = if w.has("outconv.weight") {
            Some(Conv::load(w, "outconv")?)
        } else {
            None
        };
        Ok(Self {
            halve,
            encoder,
            decoder,
            sides,
            fuse,
        })
    }

    /// Whether this is ISNet, which wants another preparation of the picture.
    pub(crate) fn is_isnet(&self) -> bool {
        self.halve.is_some()
    }

    /// (1, 3, h, w) normalised to (1, 1, h, w) in 0..=1.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = x.dims4()?;
        let mut hidden = match &self.halve {
            Some(conv) => conv.forward(x)?,
            None => x.clone(),
        };
        let mut skips = Vec::with_capacity(self.encoder.len());
        for (n, block) in self.encoder.iter().enumerate() {
            if n > 0 {
                hidden = max_pool_ceil(&hidden, 2, 2)?;
            }
            hidden = block.forward(&[&hidden])?;
            skips.push(hidden.clone());
        }
        // `deep[0]` is the deepest of the encoder, the rest come out of the decoder.
        let mut deep = vec![skips.pop().unwrap_or(hidden)];
        for block in &self.decoder {
            let Some(skip) = skips.pop() else { break };
            let (_, _, h, w) = skip.dims4()?;
            let below = resize_bilinear(&deep[deep.len() - 1], h, w)?;
            deep.push(block.forward(&[&below, &skip])?);
        }
        let side = |n: usize| -> Result<Tensor> { self.sides[n].forward(&deep[5 - n]) };
        let outermost = side(0)?;
        let Some(fuse) = &self.fuse else {
            return sigmoid(&resize_bilinear(&outermost, height, width)?);
        };
        let (_, _, h, w) = outermost.dims4()?;
        let mut maps = vec![outermost];
        for n in 1..6 {
            maps.push(resize_bilinear(&side(n)?, h, w)?);
        }
        sigmoid(&fuse.forward(&Tensor::cat(&maps, 1)?)?)
    }
}

impl Unit {
    fn load(w: &Weights, name: &str, dilation: usize) -> Result<Self> {
        let w = w.at(name);
        Ok(Self(Conv::load_with_norm(&w, "conv_s1", "bn_s1")?.dilation(dilation)))
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_joined(&[x])
    }

    fn forward_joined(&self, xs: &[&Tensor]) -> Result<Tensor> {
        self.0.forward_joined(xs, Act::Relu)
    }
}

impl Block {
    /// `flat` blocks (the deepest) keep their size and dilate by 1, 2, 4, 8 instead of pooling.
    fn load(w: &Weights, flat: bool) -> Result<Self> {
        let n_down = (1..16)
            .take_while(|n| w.has(&format!("rebnconv{n}.conv_s1.weight")))
            .count();
        let dilation = |n: usize| match (flat, n == n_down) {
            (true, _) => 1 << (n - 1),
            (false, true) => 2,
            (false, false) => 1,
        };
        Ok(Self {
            input: Unit::load(w, "rebnconvin", 1)?,
            down: (1..=n_down)
                .map(|n| Unit::load(w, &format!("rebnconv{n}"), dilation(n)))
                .collect::<Result<_>>()?,
            up: (1..n_down)
                .rev()
                .map(|n| Unit::load(w, &format!("rebnconv{n}d"), if flat { 1 << (n - 1) } else { 1 }))
                .collect::<Result<_>>()?,
            pooled: !flat,
        })
    }

    fn forward(&self, xs: &[&Tensor]) -> Result<Tensor> {
        let input = self.input.forward_joined(xs)?;
        let mut hidden = input.clone();
        let mut skips = Vec::with_capacity(self.down.len());
        for (n, unit) in self.down.iter().enumerate() {
            // The dilated last unit works at the size of the one before it.
            if self.pooled && n > 0 && n + 1 < self.down.len() {
                hidden = max_pool_ceil(&hidden, 2, 2)?;
            }
            hidden = unit.forward(&hidden)?;
            skips.push(hidden.clone());
        }
        skips.pop();
        for unit in &self.up {
            let Some(skip) = skips.pop() else { break };
            let (_, _, h, w) = skip.dims4()?;
            hidden = unit.forward_joined(&[&resize_bilinear(&hidden, h, w)?, &skip])?;
        }
        Ok((hidden + input)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::made_up::case;

    #[test]
    fn a_thin_isnet_gives_the_references_numbers() {
        let (tensors, stored) = case("u2net/isnet");
        let w = Weights::from_tensors(tensors, &Device::Cpu);
        assert!(fits(&w));
        let net = U2net::load(&w).unwrap();
        assert!(net.is_isnet());
        let apart = (net.forward(&stored["x"]).unwrap() - &stored["y"]).unwrap();
        let most = apart.abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        // The map's own spread is 0.07.
        assert!(most.to_scalar::<f32>().unwrap() <= 1e-5, "differs by {most}");
    }
}
