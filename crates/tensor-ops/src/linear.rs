//! Matrix products with weights stored as torch stores them, `(out, in)`.

use candle_core::{D, Result, Tensor};

use crate::{Activation, cpu, widen::matmul};

/// `x (.., in)`, `weight (out, in)`, `bias (out)` -> `(.., out)`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_act(x, weight, bias, Activation::None)
}

/// [`linear`] with an activation on its result.
pub fn linear_act(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, activation: Activation) -> Result<Tensor> {
    let (n_out, n_in) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    if x.rank() == 0 || x.dim(D::Minus1)? != n_in {
        candle_core::bail!("a weight of {:?} does not take {:?}", weight.shape(), x.shape());
    }
    let rows = x.elem_count() / n_in.max(1);
    if let Some(last) = dims.last_mut() {
        *last = n_out;
    }
    if bias.is_some_and(|bias| bias.elem_count() != n_out) {
        candle_core::bail!("a bias does not fit {n_out} outputs");
    }
    if cpu::takes([x, weight].into_iter().chain(bias)) {
        let x = x.contiguous()?.reshape((rows, n_in))?;
        let op = cpu::Multiply(activation);
        return x
            .apply_op3_no_bwd(&weight.contiguous()?, &cpu::bias_or_empty(bias)?, &op)?
            .reshape(dims);
    }
    let y = matmul(&x.contiguous()?.reshape((rows, n_in))?, &weight.t()?)?; // (rows, out)
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    activation.apply(&y.reshape(dims)?)
}
