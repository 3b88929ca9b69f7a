//! What tests of several rooms share. It knows no other room, and only tests know it.

mod allocator;
mod json;

pub use allocator::{Counting, alone, held, most_during};
pub use json::merge;
