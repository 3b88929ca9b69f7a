//! The promises of whole workers, one file each.

mod arrows;
mod dreamer;
mod scribe;
