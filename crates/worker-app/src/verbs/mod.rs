//! What each verb does.

pub mod control;
pub mod doctor;
pub mod import;
mod questions;
pub mod run;
pub mod setup;
pub mod status;
mod template;
