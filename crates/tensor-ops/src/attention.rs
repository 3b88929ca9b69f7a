//! Scaled dot-product attention on heads that lie side by side in the last dimension.

use candle_core::{D, DType, Result, Tensor};

use crate::{cpu, widen::matmul};

/// How many heads, which scale, which mask.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Number of heads, at least 1; divides the last dimension.
    pub heads: usize,
    /// Factor on `q·k`; `None` is `1 / sqrt(head size)`.
    pub scale: Option<f64>,
    /// Added to the scores before the softmax: `(nq, nk)`, or any rank-4 shape that broadcasts to `(b, heads, nq, nk)`.
    pub mask: Option<&'a Tensor>,
}

impl Attention<'_> {
    /// `heads` heads, the usual scale, no mask.
    pub fn new(heads: usize) -> Self {
        Self {
            heads,
            scale: None,
            mask: None,
        }
    }
}

/// Scores held at once, in elements: 64 Mi are 256 MB of f32. More queries than fit are done in slices.
const MAX_SCORES: usize = 64 << 20;

/// `q (b, nq, heads·d)`, `k (b, nk, heads·d)`, `v (b, nk, heads·e)` -> `(b, nq, heads·e)`.
///
/// The scores and their softmax are f32 whatever the dtype of the inputs.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention<'_>) -> Result<Tensor> {
    let (batch, n_query, width) = q.dims3()?;
    let (k_batch, n_key, k_width) = k.dims3()?;
    let (v_batch, n_value, v_width) = v.dims3()?;
    let heads = how.heads;
    if heads == 0 || width % heads != 0 || v_width % heads != 0 {
        candle_core::bail!("{heads} heads do not divide widths {width} and {v_width}");
    }
    if k_width != width || n_key != n_value || k_batch != batch || v_batch != batch {
        candle_core::bail!(
            "attention shapes differ: q {:?}, k {:?}, v {:?}",
            q.shape(),
            k.shape(),
            v.shape()
        );
    }
    if n_query == 0 || n_key == 0 {
        candle_core::bail!("attention over nothing: {n_query} queries, {n_key} keys");
    }
    let scale = how.scale.unwrap_or(1.0 / ((width / heads) as f64).sqrt());
    if cpu::takes([q, k, v]) && how.mask.is_none_or(|mask| mask.device().is_cpu()) {
        let full = (batch, heads, n_query, n_key);
        let wide = |mask: &Tensor| mask.to_dtype(DType::F32)?.contiguous()?.broadcast_as(full);
        let op = cpu::Attend {
            heads,
            scale: scale as f32,
            mask: how.mask.map(wide).transpose()?,
        };
        return q
            .contiguous()?
            .apply_op3_no_bwd(&k.contiguous()?, &v.contiguous()?, &op);
    }
    #[cfg(feature = "flash-attn")]
    if let Some(result) = flash(q, k, v, how, scale)? {
        return Ok(result);
    }
    let split = |x: &Tensor, n: usize| -> Result<Tensor> {
        let size = x.dim(D::Minus1)? / heads;
        x.reshape((batch, n, heads, size))?.transpose(1, 2)?.contiguous() // (b, heads, n, size)
    };
    let q = split(q, n_query)?;
    let k = split(k, n_key)?.transpose(2, 3)?.contiguous()?; // (b, heads, d, nk)
    let v = split(v, n_key)?;
    let mask = how.mask.map(|m| m.to_dtype(DType::F32)).transpose()?;
    let rows = (MAX_SCORES / (batch * heads * n_key).max(1)).clamp(1, n_query);
    let mut parts = Vec::new();
    let mut start = 0;
    while start < n_query {
        let n = rows.min(n_query - start);
        let part = q.narrow(2, start, n)?.contiguous()?;
        let mut scores = (matmul(&part, &k)?.to_dtype(DType::F32)? * scale)?; // (b, heads, n, nk)
        if let Some(mask) = &mask {
            let queries = mask.dim(D::Minus2)?;
            let mask = if queries == 1 {
                mask.clone()
            } else {
                mask.narrow(D::Minus2, start, n)?
            };
            scores = scores.broadcast_add(&mask)?;
        }
        parts.push(matmul(&softmax(&scores)?.to_dtype(v.dtype())?, &v)?);
        start += n;
    }
    Tensor::cat(&parts, 2)?
        .transpose(1, 2)?
        .contiguous()?
        .reshape((batch, n_query, v_width))
}

/// On NVIDIA cards in f16 and bf16, without a mask: T. Dao, "FlashAttention-2" (2023), which never writes the scores down.
/// `None` where it does not apply; its kernels take heads of up to 256 numbers, a multiple of 8.
#[cfg(feature = "flash-attn")]
fn flash(q: &Tensor, k: &Tensor, v: &Tensor, how: &Attention<'_>, scale: f64) -> Result<Option<Tensor>> {
    let (batch, n_query, width) = q.dims3()?;
    let size = width / how.heads;
    let is_half = matches!(q.dtype(), DType::F16 | DType::BF16) && k.dtype() == q.dtype() && v.dtype() == q.dtype();
    let is_plain = how.mask.is_none() && v.dim(D::Minus1)? == width && size % 8 == 0 && size <= 256;
    if !q.device().is_cuda() || !is_half || !is_plain {
        return Ok(None);
    }
    let split = |x: &Tensor| x.contiguous()?.reshape((batch, x.dim(1)?, how.heads, size));
    let result = candle_flash_attn::flash_attn(&split(q)?, &split(k)?, &split(v)?, scale as f32, false)?;
    Ok(Some(result.reshape((batch, n_query, width))?))
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let exp = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)
}
