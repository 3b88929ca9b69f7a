//! Group and layer normalisation, computed in f32 whatever the dtype.

use candle_core::{D, DType, Result, Tensor};

use crate::cpu;

/// The numbers of a group norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// Groups of channels, at least 1; divides the channel count.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether `silu` follows.
    pub silu: bool,
}

/// `x (b, c, ..)`, `weight (c)`, `bias (c)` -> as `x`; normalised over each group's channels and all positions.
pub fn group_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, norm: &GroupNorm) -> Result<Tensor> {
    let dims = x.dims().to_vec();
    if dims.len() < 2 || norm.groups == 0 || !dims[1].is_multiple_of(norm.groups) {
        candle_core::bail!("{} groups do not divide the channels of {:?}", norm.groups, x.shape());
    }
    let (batch, channels) = (dims[0], dims[1]);
    if weight.elem_count() != channels || bias.elem_count() != channels {
        candle_core::bail!("weight or bias of a group norm do not fit {channels} channels");
    }
    if cpu::takes([x, weight, bias]) {
        return x
            .contiguous()?
            .apply_op3_no_bwd(&weight.contiguous()?, &bias.contiguous()?, &cpu::NormGroups(*norm));
    }
    let positions: usize = dims[2..].iter().product();
    let y = x
        .to_dtype(DType::F32)?
        .contiguous()?
        .reshape((batch, norm.groups, channels / norm.groups * positions))?;
    let y = normalised(&y, norm.eps)?.reshape((batch, channels, positions))?;
    let y = y
        .broadcast_mul(&weight.to_dtype(DType::F32)?.reshape((1, channels, 1))?)?
        .broadcast_add(&bias.to_dtype(DType::F32)?.reshape((1, channels, 1))?)?;
    let y = if norm.silu { y.silu()? } else { y };
    y.reshape(dims)?.to_dtype(x.dtype())
}

/// `x (.., n)`, `weight (n)`, `bias (n)` -> as `x`; normalised over the last dimension.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let n = x.dim(D::Minus1)?;
    if weight.dims() != [n] || bias.dims() != [n] {
        candle_core::bail!("weight or bias of a layer norm do not fit a width of {n}");
    }
    if cpu::takes([x, weight, bias]) {
        let op = cpu::NormRows { eps };
        return x
            .contiguous()?
            .apply_op3_no_bwd(&weight.contiguous()?, &bias.contiguous()?, &op);
    }
    normalised(&x.to_dtype(DType::F32)?, eps)?
        .broadcast_mul(&weight.to_dtype(DType::F32)?)?
        .broadcast_add(&bias.to_dtype(DType::F32)?)?
        .to_dtype(x.dtype())
}

/// Mean 0 and variance 1 over the last dimension.
fn normalised(x: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + eps)?.sqrt()?)
}
