//! DAT's attention within windows of places, shifted in every second block, with biases by relative place.

use candle_core::{D, Device, Tensor};

use super::EPS;
use crate::error::Result;
use crate::layers::{Act, LayerNorm, Linear, attention};
use crate::transformer::heads;
use crate::weights::Weights;

/// Windows of one shape, for half of a block's channels.
pub(super) struct Windows {
    height: usize,
    width: usize,
    heads: usize,
    shifted: bool,
    /// What is added to the scores, (1, heads, n, n) each: inside, in the last column, in the last row, in both.
    masks: Vec<Tensor>,
}

/// Longest side of a window that is believed; published models have at most 32.
const MAX_WINDOW: usize = 64;
/// Most numbers in the masks of one attention, which a file of a few bytes could ask for; published models need 800 thousand.
const MAX_MASK: usize = 16 << 20;
/// Added to scores between places that the shift brought together.
const APART: f32 = -100.0;

impl Windows {
    /// Keys `pos.*` and `rpe_biases`, for attention over `channels`.
    pub(super) fn load(w: &Weights, channels: usize, shifted: bool) -> Result<Self> {
        let [n_heads, _] = w.dims("pos.pos3.2.weight")?;
        heads(Some(n_heads), channels)?;
        // The last pair of relative places is the window less one.
        let [n, _] = w.dims("rpe_biases")?;
        let places = w.get("rpe_biases")?;
        let rows: Vec<Vec<f32>> = places.to_vec2()?;
        let side = |axis: usize| {
            let last = rows.last().and_then(|row| row.get(axis)).copied().unwrap_or(0.0);
            (last + 1.0) as usize
        };
        let (height, width) = (side(0), side(1));
        let sane = |n: usize| (1..=MAX_WINDOW).contains(&n);
        if !sane(height) || !sane(width) || n != (2 * height - 1) * (2 * width - 1) {
            let expected = format!("every relative place of a window of at most {MAX_WINDOW} a side is needed");
            return Err(w.misshapen("rpe_biases", w.shape("rpe_biases")?, expected));
        }
        let n_masks = if shifted { 4 } else { 1 };
        if n_masks * n_heads * (height * width).pow(2) > MAX_MASK {
            let expected = format!("{n_heads} heads over windows of {height}x{width} are too many");
            return Err(w.misshapen("rpe_biases", w.shape("rpe_biases")?, expected));
        }
        let biases = position_biases(&w.at("pos"), &places)?; // (n, heads)
        let masks = masks(&biases, (height, width), shifted, w.device())?;
        Ok(Self {
            height,
            width,
            heads: n_heads,
            shifted,
            masks,
        })
    }

    /// The longer side in places.
    pub(super) fn longest(&self) -> usize {
        self.height.max(self.width)
    }

