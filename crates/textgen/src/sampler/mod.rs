//! How the next token is chosen: every sampler as a function over candidates, and the chain that applies them.
//!
//! Meanings and order are KoboldCpp's (its public behaviour; the formulas are those of the papers and of llama.cpp
//! before it dropped some of them). [`filters`] narrows the candidates, [`temperature`] changes their weights,
//! [`penalties`] discourages repetition, [`mirostat`] steers surprise, [`Chain`] runs them in a request's order.

mod candidates;
mod chain;
pub mod filters;
pub mod mirostat;
pub mod penalties;
mod settings;
pub mod temperature;

pub use candidates::{Candidate, Candidates};
pub use chain::{Chain, NoCandidate};
pub use settings::{AnswerPenalties, Dry, Mirostat, Sampling, Step, Xtc};
