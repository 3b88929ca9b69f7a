//! The live display on a terminal: a pure drawing of the status, and the thread that owns the terminal.

mod draw;
mod terminal;
mod words;

pub use draw::draw;
pub use terminal::{Display, Key};
pub use words::{sane, span, state, why_idle};