    /// Attention within windows over the channels from `first` on, (1, h w, 3 c) to (1, h w, c / 2). Windows that reach
    /// beyond the picture see zeros there. One row of windows at a time, so that few scores exist at once.
    pub(super) fn attend(&self, qkv: &Tensor, first: usize, height: usize, width: usize) -> Result<Tensor> {
        let c = qkv.dim(D::Minus1)? / 3;
        let half = c / 2;
        // The reference pads to the longer side of a window in both directions.
        let longest = self.longest();
        let (tall, wide) = (height.next_multiple_of(longest), width.next_multiple_of(longest));
        let (down, right) = if self.shifted {
            (self.height as i32 / 2, self.width as i32 / 2)
        } else {
            (0, 0)
        };
        let part = |n: usize| -> Result<Tensor> {
            let x = qkv.narrow(2, n * c + first, half)?.reshape((height, width, half))?;
            let x = x
                .pad_with_zeros(0, 0, tall - height)?
                .pad_with_zeros(1, 0, wide - width)?;
            Ok(x.roll(-down, 0)?.roll(-right, 1)?)
        };
        let parts = [part(0)?, part(1)?, part(2)?];
        let (n_rows, n_columns) = (tall / self.height, wide / self.width);
        let mut rows = Vec::with_capacity(n_rows);
        for row in 0..n_rows {
            // (height, wide, c / 2) to (columns, height width, c / 2)
            let cut = |x: &Tensor| -> Result<Tensor> {
                Ok(x.narrow(0, row * self.height, self.height)?
                    .reshape((self.height, n_columns, self.width, half))?
                    .transpose(0, 1)?
                    .contiguous()?
                    .reshape((n_columns, self.height * self.width, half))?)
            };
            let [q, k, v] = [cut(&parts[0])?, cut(&parts[1])?, cut(&parts[2])?];
            let run = |from: usize, n: usize, mask: &Tensor| {
                let of = |x: &Tensor| x.narrow(0, from, n);
                attention(&of(&q)?, &of(&k)?, &of(&v)?, self.heads, Some(mask))
            };
            let last_row = row + 1 == n_rows;
            let joined = match self.masks.as_slice() {
                [inside, right, bottom, corner] => {
                    let (inside, last) = if last_row { (bottom, corner) } else { (inside, right) };
                    let end = run(n_columns - 1, 1, last)?;
                    if n_columns == 1 {
                        end
                    } else {
                        Tensor::cat(&[run(0, n_columns - 1, inside)?, end], 0)?
                    }
                }
                masks => run(0, n_columns, &masks[0])?,
            };
            rows.push(
                joined
                    .reshape((n_columns, self.height, self.width, half))?
                    .transpose(0, 1)?
                    .contiguous()?
                    .reshape((self.height, wide, half))?,
            );
        }
        let whole = Tensor::cat(&rows, 0)?.roll(down, 0)?.roll(right, 1)?;
        let cut = whole.narrow(0, 0, height)?.narrow(1, 0, width)?.contiguous()?;
        Ok(cut.reshape((1, height * width, half))?)
    }
}

/// A bias per relative place and head, by a small perceptron: (n, 2) to (n, heads).
fn position_biases(w: &Weights, places: &Tensor) -> Result<Tensor> {
    let mut x = Linear::load(w, "pos_proj")?.forward(places)?;
    for part in ["pos1", "pos2", "pos3"].map(|name| w.at(name)) {
        x = Act::Relu.run(&LayerNorm::load(&part, "0", EPS)?.forward(&x)?)?;
        x = Linear::load(&part, "2")?.forward(&x)?;
    }
    Ok(x)
}

/// What is added to the scores of a window: one mask, or four where the picture was shifted (see [`Windows::masks`]).
fn masks(biases: &Tensor, window: (usize, usize), shifted: bool, device: &Device) -> Result<Vec<Tensor>> {
    let (height, width) = window;
    let heads: Vec<Vec<f32>> = biases.t()?.contiguous()?.to_vec2()?;
    let n = height * width;
    let kinds: &[(bool, bool)] = if shifted {
        &[(false, false), (false, true), (true, false), (true, true)]
    } else {
        &[(false, false)]
    };
    kinds
        .iter()
        .map(|(last_row, last_column)| {
            let mut values = Vec::with_capacity(heads.len() * n * n);
            for biases in &heads {
                for (at, other) in (0..n * n).map(|i| (i / n, i % n)) {
                    let ((y, x), (other_y, other_x)) = ((at / width, at % width), (other / width, other % width));
                    let place = (y + height - 1 - other_y) * (2 * width - 1) + x + width - 1 - other_x;
                    let over = |a: usize, b: usize, len: usize| (a < len - len / 2) != (b < len - len / 2);
                    let apart = *last_row && over(y, other_y, height) || *last_column && over(x, other_x, width);
                    values.push(biases[place] + if apart { APART } else { 0.0 });
                }
            }
            Ok(Tensor::from_vec(values, (1, heads.len(), n, n), device)?)
        })
        .collect()
}
