//! What `./x demo` shows: a Horde on this machine, real requests, and the real worker program answering them.

pub mod alchemist;
pub mod civitai;
pub mod dreamer;
pub mod report;
pub mod scribe;
pub mod shapes;
pub mod sheet;
pub mod stage;
