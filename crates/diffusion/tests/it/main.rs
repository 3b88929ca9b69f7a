//! The stages of a picture against the reference's values, in the order in which they depend on each other.

#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod checkpoints;
mod fixtures;
mod layouts;
mod loras;
mod networks;
mod noise;
mod pictures;
mod samplers;
mod sigmas;
mod tokens;
