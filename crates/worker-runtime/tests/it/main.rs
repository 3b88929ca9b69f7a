//! The promises of the runtime, against a Horde in memory on tokio's paused clock, and against real engine children.

mod case;
mod chat;
mod child;
mod faults;
mod faults_at_home;
mod shutdown;
mod simulation;
mod toy;
mod toy_work;
mod world;
