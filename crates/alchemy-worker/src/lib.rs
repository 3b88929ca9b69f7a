//! Turns alchemy forms of the Horde into vision calls and results into submissions. The only room that knows both.
//!
//! [`forms`] says which files serve which form, [`verified`] whether they are what they should be, [`fit`] what suits a
//! machine. [`backend`] fetches and hands in, [`engine`] does the work, [`pace`] knows how long that takes,
//! `turns` what a pop asks for by that, [`program`] plugs all of it into the program around it.

pub mod backend;
pub mod config;
pub mod engine;
pub mod fit;
pub mod forms;
pub mod pace;
pub mod program;
mod turns;
pub mod verified;
pub mod work;

pub use program::{Alchemist, AlchemistCommand};
