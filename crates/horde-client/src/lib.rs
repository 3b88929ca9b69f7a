//! The worker's half of AI Horde API v2: typed pops, submits and transfers. Knows the wire; knows no model, no engine
//! and no job life.

pub mod ids;
pub mod kind;
pub mod secret;
pub mod transport;
