//! A Horde on loopback: the server's half of API v2 with an object store and a fault proxy, in memory or as a program,
//! for demos and tests. Knows no worker: of `horde-client` only the transport trait is shared, so that both sides check
//! each other.

pub mod agents;
pub mod alchemy;
pub mod answer;
pub mod faults;
pub mod http;
pub mod image;
pub mod kudos;
pub mod ledger;
pub mod memory;
pub mod objects;
pub mod proxy;
pub mod routes;
mod schema;
pub mod state;
pub mod text;
pub mod workers;

pub use faults::Weather;
pub use ledger::{Fate, Ledger, Summary};
pub use memory::{Horde, fair};
pub use state::{ANONYMOUS_KEY, CLIENT_KEY, Settings, WORKER_KEY};
