//! Turns alchemy forms of the Horde into vision calls and results into submissions. The only room that knows both.
//!
//! [`forms`] says which files serve which form, [`backend`] fetches and hands in, [`engine`] does the work, [`program`]
//! plugs all of it into the program around it.

pub mod backend;
pub mod config;
pub mod engine;
pub mod forms;
pub mod program;
pub mod work;

pub use program::{Alchemist, AlchemistCommand};
