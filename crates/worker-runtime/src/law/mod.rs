//! The decisions of the runtime as small pure types: what happened and when goes in, what to do comes out. No clock, no
//! I/O, no task; chance comes in as a number in `0..1`.

pub mod breaker;
pub mod chance;
pub mod owner;
pub mod poll;
pub mod prefetch;
pub mod remaining;
pub mod retry;
pub mod sleep;
pub mod watchdog;
