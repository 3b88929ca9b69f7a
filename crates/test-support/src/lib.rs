//! What tests of several rooms share. It knows no other room, and only tests know it.

mod allocator;
mod files;
mod json;
mod models;

pub use allocator::{Counting, alone, held, most_during};
pub use files::{longer_animation, png_chunk, png_head};
pub use json::merge;
pub use models::models_dir;
