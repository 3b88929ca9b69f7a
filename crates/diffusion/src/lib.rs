//! Text encoders, noise, schedules, samplers and U-Net pipelines: a request becomes pictures. Knows no Horde and no network.

pub mod adapter;
pub mod embedding;
mod error;
mod header;
mod layout;
pub mod model;
pub mod nn;
pub mod noise;
pub mod pipeline;
mod plan;
pub mod progress;
pub mod prompt;
pub mod request;
pub mod safetensors_file;
pub mod sample;
pub mod sigma;
pub mod tokens;
pub mod weights;

pub use error::{Error, Result};
pub use model::{ModelFiles, Overrides};
pub use pipeline::Pipeline;
pub use plan::{MemoryPlan, Outline, plan};
pub use progress::{Eta, Notice, Progress};
pub use request::{Hires, Request, Source};
pub use tensor_ops::{allocator, memory};
