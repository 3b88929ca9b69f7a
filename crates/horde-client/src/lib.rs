//! The worker's half of AI Horde API v2: typed pops, submits and transfers. Knows the wire; knows no model, no engine
//! and no job life.

pub mod agent;
pub mod alchemy;
pub mod client;
pub mod error;
pub mod guard;
pub mod http;
pub mod ids;
pub mod image;
pub mod kind;
pub mod metadata;
mod notices;
mod recover;
pub mod secret;
pub mod text;
mod tolerant;
pub mod transport;

pub use alchemy::Alchemy;
pub use client::{Client, ClientConfig};
pub use error::{ApiError, ErrorClass};
pub use image::Image;
pub use kind::JobKind;
pub use secret::{ApiKey, SignedUrl};
pub use text::Text;
