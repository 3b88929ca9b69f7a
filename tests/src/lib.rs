//! Whole workers against local-horde, one file per promise. Knows no engine: workers are started as the programs people
//! run, and looked at from outside.

pub mod demo;
pub mod listening;
pub mod programs;
pub mod requester;
pub mod usage;
