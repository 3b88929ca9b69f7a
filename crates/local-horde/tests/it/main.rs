//! The server's promises, as a worker of another author would meet them.

mod rules;
mod sdk;
