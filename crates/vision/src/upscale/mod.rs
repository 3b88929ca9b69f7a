//! Upscalers: one file per architecture, chosen by a checkpoint's keys, and the tiles that let them eat any picture.

mod dat;
mod plan;
mod plksr;
mod rrdb;
mod span;
mod srvgg;
mod strips;
mod tiles;

use candle_core::Tensor;
use imaging::{Picture, Planar, Rounding};

use crate::error::{Result, VisionError};
use crate::weights::Weights;
pub use plan::{MAX_RESULT_PIXELS, MAX_RESULT_SIDE, TilePlan, Tiling, fits_result};

/// Called between the steps of a network.
pub(crate) type Step<'a> = dyn FnMut() -> Result<()> + 'a;

/// What a super-resolution network does to (1, 3, h, w) RGB in 0..=1.
pub(crate) trait Network: Send + Sync {
    /// How many times larger the result is, at least 1.
    fn scale(&self) -> usize;

    /// Sides must be a multiple of this.
    fn multiple(&self) -> usize {
        1
    }

    /// Tiles begin at multiples of this, and their sides are multiples: what the network looks at together it finds together
    /// in every tile.
    fn grid(&self) -> usize {
        self.multiple()
    }

    /// Longest side of a tile in source pixels that is worth its memory on a processor: what tiles share is computed twice.
    fn tile(&self) -> usize {
        Tiling::default().tile
    }

    /// Estimate of the f32 values held at once per source pixel.
    fn floats_per_pixel(&self) -> usize;

    /// Estimate of those that a piece of so many source pixels needs beside them, out of step with its pixels.
    fn floats_beside(&self, _width: usize, _height: usize) -> usize {
        0
    }

    /// How many steps the work on one piece has, at least 1.
    fn steps(&self) -> usize;

    /// (1, 3, h, w) to (1, 3, h scale, w scale). `step` is called behind each step but the last, and its error ends the work.
    fn forward(&self, x: &Tensor, step: &mut Step<'_>) -> Result<Tensor>;
}

/// A loaded upscaler of whatever architecture.
pub struct Upscaler {
    network: Box<dyn Network>,
    architecture: &'static str,
    device: candle_core::Device,
}

impl Upscaler {
    /// Finds the architecture by the keys and reads it.
    pub fn load(weights: &Weights) -> Result<Self> {
        let w = &weights.unwrapped(&["params_ema", "params", "state_dict", "model_state_dict"]);
        let (network, architecture): (Box<dyn Network>, _) = if rrdb::fits(w) {
            (Box::new(rrdb::Rrdb::load(w)?), "RRDBNet")
        } else if dat::fits(w) {
            (Box::new(dat::Dat::load(w)?), "DAT")
        } else if plksr::fits(w) {
            (Box::new(plksr::RealPlksr::load(w)?), "RealPLKSR")
        } else if span::fits(w) {
            (Box::new(span::Span::load(w)?), "SPAN")
        } else if srvgg::fits(w) {
            (Box::new(srvgg::Srvgg::load(w)?), "SRVGGNetCompact")
        } else {
            return Err(w.unknown("upscaler"));
        };
        Ok(Self {
            network,
            architecture,
            device: w.device().clone(),
        })
    }

    /// Name of the architecture, for logs.
    pub fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// How many times larger the result is.
    pub fn scale(&self) -> usize {
        self.network.scale()
    }

    /// How to cut with the memory that is left now where this network lies.
    pub fn tiling(&self) -> Tiling {
        Tiling {
            tile: self.tile(),
            ..Tiling::within_free(&self.device)
        }
    }

    /// Longest side in source pixels of tiles that suit this network where it lies.
    pub fn tile(&self) -> usize {
        match &self.device {
            candle_core::Device::Cpu => self.network.tile(),
            _ => Tiling::default().tile,
        }
    }

    /// How a picture of this size would be cut and what that would hold at once, decided before anything is allocated.
    /// [`VisionError::TooLarge`] and [`VisionError::NoRoom`] refuse it.
    pub fn plan(&self, width: u32, height: u32, has_alpha: bool, tiling: Tiling) -> Result<TilePlan> {
        TilePlan::new(width, height, has_alpha, tiling, &*self.network)
    }

