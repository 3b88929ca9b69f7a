//! Upscalers, face restorers, captioner, interrogator, safety and background remover: a picture becomes a picture or words. Knows no Horde and no network.
//!
//! Weights come as [`Weights`] (safetensors, any layout that was ever published); each network finds its architecture by
//! the keys, never by a name. Pictures come and go as [`imaging::Picture`].

pub mod background;
pub mod blip;
pub mod clip;
mod error;
pub mod face;
mod layers;
#[cfg(test)]
#[path = "../tests/it/made_up.rs"]
mod made_up;
pub mod nsfw;
mod pixels;
pub mod post;
pub mod safety;
mod transformer;
pub mod upscale;
pub mod vectorize;
mod weights;

pub use candle_core::Device;
pub use error::{Result, VisionError};
pub use tensor_ops::{allocator, device};
pub use weights::Weights;
