//! The server's promises, as a worker of another author would meet them.

mod chat;
mod gates;
mod http;
mod memory;
mod program;
mod proxy;
mod rules;
mod sdk;
mod wire;
