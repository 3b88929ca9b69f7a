//! What each verb does.

pub mod control;
pub mod doctor;
pub mod import;
pub mod run;
pub mod setup;
pub mod status;
