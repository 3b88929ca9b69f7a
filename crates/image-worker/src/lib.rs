//! Turns image jobs of the Horde into requests for pictures and results into submissions. The only room that knows both.
//!
//! [`order`] brings a payload within bounds, [`backend`] fetches what it names and hands in, [`engine`] makes pictures,
//! [`room`], [`plan`] and [`post`] say what fits into memory, [`checked`] is the one way out of it, [`levels`] says what each bridge agent promises, [`program`] plugs all of it into
//! the program around it.

pub mod backend;
pub mod checked;
pub mod checker;
pub mod config;
pub mod drawing;
pub mod engine;
pub mod extras;
pub mod facts;
pub mod hires;
pub mod levels;
pub mod models;
pub mod networks;
pub mod order;
pub mod plan;
pub mod post;
pub mod program;
pub mod prompt;
pub mod resident;
pub mod room;
pub mod sources;
pub mod steps;
pub mod work;

pub use program::{Dreamer, DreamerCommand};
