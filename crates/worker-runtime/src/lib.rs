//! The life of a job, from pop to submit, for any kind of work. Knows no kind of job by name and no model.
//!
//! [`run`](run::run) is the whole worker: it asks for work, drives the devices, hands results in and keeps the ledger. A kind of
//! work plugs in as a [`Backend`](backend::Backend), a device as a [`Device`](device::Device). The way of one job is
//! `life::live`, one linear function.

pub mod backend;
mod board;
mod deliver;
pub mod device;
pub mod engine;
mod job;
pub mod law;
pub mod ledger;
mod life;
mod plan;
mod popped;
mod publish;
mod replay;
pub mod run;
pub mod settings;
mod slots;
pub mod status;
mod workshop;

pub use law::owner::{Command, Shutdown};
pub use run::run;
pub use settings::{Clock, Controls, RunError, Settings, Summary};
pub use status::Status;
