//! CLIP's text encoder: OpenAI's L, OpenCLIP's H and G.

use candle_core::{DType, Device, Tensor};
use tensor_ops::{Activation, Attention};

use super::layers::{LayerNorm, Linear};
use crate::{
    Error, Result,
    tokens::{END, ROW, Row, Token},
    weights::{Loader, Param},
};

/// What the weights do not tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipConfig {
    /// Attention heads.
    pub heads: usize,
    /// Quick gelu for OpenAI's L, erf gelu for OpenCLIP's.
    pub activation: Activation,
}

/// The encoder.
pub struct Clip {
    tokens: Param,    // (vocabulary, d)
    positions: Param, // (77, d)
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    projection: Option<Param>, // (d, d)
    config: ClipConfig,
    mask: Tensor, // (77, 77)
}

struct Layer {
    norms: [LayerNorm; 2],
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    up: Linear,
    down: Linear,
}

/// What one call gives.
pub struct Encoded {
    /// `(rows, 77, d)` of the asked layer.
    pub hidden: Tensor,
    /// `(rows, d)` at the end token of the last layer, normed and projected.
    pub pooled: Tensor,
}

impl Clip {
    /// Reads the encoder at `loader`.
    pub fn new(loader: &Loader<'_>, config: ClipConfig) -> Result<Self> {
        let model = loader.at("text_model");
        let embeddings = model.at("embeddings");
        let width = embeddings.shape("token_embedding.weight")?.last().copied().unwrap_or(0);
        if config.heads == 0 || width % config.heads != 0 {
            return Err(Error::Weights(format!("{} heads do not divide {width}", config.heads)));
        }
        let mut layers = Vec::new();
        while model.has(&format!("encoder.layers.{}.layer_norm1.weight", layers.len())) {
            let layer = model.at(format!("encoder.layers.{}", layers.len()));
            layers.push(Layer {
                norms: [
                    LayerNorm::new(&layer.at("layer_norm1"))?,
                    LayerNorm::new(&layer.at("layer_norm2"))?,
                ],
                query: Linear::new(&layer.at("self_attn.q_proj"))?,
                key: Linear::new(&layer.at("self_attn.k_proj"))?,
                value: Linear::new(&layer.at("self_attn.v_proj"))?,
                out: Linear::new(&layer.at("self_attn.out_proj"))?,
                up: Linear::new(&layer.at("mlp.fc1"))?,
                down: Linear::new(&layer.at("mlp.fc2"))?,
            });
        }
        if layers.is_empty() {
            return Err(Error::Weights("the text encoder has no layers".into()));
        }
        let tokens = embeddings.get("token_embedding.weight")?;
        let mask: Vec<f32> = (0..ROW * ROW)
            .map(|i| if i % ROW > i / ROW { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        Ok(Self {
            mask: Tensor::from_vec(mask, (ROW, ROW), tokens.get().device())?,
            tokens,
            positions: embeddings.get("position_embedding.weight")?,
            layers,
            final_norm: LayerNorm::new(&model.at("final_layer_norm"))?,
            projection: if loader.has("text_projection.weight") {
                Some(loader.get("text_projection.weight")?)
            } else {
                None
            },
            config,
        })
    }

    /// The width of its states.
    pub fn width(&self) -> usize {
        self.tokens.get().dims().last().copied().unwrap_or(0)
    }

    /// `layer` counts from the end, 1 being the last; more than there are means the last with the final norm on it, as
    /// ComfyUI has it. `norm` puts that norm on any layer.
    pub fn encode(&self, rows: &[Row], layer: usize, norm: bool) -> Result<Encoded> {
        let rows: Vec<Vec<Token>> = rows.iter().map(|row| row.fitted(self.width())).collect();
        let mut x = self.embed(&rows)?; // (rows, 77, d)
        let exists = (1..=self.layers.len()).contains(&layer);
        let wanted = self.layers.len() - if exists { layer } else { 1 };
        let mut hidden = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            x = self.layer(layer, &x)?;
            if i == wanted {
                hidden = x.clone();
            }
        }
        if norm || !exists {
            hidden = self.final_norm.forward(&hidden)?;
        }
        let last = self.final_norm.forward(&x)?;
        let mut pooled = Vec::with_capacity(rows.len());
        for (i, row) in rows.iter().enumerate() {
            let end = row.iter().position(|token| *token == Token::Id(END)).unwrap_or(ROW - 1);
            pooled.push(last.get(i)?.narrow(0, end, 1)?); // (1, d)
        }
        let mut pooled = Tensor::cat(&pooled, 0)?; // (rows, d)
        if let Some(projection) = &self.projection {
            pooled = tensor_ops::linear(&pooled, &projection.get(), None)?;
        }
        Ok(Encoded { hidden, pooled })
    }

    /// Vectors must be as wide as this encoder ([`Row::fitted`]).
    fn embed(&self, rows: &[Vec<Token>]) -> Result<Tensor> {
        let table = self.tokens.get();
        let (vocabulary, width) = table.dims2()?;
        let mut parts = Vec::new();
        for row in rows {
            let mut ids = Vec::new();
            let flush = |ids: &mut Vec<u32>, parts: &mut Vec<Tensor>| -> Result<()> {
                if !ids.is_empty() {
                    let ids = std::mem::take(ids);
                    let count = ids.len();
                    let index = Tensor::from_vec(ids, count, table.device())?;
                    parts.push(table.index_select(&index, 0)?);
                }
                Ok(())
            };
            for token in row {
                match token {
                    Token::Id(id) if (*id as usize) < vocabulary => ids.push(*id),
                    Token::Id(id) => return Err(Error::Weights(format!("the vocabulary lacks token {id}"))),
                    Token::Vector(vector) => {
                        flush(&mut ids, &mut parts)?;
                        let vector = Tensor::from_vec(vector.clone(), (1, width), &Device::Cpu)?;
                        parts.push(vector.to_dtype(table.dtype())?.to_device(table.device())?);
                    }
                }
            }
            flush(&mut ids, &mut parts)?;
        }
        let x = Tensor::cat(&parts, 0)?.reshape((rows.len(), ROW, width))?;
        Ok(x.broadcast_add(&self.positions.get())?)
    }

    fn layer(&self, layer: &Layer, x: &Tensor) -> Result<Tensor> {
        let how = Attention {
            mask: Some(&self.mask),
            ..Attention::new(self.config.heads)
        };
        let y = layer.norms[0].forward(x)?;
        let y = tensor_ops::attention(
            &layer.query.forward(&y)?,
            &layer.key.forward(&y)?,
            &layer.value.forward(&y)?,
            &how,
        )?;
        let x = (x + layer.out.forward(&y)?)?;
        let y = layer
            .up
            .forward_act(&layer.norms[1].forward(&x)?, self.config.activation)?;
        Ok((x + layer.down.forward(&y)?)?)
    }
}

/// Rows of a prompt that go through the encoder together; a longer prompt needs no more memory for its layers.
pub const ROWS_AT_ONCE: usize = 8;

/// Encodes a prompt's rows and weighs each token against the empty prompt: `(1, 77·rows, d)` and the first row's pooled
/// `(1, d)`, both f32.
pub fn encode_weighted(clip: &Clip, rows: &[Row], empty: &Row, layer: usize, norm: bool) -> Result<(Tensor, Tensor)> {
    let weighted = rows.iter().any(|row| row.weights.iter().any(|weight| *weight != 1.0));
    let width = clip.width();
    let base = if weighted {
        Some(
            clip.encode(std::slice::from_ref(empty), layer, norm)?
                .hidden
                .to_dtype(DType::F32)?,
        )
    } else {
        None
    };
    let mut parts = Vec::with_capacity(rows.len());
    let mut pooled = None;
    for some in rows.chunks(ROWS_AT_ONCE) {
        let encoded = clip.encode(some, layer, norm)?;
        if pooled.is_none() {
            pooled = Some(encoded.pooled.narrow(0, 0, 1)?.to_dtype(DType::F32)?);
        }
        let hidden = encoded.hidden.to_dtype(DType::F32)?;
        for (i, row) in some.iter().enumerate() {
            let mut z = hidden.narrow(0, i, 1)?; // (1, 77, d)
            if let Some(base) = &base {
                let weights = Tensor::from_vec(row.weights.clone(), (1, ROW, 1), hidden.device())?;
                z = ((z - base)?.broadcast_mul(&weights)? + base)?;
            }
            parts.push(z);
        }
    }
    let pooled = pooled.ok_or_else(|| Error::Request("a prompt without rows".into()))?;
    Ok((Tensor::cat(&parts, 1)?.reshape((1, rows.len() * ROW, width))?, pooled))
}
