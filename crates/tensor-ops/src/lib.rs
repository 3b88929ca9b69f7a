//! Fused kernels over candle-core (convolution, attention, norms), chosen by device behind one seam. Knows no model and no file.
//!
//! Every function takes and gives candle tensors of one dtype (f32, f16 or bf16) on one device. Shapes stand in each
//! function's first lines; a shape that does not fit is an error, never a panic. Sums that decide accuracy (norms,
//! softmax) are made in f32 whatever the dtype. Inputs need not be contiguous.
//! On the CPU f32 has kernels of its own (`cpu`); every other device and dtype keeps candle's operations.

mod activation;
pub mod allocator;
mod attention;
mod conv;
mod cpu;
pub mod device;
mod linear;
pub mod memory;
mod norm;
mod pool;
mod resample;
mod widen;

pub use activation::{Activation, geglu, gelu_erf, quick_gelu, silu};
pub use attention::{Attention, attention};
pub use conv::{After, Conv, conv2d, conv2d_act, conv2d_joined};
pub use linear::{linear, linear_act};
pub use norm::{GroupNorm, group_norm, layer_norm};
pub use pool::max_pool;
pub use resample::{pixel_shuffle, pixel_shuffle_onto, pixel_unshuffle, upsample_nearest};
