//! Makes images for the AI Horde.
fn main() {}