    /// Enlarges a picture tile by tile, refused before any work as by [`Self::plan`]. The network sees colours without
    /// alpha, as ComfyUI gives them to it, but those that nobody sees are replaced by their visible neighbours', so that
    /// they leave no rim; alpha is resampled beside. `progress(done, total)` is asked after each step of each tile whether to
    /// go on.
    pub fn upscale(
        &self,
        picture: &Picture,
        tiling: Tiling,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Picture> {
        let plan = self.plan(picture.width(), picture.height(), picture.has_alpha(), tiling)?;
        let alpha = picture.alpha();
        let source = match &alpha {
            Some(_) => picture.with_hidden_filled().to_planar(),
            None => picture.to_planar(),
        };
        let mut steps = Steps::new(plan.n_tiles(), &*self.network, progress);
        tiles::run(&plan, &source, alpha.as_ref(), &mut |tile| {
            self.stepwise(tile, &mut steps)
        })
    }

    /// The same without rounding: planes in, planes out, unclamped. The whole result is held as floats.
    pub fn upscale_planar(
        &self,
        source: &Planar,
        tiling: Tiling,
        progress: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Planar> {
        let plan = self.plan(source.width(), source.height(), false, tiling)?;
        let mut bands: Vec<Planar> = Vec::new();
        let mut steps = Steps::new(plan.n_tiles(), &*self.network, progress);
        let mut network = |tile: &Planar| self.stepwise(tile, &mut steps);
        tiles::run_bands(&plan, source, &mut network, &mut |band| {
            bands.push(band);
            Ok(())
        })?;
        if bands.len() == 1 {
            return Ok(bands.swap_remove(0));
        }
        let (width, height) = (
            source.width() * self.scale() as u32,
            source.height() * self.scale() as u32,
        );
        let planes: Vec<&[f32]> = (0..3)
            .flat_map(|c| bands.iter().filter_map(move |b| b.plane(c)))
            .collect();
        Ok(Planar::new(3, width, height, planes.concat())?)
    }

    /// The network on one piece, unclamped. Pieces that are no multiple of what the network needs are padded by
    /// mirroring and the result is cut.
    pub fn forward(&self, piece: &Planar) -> Result<Planar> {
        self.stepwise(piece, &mut Steps::new(1, &*self.network, &mut |_, _| true))
    }

    fn stepwise(&self, piece: &Planar, steps: &mut Steps<'_>) -> Result<Planar> {
        let (width, height) = (piece.width() as usize, piece.height() as usize);
        let multiple = self.network.multiple();
        let x = Tensor::from_slice(piece.data(), (1, piece.channels(), height, width), &self.device)?;
        let x = mirror_to_multiple(&mirror_to_multiple(&x, 2, multiple)?, 3, multiple)?;
        let y = self.network.forward(&x, &mut || steps.next())?;
        steps.next()?;
        let scale = self.scale();
        let y = y.narrow(2, 0, height * scale)?.narrow(3, 0, width * scale)?;
        let data = y.flatten_all()?.to_vec1::<f32>()?;
        if data.iter().any(|v| !v.is_finite()) {
            return Err(VisionError::Misfit(
                "the upscaler gave values that are no numbers".into(),
            ));
        }
        Ok(Planar::new(3, (width * scale) as u32, (height * scale) as u32, data)?)
    }
}

/// Counts the steps of all tiles.
struct Steps<'a> {
    done: usize,
    total: usize,
    progress: &'a mut dyn FnMut(usize, usize) -> bool,
}

impl<'a> Steps<'a> {
    fn new(n_tiles: usize, network: &dyn Network, progress: &'a mut dyn FnMut(usize, usize) -> bool) -> Self {
        let total = n_tiles.saturating_mul(network.steps());
        Self {
            done: 0,
            total,
            progress,
        }
    }

    /// One more is done; [`VisionError::Cancelled`] where it shall be the last.
    fn next(&mut self) -> Result<()> {
        self.done += 1;
        if (self.progress)(self.done, self.total) {
            Ok(())
        } else {
            Err(VisionError::Cancelled)
        }
    }
}

/// Pads the end of an axis to a multiple by mirroring without repeating the edge.
fn mirror_to_multiple(x: &Tensor, axis: usize, multiple: usize) -> Result<Tensor> {
    let len = x.dim(axis)?;
    let padded = len.next_multiple_of(multiple);
    if padded == len {
        return Ok(x.clone());
    }
    let index: Vec<u32> = (0..padded)
        .map(|i| if i < len { i } else { (2 * (len - 1)).saturating_sub(i).min(len - 1) } as u32)
        .collect();
    Ok(x.index_select(&Tensor::new(index, x.device())?, axis)?)
}

/// As the reference saves enlarged pictures: cut to 0..=1, then truncated to bytes.
pub(crate) const ROUNDING: Rounding = Rounding::Truncate;
