//! Background removal: a network tells what stands in front, matting makes the edge soft.

mod matting;
mod u2net;

use candle_core::Tensor;
use imaging::{Filter, Mask, Picture};

use crate::error::{Result, VisionError};
use crate::weights::Weights;
pub use matting::{MattingSettings, cut_out, cut_out_plain};

/// A loaded background remover (U²-Net, U²-NetP or ISNet).
pub struct BackgroundRemover {
    network: u2net::U2net,
    device: candle_core::Device,
}

impl BackgroundRemover {
    /// Finds the member of the family by the keys and reads it.
    pub fn load(w: &Weights) -> Result<Self> {
        if !u2net::fits(w) {
            return Err(w.unknown("background remover"));
        }
        Ok(Self {
            network: u2net::U2net::load(w)?,
            device: w.device().clone(),
        })
    }

    /// How much each pixel belongs to the thing in front: 255 wholly, 0 not at all, at the picture's size.
    pub fn mask(&self, picture: &Picture) -> Result<Mask> {
        let (side, raw) = self.forward(picture)?;
        let (least, most) = raw
            .iter()
            .fold((f32::MAX, f32::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
        if raw.iter().any(|v| !v.is_finite()) {
            return Err(VisionError::Misfit(
                "the background remover gave values that are no numbers".into(),
            ));
        }
        let range = (most - least).max(f32::MIN_POSITIVE);
        let bytes = raw.iter().map(|v| ((v - least) / range * 255.0) as u8).collect();
        Ok(Mask::new(side, side, bytes)?.resized(picture.width(), picture.height(), Filter::Lanczos))
    }

    /// The picture with its background made transparent, colours at the edge freed from it.
    pub fn cut_out(&self, picture: &Picture, settings: &MattingSettings) -> Result<Picture> {
        cut_out(picture, &self.mask(picture)?, settings)
    }

    /// The network's own square map and its side.
    pub fn forward(&self, picture: &Picture) -> Result<(u32, Vec<f32>)> {
        // Preparations as in rembg: ISNet works at 1024 with plain centring, the others at 320 with ImageNet's colours.
        let (side, mean, std) = if self.network.is_isnet() {
            (1024, [0.5; 3], [1.0; 3])
        } else {
            (320, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        };
        let square = picture.to_rgb().resized(side, side, Filter::Lanczos);
        let brightest = f32::from(square.data().iter().copied().max().unwrap_or(0)).max(1e-6);
        let mut planar = square.to_planar();
        planar.data_mut().iter_mut().for_each(|v| *v *= 255.0 / brightest);
        let planar = planar.normalised(&mean, &std);
        let x = Tensor::from_vec(planar.into_data(), (1, 3, side as usize, side as usize), &self.device)?;
        Ok((side, self.network.forward(&x)?.flatten_all()?.to_vec1::<f32>()?))
    }
}
