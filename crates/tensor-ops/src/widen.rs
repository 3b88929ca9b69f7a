//! Dtypes a device cannot multiply are widened for the product and narrowed after it.

use candle_core::{DType, Result, Tensor};

/// The dtype `x`'s device multiplies in: f32 for bf16 on the CPU, where candle has no such product; else `x`'s own.
pub(crate) fn product_dtype(x: &Tensor) -> DType {
    if x.device().is_cpu() && x.dtype() == DType::BF16 {
        DType::F32
    } else {
        x.dtype()
    }
}

/// `x.matmul(y)` in [`product_dtype`], as `x`'s dtype.
pub(crate) fn matmul(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    let dtype = product_dtype(x);
    x.to_dtype(dtype)?.matmul(&y.to_dtype(dtype)?)?.to_dtype(x.dtype())
}
