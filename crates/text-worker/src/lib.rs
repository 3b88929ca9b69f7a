//! Turns text jobs of the Horde into text requests and answers into submissions. The only room that knows both.
//!
//! [`Scribe`] is what the binary plugs into `worker-app`; [`ScribeBackend`] lives in the supervisor, [`ScribeEngine`]
//! in the engine child.

mod backend;
mod calibration;
mod chat;
mod config;
mod engine;
mod health;
mod known;
mod limits;
mod local_use;
mod models;
mod names;
mod payload;
mod program;

pub use backend::{ScribeBackend, Served};
pub use chat::Chat;
pub use config::{Config, EngineKind};
pub use engine::{Facts, ScribeEngine, Work, Written};
pub use health::Health;
pub use limits::{Limits, limits};
pub use models::ScribeCommand;
pub use names::{bridged_name, horde_name};
pub use payload::{Asked, request};
pub use program::Scribe;
