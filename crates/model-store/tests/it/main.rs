//! What the model store promises, on loopback and temporary directories only.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test they help")]

mod adhoc;
mod fetch_bad;
mod fetch_good;
mod formats;
mod pickles;
mod process;
mod references;
mod server;
mod shelves;
