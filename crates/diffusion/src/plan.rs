//! How much memory a model and a request will need, told from the headers of the files before anything is loaded.
//!
//! Counted are the weights as they are held, and for each stage the tensors that live at once at its widest place. The
//! formulas follow the networks of this crate layer by layer; `tests/memory.rs` holds them against what is really taken.

use std::path::PathBuf;

use candle_core::Device;

use crate::{
    Result,
    model::{self, Family, ModelFiles, Overrides},
    nn::{clip::ROWS_AT_ONCE, vae_tiled::TILE_PIXELS},
    request::Request,
    tokens::{MAX_ROWS, ROW},
    weights::Weights,
};

/// What the CPU's convolutions and products keep to work on, whatever the size of the picture.
const WORKSPACE_BYTES: u64 = 16 << 20;

/// Bytes of memory of the device, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What the model is.
    pub family: Family,
    /// All weights, held from loading on.
    pub weights_bytes: u64,
    /// While the prompts are encoded.
    pub text_bytes: u64,
    /// While a source picture is encoded; 0 without one.
    pub encoding_bytes: u64,
    /// During a step.
    pub sampling_bytes: u64,
    /// While a picture is decoded.
    pub decoding_bytes: u64,
}

impl MemoryPlan {
    /// The most that is held at any time.
    pub fn peak_bytes(&self) -> u64 {
        let stages = [
            self.text_bytes,
            self.encoding_bytes,
            self.sampling_bytes,
            self.decoding_bytes,
        ];
        self.weights_bytes + stages.into_iter().max().unwrap_or(0)
    }
}

/// A model as the headers of its files tell it: enough to plan with, nothing of it read.
pub struct Outline {
    weights: Weights,
    family: Family,
}

impl Outline {
    /// Reads the headers of a model's files, with text encoders of their own in `encoders`.
    ///
    /// # Errors
    /// As for loading: a missing or damaged file, no U-Net in it.
    pub fn open(files: &ModelFiles, encoders: &[PathBuf]) -> Result<Self> {
        let weights = model::open(files, encoders, &mut Overrides::default())?;
        let family = model::family(&weights)?;
        Ok(Self { weights, family })
    }

    /// What the model is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// What `request` will need on the CPU or on a card, where pictures above `whole_pixels` are decoded in tiles
    /// ([`crate::pipeline::WHOLE_PIXELS`] unless told otherwise).
    pub fn plan(&self, request: &Request, on_cpu: bool, whole_pixels: u64) -> MemoryPlan {
        plan_for(&self.weights, self.family, request, on_cpu, whole_pixels)
    }
}

/// As [`Outline::open`] and [`Outline::plan`] together.
///
/// # Errors
/// As for [`Outline::open`].
pub fn plan(
    files: &ModelFiles,
    encoders: &[PathBuf],
    request: &Request,
    device: &Device,
    whole_pixels: u64,
) -> Result<MemoryPlan> {
    Ok(Outline::open(files, encoders)?.plan(request, device.is_cpu(), whole_pixels))
}

/// The plan for a model whose headers are read.
pub(crate) fn plan_for(
    weights: &Weights,
    family: Family,
    request: &Request,
    on_cpu: bool,
    whole_pixels: u64,
) -> MemoryPlan {
    let request = request.clone().clamped();
    let network_width = if on_cpu { 4 } else { 2 };
    let weights_bytes = [("unet.", network_width), ("clip_", network_width), ("vae.", 4)]
        .into_iter()
        .map(|(part, width)| count(weights, part) * width)
        .sum();
    let workspace = if on_cpu { WORKSPACE_BYTES } else { 0 };
    let first = match &request.hires {
        Some(hires) => (hires.first_width, hires.first_height),
        None => (request.width, request.height),
    };
    let batch = request.batch as u64;
    // The unguided half runs beside the guided one everywhere but on the CPU.
    let rows = if on_cpu { batch } else { 2 * batch };
    let prompt_rows = prompt_rows(&request.prompt);
    let network = Network(weights);
    // The context, repeated for each picture, with the keys and values made of it.
    let context = rows * prompt_rows * ROW as u64 * network.context_floats() * network_width;
    let sampling = |(width, height): (u32, u32)| {
        let size = (u64::from(height / 8), u64::from(width / 8));
        let latent = batch * 4 * size.0 * size.1 * 4;
        rows * network.floats(size) * network_width + context + 12 * latent + workspace
    };
    let whole = u64::from(request.width) * u64::from(request.height);
    let decoding = if whole > whole_pixels {
        // Before the tiles stands the tensor they are cut from, at a quarter of the picture's size, and they end in the picture.
        vae_floats(weights, "vae.decoder.", whole.min(TILE_PIXELS)) * 4
            + whole / 16 * widest(weights, "vae.decoder.") * 3 * 4
            + 2 * whole * 3 * 4
    } else {
        vae_floats(weights, "vae.decoder.", whole) * 4 + whole * 3 * 4
    };
    MemoryPlan {
        family,
        weights_bytes,
        text_bytes: text_floats(weights, prompt_rows) * network_width,
        encoding_bytes: match &request.source {
            Some(_) => vae_floats(weights, "vae.encoder.", u64::from(first.0) * u64::from(first.1)) * 4 + workspace,
            None => 0,
        },
        sampling_bytes: sampling(first).max(sampling((request.width, request.height))),
        decoding_bytes: decoding + workspace,
    }
}

/// Rows that a prompt may take at two bytes to a token, which no text of real words reaches.
fn prompt_rows(prompt: &str) -> u64 {
    (prompt.len() / (2 * (ROW - 2)) + 1).min(MAX_ROWS) as u64
}

