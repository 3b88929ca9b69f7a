//! BLIP's text half: BERT as a decoder with cross-attention, one token at a time.

use candle_core::{D, Tensor};

use crate::error::{Result, VisionError};
use crate::layers::{Act, LayerNorm, Linear, attention};
use crate::transformer::heads;
use crate::weights::Weights;

pub(super) struct Decoder {
    words: Tensor,
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    transform: Linear,
    transform_norm: LayerNorm,
    head: Linear,
    heads: usize,
}

struct Layer {
    itself: Attention,
    across: Attention,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
}

struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm: LayerNorm,
}

/// What was computed for the tokens so far and for the picture, layer by layer.
pub(super) struct Memory {
    /// Keys and values of the picture, (1, patches, width).
    across: Vec<(Tensor, Tensor)>,
    /// Keys and values of the text so far, (rows, tokens, width).
    itself: Vec<Option<(Tensor, Tensor)>>,
    n_tokens: usize,
}

const EPS: f64 = 1e-12;

impl Decoder {
    pub(super) fn load(w: &Weights, told_heads: Option<usize>) -> Result<Self> {
        let bert = w.at("bert");
        let [_, width] = bert.dims("embeddings.word_embeddings.weight")?;
        let words = bert.get("embeddings.word_embeddings.weight")?;
        let [_, _] = bert.dims("embeddings.position_embeddings.weight")?;
        let layers = (0..bert.count("encoder.layer"))
            .map(|n| Layer::load(&bert.at(format!("encoder.layer.{n}"))))
            .collect::<Result<_>>()?;
        let predictions = w.at("cls.predictions");
        let bias = predictions.get(if predictions.has("decoder.bias") {
            "decoder.bias"
        } else {
            "bias"
        })?;
        // The head is tied to the word embeddings; a file may still carry it.
        let head = if predictions.has("decoder.weight") {
            predictions.get("decoder.weight")?
        } else {
            words.clone()
        };
        Ok(Self {
            positions: bert.get("embeddings.position_embeddings.weight")?,
            norm: LayerNorm::load(&bert, "embeddings.LayerNorm", EPS)?,
            layers,
            transform: Linear::load(&predictions, "transform.dense")?,
            transform_norm: LayerNorm::load(&predictions, "transform.LayerNorm", EPS)?,
            head: Linear::from_parts(head, Some(bias))?,
            heads: heads(told_heads, width)?,
            words,
        })
    }

    /// Longest text in tokens.
    pub(super) fn context_len(&self) -> usize {
        self.positions.dims()[0]
    }

    /// Number of words.
    pub(super) fn vocabulary_len(&self) -> usize {
        self.words.dims()[0]
    }

    /// A memory of the picture and of no text.
    pub(super) fn memory(&self, seen: &Tensor) -> Result<Memory> {
        let across = self
            .layers
            .iter()
            .map(|l| Ok((l.across.key.forward(seen)?, l.across.value.forward(seen)?)))
            .collect::<Result<_>>()?;
        Ok(Memory {
            across,
            itself: vec![None; self.layers.len()],
            n_tokens: 0,
        })
    }

    /// New tokens of each row (all rows alike in number) to the scores of the next one: (rows, vocabulary).
    pub(super) fn forward(&self, rows: &[Vec<u32>], memory: &mut Memory) -> Result<Tensor> {
        let (n_rows, n) = (rows.len(), rows.first().map_or(0, Vec::len));
        let past = memory.n_tokens;
        if n == 0 || past + n > self.context_len() {
            return Err(VisionError::Input(format!(
                "a caption of {} tokens is too long",
                past + n
            )));
        }
        let device = self.words.device();
        let ids = Tensor::new(rows.concat(), device)?;
        let x = self.words.index_select(&ids, 0)?.reshape((n_rows, n, ()))?;
        let mut x = self
            .norm
            .forward(&x.broadcast_add(&self.positions.narrow(0, past, n)?)?)?;
        let mask = if n > 1 {
            let all = past + n;
            let mask: Vec<f32> = (0..n * all)
                .map(|i| {
                    if i % all > past + i / all {
                        f32::NEG_INFINITY
                    } else {
                        0.0
                    }
                })
                .collect();
            Some(Tensor::from_vec(mask, (1, 1, n, all), device)?)
        } else {
            None
        };
        for (n_layer, layer) in self.layers.iter().enumerate() {
            let key = layer.itself.key.forward(&x)?;
            let value = layer.itself.value.forward(&x)?;
            let (key, value) = match &memory.itself[n_layer] {
                Some((k, v)) => (Tensor::cat(&[k, &key], 1)?, Tensor::cat(&[v, &value], 1)?),
                None => (key, value),
            };
            x = layer.itself.forward(&x, (&key, &value), self.heads, mask.as_ref())?;
            memory.itself[n_layer] = Some((key, value));
            let (key, value) = &memory.across[n_layer];
            let (_, patches, width) = key.dims3()?;
            let every = |t: &Tensor| t.broadcast_as((n_rows, patches, width))?.contiguous();
            x = layer
                .across
                .forward(&x, (&every(key)?, &every(value)?), self.heads, None)?;
            let inner = layer.down.forward(&layer.up.forward_act(&x, Act::Gelu)?)?;
            x = layer.norm.forward(&(inner + &x)?)?;
        }
        memory.n_tokens = past + n;
        let last = x.narrow(1, n - 1, 1)?.squeeze(1)?.contiguous()?;
        let last = self
            .transform_norm
            .forward(&self.transform.forward_act(&last, Act::Gelu)?)?;
        self.head.forward(&last)
    }
}

impl Memory {
    /// Keeps the given rows of the text, in this order; a row may appear more than once.
    pub(super) fn keep_rows(&mut self, rows: &[u32]) -> Result<()> {
        for kept in self.itself.iter_mut().flatten() {
            let index = Tensor::new(rows, kept.0.device())?;
            *kept = (kept.0.index_select(&index, 0)?, kept.1.index_select(&index, 0)?);
        }
        Ok(())
    }
}

impl Layer {
    fn load(w: &Weights) -> Result<Self> {
        Ok(Self {
            itself: Attention::load(&w.at("attention"))?,
            across: Attention::load(&w.at("crossattention"))?,
            up: Linear::load(w, "intermediate.dense")?,
            down: Linear::load(w, "output.dense")?,
            norm: LayerNorm::load(w, "output.LayerNorm", EPS)?,
        })
    }
}

impl Attention {
    fn load(w: &Weights) -> Result<Self> {
        Ok(Self {
            query: Linear::load(w, "self.query")?,
            key: Linear::load(w, "self.key")?,
            value: Linear::load(w, "self.value")?,
            out: Linear::load(w, "output.dense")?,
            norm: LayerNorm::load(w, "output.LayerNorm", EPS)?,
        })
    }

    fn forward(&self, x: &Tensor, (k, v): (&Tensor, &Tensor), heads: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        debug_assert_eq!(k.dim(D::Minus1)?, v.dim(D::Minus1)?);
        let mixed = attention(&self.query.forward(x)?, k, v, heads, mask)?;
        self.norm.forward(&(self.out.forward(&mixed)? + x)?)
    }
}
