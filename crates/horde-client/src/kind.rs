//! The three kinds of work, each as a marker type that ties its routes to its wire types.
//!
//! Code that treats all kinds alike (the runtime) is generic over [`JobKind`] and names none of them.

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::ids::GenerationId;
use crate::secret::SignedUrl;

/// Ties one kind's routes, request, response and submission together.
pub trait JobKind: Send + Sync + 'static {
    /// Body of a pop.
    type PopRequest: Serialize + Clone + std::fmt::Debug + Send + Sync + 'static;
    /// Body of a pop's answer, every field optional.
    type PopResponse: DeserializeOwned + Send + 'static;
    /// What one popped job asks for, without ids and upload targets.
    type Payload: Send + Sync + 'static;
    /// The kind's own part of a submission that is not a fault; kept in the spool between restarts.
    type Submission: Serialize + DeserializeOwned + Clone + Send + Sync + 'static;

    /// `/v2/generate/pop` and its siblings.
    const POP_PATH: &'static str;
    /// `/v2/generate/submit` and its siblings.
    const SUBMIT_PATH: &'static str;
    /// Lease when the answer names none: 150 s for images and text, 180 s for alchemy.
    const DEFAULT_TTL: Duration;
    /// One word for logs and status: `image`, `text`, `alchemy`.
    const NAME: &'static str;

    /// Splits an answer into jobs, notices and skip reasons.
    fn split(response: Self::PopResponse) -> Popped<Self::Payload>;
    /// The whole body of a submit for a finished generation.
    fn submit_body(id: GenerationId, submission: &Self::Submission) -> serde_json::Value;
    /// The whole body of a submit that hands a generation back. Never carries censorship metadata.
    fn fault_body(id: GenerationId, told: HandBack<'_>) -> serde_json::Value;
}

/// What a hand-back tells besides its id, where the kind's wire has words for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandBack<'a> {
    /// See [`PoppedJob::fault_model`].
    pub model: Option<&'a str>,
    /// Why.
    pub cause: Cause,
}

/// Why a generation is handed back, as coarsely as servers ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Anything without a word of its own.
    #[default]
    Failed,
    /// What was asked does not fit the context, and must not be cut.
    Overflow,
    /// The form that the answer must have cannot be kept to.
    Unbuildable,
    /// What was made breaks what was asked for.
    Violation,
    /// The server did not take the result.
    Refused,
}

/// What one pop brought.
#[derive(Debug)]
pub struct Popped<P> {
    /// Jobs; empty when there was nothing to do. Images and text bring at most one, alchemy one per form.
    pub jobs: Vec<PoppedJob<P>>,
    /// Why requests were passed over, by the server's reason.
    pub skipped: std::collections::BTreeMap<String, i64>,
    /// Operator messages, to be shown once per id.
    pub messages: Vec<Message>,
}

/// One job: payload plus the generations it must end.
#[derive(Debug)]
pub struct PoppedJob<P> {
    /// One entry per result to make, in the server's order; never empty.
    pub generations: Vec<Generation>,
    /// Model to run, or what to do where the kind has no models.
    pub model: Option<String>,
    /// Model that a hand-back of this job names; `None` where its wire names none.
    pub fault_model: Option<String>,
    /// Lease counted from the pop; `None` means the kind's default.
    pub ttl: Option<Duration>,
    /// The parameters, or why they could not be read (then every generation is faulted).
    pub payload: Result<P, String>,
}

/// One result to make, with where its bytes go.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Submit under this id.
    pub id: GenerationId,
    /// Presigned PUT target; `None` where the kind has none or the server sent too few.
    pub upload: Option<SignedUrl>,
}

/// A message of the server's operators to the worker's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Stable id, so that a message is shown once.
    pub id: String,
    /// Text as received; escape before it reaches a terminal.
    pub message: String,
    /// Who wrote it.
    pub origin: Option<String>,
}
