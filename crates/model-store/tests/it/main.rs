//! What the model store promises, on loopback and temporary directories only.

mod fetch_bad;
mod fetch_good;
mod formats;
mod process;
mod server;