/// Values of all weights below a prefix.
fn count(weights: &Weights, prefix: &str) -> u64 {
    weights
        .names_under(prefix)
        .filter_map(|name| weights.shape(&format!("{prefix}{name}")))
        .map(|shape| shape.iter().map(|dim| *dim as u64).product::<u64>())
        .sum()
}

fn dim(weights: &Weights, name: &str, at: usize) -> u64 {
    weights
        .shape(name)
        .and_then(|shape| shape.get(at).copied())
        .map_or(0, |dim| dim as u64)
}

/// A layer of a text encoder at the rows that go through it at once, with the row of the empty prompt: its states, its
/// four-fold inner ones, and the scores of its attention; and the states of all rows.
fn text_floats(weights: &Weights, prompt_rows: u64) -> u64 {
    let widths = ["clip_l", "clip_g", "clip_h"].map(|name| {
        dim(
            weights,
            &format!("{name}.text_model.embeddings.token_embedding.weight"),
            1,
        )
    });
    let width = widths.into_iter().max().unwrap_or(0);
    let row = ROW as u64;
    let at_once = (prompt_rows + 1).min(ROWS_AT_ONCE as u64);
    at_once * row * (width * 16 + row * (width / 64).max(1)) + 4 * prompt_rows * row * width
}

/// Channels of the widest tensor of the last two levels, which work at the largest sizes.
fn widest(weights: &Weights, side: &str) -> u64 {
    let levels = if side.contains("decoder") { "up" } else { "down" };
    (0..4)
        .flat_map(|level| (0..4).map(move |block| (level, block)))
        .map(|(level, block)| {
            dim(
                weights,
                &format!("{side}{levels}.{level}.block.{block}.conv1.weight"),
                1,
            )
        })
        .max()
        .unwrap_or(0)
}

/// What the autoencoder holds at its widest place for a picture of so many pixels.
fn vae_floats(weights: &Weights, side: &str, pixels: u64) -> u64 {
    let levels = if side.contains("decoder") { "up" } else { "down" };
    let mut most = 0;
    for level in 0..8u32 {
        let area = pixels >> (2 * level);
        for block in 0..4 {
            let name = format!("{side}{levels}.{level}.block.{block}.conv1.weight");
            let (out, input) = (dim(weights, &name, 0), dim(weights, &name, 1));
            // The input, its normed form, two results, and a padded copy that a convolution may work on.
            most = most.max(area * (2 * input + 3 * out));
        }
        let name = format!("{side}{levels}.{level}.upsample.conv.weight");
        // At twice the size: what was enlarged, its padded copy, and what comes of it.
        most = most.max((area << 2) * (dim(weights, &name, 0) + 2 * dim(weights, &name, 1)));
    }
    most
}

/// The U-Net, walked as it runs.
struct Network<'a>(&'a Weights);

impl Network<'_> {
    fn dim(&self, name: &str, at: usize) -> u64 {
        dim(self.0, &format!("unet.{name}"), at)
    }

    /// For each token of the prompt: its states, and the widest keys and values made of them.
    fn context_floats(&self) -> u64 {
        let names = || {
            self.0
                .names_under("unet.")
                .filter(|name| name.ends_with(".attn2.to_k.weight"))
        };
        let at = |place: usize| names().map(|name| self.dim(name, place)).max().unwrap_or(0);
        2 * at(1) + 2 * at(0)
    }

    /// What one sample of `size` latent pixels holds at its widest place: the skips so far and the layer at work.
    fn floats(&self, size: (u64, u64)) -> u64 {
        let (mut height, mut width) = size;
        let (mut skips, mut held, mut most) = (Vec::new(), 0, 0);
        for block in 0.. {
            let at = format!("input_blocks.{block}");
            let first = self.dim(&format!("{at}.0.weight"), 0);
            let down = self.dim(&format!("{at}.0.op.weight"), 0);
            let res = self.dim(&format!("{at}.0.out_layers.3.weight"), 0);
            if down > 0 {
                (height, width) = (height.div_ceil(2), width.div_ceil(2));
            }
            let channels = first.max(down).max(res);
            if channels == 0 {
                break;
            }
            let area = height * width;
            most = most.max(held + area * self.layers(&at));
            skips.push((channels, height, width));
            held += channels * area;
        }
        most = most.max(held + height * width * self.layers("middle_block"));
        for block in 0.. {
            let Some((channels, height, width)) = skips.pop() else {
                break;
            };
            let area = height * width;
            let at = format!("output_blocks.{block}");
            most = most.max(held + area * self.layers(&at));
            held -= channels * area;
            // An upsampler works at the size of the skip that follows.
            if let Some((_, height, width)) = skips.last() {
                let up = (0..4)
                    .map(|slot| self.dim(&format!("{at}.{slot}.conv.weight"), 0))
                    .max();
                most = most.max(held + 2 * up.unwrap_or(0) * height * width);
            }
        }
        most
    }

    /// Floats per pixel of the widest layer of a block.
    fn layers(&self, block: &str) -> u64 {
        (0..4)
            .map(|slot| {
                let at = format!("{block}.{slot}");
                let input = self.dim(&format!("{at}.in_layers.2.weight"), 1);
                let out = self.dim(&format!("{at}.in_layers.2.weight"), 0);
                let res = (3 * input).max(input + 3 * out);
                let width = self.dim(&format!("{at}.proj_in.weight"), 0);
                let inner = self.dim(&format!("{at}.transformer_blocks.0.ff.net.0.proj.weight"), 0);
                // The picture, its rows, their normed form; the doubled inner states and their gated half.
                let transformer = if width > 0 {
                    (3 * width + inner + inner / 2).max(7 * width)
                } else {
                    0
                };
                res.max(transformer)
            })
            .max()
            .unwrap_or(0)
    }
}
