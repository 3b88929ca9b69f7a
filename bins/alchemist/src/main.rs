//! Upscales, repairs, cuts out and describes pictures for the AI Horde.
fn main() {}
