//! Writes text for the AI Horde.
fn main() {}
