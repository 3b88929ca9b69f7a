//! Networks with made-up weights against what the reference says of them.

use candle_core::{Device, Tensor};

use crate::error::Result;
use crate::made_up::case;
use crate::weights::Weights;

/// The largest difference between what `run` makes of the fixture's `x` and its `y`.
pub(super) fn apart_from_reference(name: &str, run: impl FnOnce(&Weights, &Tensor) -> Result<Tensor>) -> f32 {
    let (tensors, stored) = case(name);
    let got = run(&Weights::from_tensors(tensors, &Device::Cpu), &stored["x"]).unwrap();
    assert_eq!(got.dims(), stored["y"].dims());
    let apart = (got - &stored["y"]).unwrap().abs().unwrap().flatten_all().unwrap();
    apart.max(0).unwrap().to_scalar::<f32>().unwrap()
}
