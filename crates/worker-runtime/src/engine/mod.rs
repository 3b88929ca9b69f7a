//! The engine child's side of the pipe, and the frames on it.

pub mod frames;
mod host;

pub use host::serve;
