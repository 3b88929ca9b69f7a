//! A Horde on loopback: the server's half of API v2 with an object store and a fault proxy, in memory or as a program,
//! for demos and tests. Knows no worker: of `horde-client` only the transport trait is shared, so that both sides check
//! each other.

pub mod agents;
mod alchemy;
pub mod answer;
mod chat;
pub mod chat_needs;
mod chat_reply;
mod closing;
pub mod faults;
pub mod http;
mod image;
mod image_gates;
mod image_results;
mod image_work;
pub mod kudos;
pub mod ledger;
mod limits;
pub mod memory;
pub mod model;
pub mod objects;
pub mod proxy;
pub mod recording;
pub mod routes;
mod schema;
mod scripted;
pub mod state;
mod text;
mod workers;

pub use faults::Weather;
pub use ledger::{Fate, Ledger, Summary};
pub use memory::{Horde, fair};
pub use state::{ANONYMOUS_KEY, CLIENT_KEY, Settings, WORKER_KEY};
