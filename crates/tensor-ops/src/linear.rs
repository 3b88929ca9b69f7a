//! Matrix products with weights stored as torch stores them, `(out, in)`.

use candle_core::{D, Result, Tensor};

use crate::{Activation, widen::matmul};

/// `x (.., in)`, `weight (out, in)`, `bias (out)` -> `(.., out)`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n_out, n_in) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    if x.rank() == 0 || x.dim(D::Minus1)? != n_in {
        candle_core::bail!("a weight of {:?} does not take {:?}", weight.shape(), x.shape());
    }
    let rows = x.elem_count() / n_in.max(1);
    let y = matmul(&x.contiguous()?.reshape((rows, n_in))?, &weight.t()?)?; // (rows, out)
    if let Some(last) = dims.last_mut() {
        *last = n_out;
    }
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    y.reshape(dims)
}

/// [`linear`] with an activation on its result.
pub fn linear_act(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    activation.apply(&linear(x, weight, bias)?)
}
