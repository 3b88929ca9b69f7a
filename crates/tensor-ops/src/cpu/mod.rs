//! Kernels for f32 on the CPU, as candle custom operations; [`takes`] says for which tensors they stand.

mod attention;
mod columns;
mod conv;
mod depthwise;
mod lanes;
mod linear;
mod matrix;
mod norm;
mod pointwise;
mod pool;
mod shuffle;
mod simd;
mod upsample;
mod winograd;

pub(crate) use attention::Attend;
pub(crate) use conv::Convolve;
pub(crate) use depthwise::ConvolveEach;
pub(crate) use linear::Multiply;
pub(crate) use norm::{NormGroups, NormRows};
pub(crate) use pointwise::{Activate, Geglu};
pub(crate) use pool::Greatest;
pub(crate) use shuffle::Shuffle;
pub(crate) use upsample::Nearest;

use std::cell::Cell;

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor};
use rayon::prelude::*;

/// Whether every tensor is a non-empty f32 one in the processor's memory.
pub(crate) fn takes<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> bool {
    tensors
        .into_iter()
        .all(|x| x.device().is_cpu() && x.dtype() == DType::F32 && x.elem_count() > 0)
}

/// The bias as an operand of an operation: an empty tensor stands for none.
pub(crate) fn bias_or_empty(bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => bias.contiguous(),
        None => Tensor::zeros(0, DType::F32, &Device::Cpu),
    }
}

/// The numbers of a contiguous f32 operand.
fn numbers<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => candle_core::bail!("a kernel's operand of {:?} is not contiguous", layout.shape()),
    }
}

/// The numbers of a result; an error where they cannot be counted.
fn count(dims: &[usize]) -> Result<usize> {
    let count = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    match count.filter(|n| n.checked_mul(4).is_some_and(|bytes| bytes <= isize::MAX as usize)) {
        Some(n) => Ok(n),
        None => candle_core::bail!("a result of {dims:?} is too large"),
    }
}

/// The numbers of a contiguous f32 tensor that an operation holds beside its operands.
fn with_numbers<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => work(numbers(storage, layout)?),
        _ => candle_core::bail!("a kernel's operand is not in the processor's memory"),
    }
}

/// Zeros for a result; an error where the size cannot be counted.
fn zeros(dims: &[usize]) -> Result<Vec<f32>> {
    Ok(vec![0.0; count(dims)?])
}

/// A result that `fill` writes; an error where the size cannot be counted or there is no memory for it.
///
/// # Safety
/// `fill` writes every number, and none is read before it is written.
unsafe fn filled(dims: &[usize], fill: impl FnOnce(&mut [f32])) -> Result<Vec<f32>> {
    let n = count(dims)?;
    let mut out: Vec<f32> = Vec::new();
    if out.try_reserve_exact(n).is_err() {
        candle_core::bail!("there is no memory for a result of {dims:?}");
    }
    // SAFETY: the capacity holds `n` numbers, which are only written until all of them are (the caller's promise).
    fill(unsafe { std::slice::from_raw_parts_mut(out.as_mut_ptr(), n) });
    // SAFETY: as above.
    unsafe { out.set_len(n) };
    Ok(out)
}

/// Fewest multiplications for which threads are woken: a quarter of a millisecond's work or so. Waking them and waiting
/// costs tens of microseconds, which in small networks adds up to more than the work.
const WORTH_THREADS: usize = 1 << 22;

/// Does jobs `0..count`, which are `work` multiplications in all, on all threads if that is worth it.
fn share_out(count: usize, work: usize, job: impl Fn(usize) + Send + Sync) {
    if work < WORTH_THREADS || rayon::current_num_threads() == 1 {
        (0..count).for_each(job);
    } else {
        (0..count).into_par_iter().for_each(job);
    }
}

/// Lends `n` numbers of this thread's scratch memory, with whatever they held before.
fn scratch<R>(n: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static KEPT: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    }
    let mut numbers = KEPT.take();
    if numbers.len() < n {
        numbers = vec![0.0; n];
    }
    let result = work(&mut numbers[..n]);
    KEPT.set(numbers);
    result
}
