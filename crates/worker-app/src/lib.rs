//! The program around a worker: configuration, command line, state directory, display, logging, doctor. Knows no engine and no kind of job.
//!
//! A worker binary implements [`Program`] and calls [`main`]; everything an owner sees is here.

mod agent;
mod app;
pub mod cli;
pub mod config;
mod devices;
pub mod display;
mod logging;
pub mod models;
mod owner;
pub mod program;
mod sandbox;
mod signals;
pub mod state;
pub mod stop;
mod text;
pub mod verbs;

pub use app::main;
pub(crate) use app::{context, forget_key_in_environment};
pub use config::Common;
pub use program::{Choice, Context, DeviceFound, NoCommand, Program};
pub use stop::{Check, Stop, Verdict};
pub use text::nearest;
