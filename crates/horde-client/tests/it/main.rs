//! The crate's promises: real payloads, hostile answers, a transport that leaks nothing.

mod fixtures;
mod hostile;
mod proxies;
mod sockets;
mod transport;
