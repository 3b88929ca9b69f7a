//! The networks: text encoder, U-Net, VAE, and the layers they share.

pub mod clip;
mod layers;
pub mod unet;
pub mod vae;
pub(crate) mod vae_tiled;
