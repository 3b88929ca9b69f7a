//! The program around a worker: configuration, command line, state directory, display, logging, doctor. Knows no engine and no kind of job.
//!
//! A worker binary implements [`Program`]; everything an owner sees is here.

pub mod config;
pub mod program;
pub mod stop;
mod text;

pub use config::Common;
pub use program::{Choice, Context, DeviceFound, NoCommand, Program};
pub use stop::{Check, Stop, Verdict};
