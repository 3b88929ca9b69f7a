//! Classifiers that answer one question: is this picture safe for work?

mod open_nsfw;
mod sd_checker;

pub use open_nsfw::OpenNsfw;
pub use sd_checker::{SdSafetyChecker, SdVerdict};
