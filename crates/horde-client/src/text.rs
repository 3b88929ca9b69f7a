//! Text jobs on the wire (`/v2/generate/text/pop`, `/v2/generate/text/submit`), chat jobs among them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ids::GenerationId;
use crate::kind::{Cause, HandBack, JobKind, Popped, PoppedJob};
use crate::metadata::{MOST_ENTRIES, Metadata, State};
use crate::notices::{self, WireMessage};
use crate::tolerant::{lenient, lenient_list, or_default, real, whole};

/// Marks the text kind.
pub enum Text {}

/// Body of a text pop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PopRequest {
    /// Worker name, at most 100 characters.
    pub name: String,
    /// Models it serves, such as `koboldcpp/NAME`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// `Name:version:contact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge_agent: Option<String>,
    /// Users served first, as `alias#id`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub priority_usernames: Vec<String>,
    /// Take requests flagged nsfw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nsfw: Option<bool>,
    /// For statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Most tokens it generates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_length: Option<u32>,
    /// Tokens of context it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_context_length: Option<u32>,
    /// Declares chat jobs; withdrawn by leaving it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_jobs: Option<bool>,
    /// False: chat jobs only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_jobs: Option<bool>,
    /// One of `models`; required with chat jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// What the chat backend truly does.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chat_features: Vec<String>,
    /// Limits of chat jobs; required with chat jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_limits: Option<Value>,
    /// How pictures of a chat may come.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_transports: Vec<String>,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// Answer of a text pop.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PopResponse {
    #[serde(deserialize_with = "lenient")]
    id: Option<String>,
    #[serde(deserialize_with = "lenient_list")]
    ids: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    payload: Value,
    #[serde(deserialize_with = "lenient")]
    model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    chat: Option<bool>,
    #[serde(deserialize_with = "whole")]
    ttl: Option<u64>,
    #[serde(deserialize_with = "lenient_list")]
    messages: Vec<WireMessage>,
    #[serde(deserialize_with = "lenient")]
    skipped: Option<BTreeMap<String, Value>>,
}

/// What a text job asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// A prompt to continue.
    Prompt(Box<Params>),
    /// Messages to answer; the payload in the SDK's shape.
    Chat(Value),
}

/// `payload` of a prompt job. Every field is optional on the wire; ranges are those of the requester's schema.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Params {
    /// Text to continue.
    #[serde(deserialize_with = "lenient")]
    pub prompt: Option<String>,
    /// New tokens, 16..=16384.
    #[serde(deserialize_with = "whole")]
    pub max_length: Option<u32>,
    /// Tokens of prompt and answer together, 80..=1048576.
    #[serde(deserialize_with = "whole")]
    pub max_context_length: Option<u32>,
    /// 0..=5.
    #[serde(deserialize_with = "real")]
    pub temperature: Option<f64>,
    /// 0..=200, 0 is off.
    #[serde(deserialize_with = "whole")]
    pub top_k: Option<i64>,
    /// 0.001..=1.
    #[serde(deserialize_with = "real")]
    pub top_p: Option<f64>,
    /// 0..=1, 0 is off.
    #[serde(deserialize_with = "real")]
    pub top_a: Option<f64>,
    /// 0..=1, 1 is off.
    #[serde(deserialize_with = "real")]
    pub typical: Option<f64>,
    /// 0..=1, 1 is off.
    #[serde(deserialize_with = "real")]
    pub tfs: Option<f64>,
    /// 0..=1, 0 is off.
    #[serde(deserialize_with = "real")]
    pub min_p: Option<f64>,
    /// 1..=3.
    #[serde(deserialize_with = "real")]
    pub rep_pen: Option<f64>,
    /// Tokens looked back, 0..=4096.
    #[serde(deserialize_with = "whole")]
    pub rep_pen_range: Option<i64>,
    /// 0..=10.
    #[serde(deserialize_with = "real")]
    pub rep_pen_slope: Option<f64>,
    /// Permutation of 0..=6.
    #[serde(deserialize_with = "lenient")]
    pub sampler_order: Option<Vec<i64>>,
    /// Strings that end the answer.
    #[serde(deserialize_with = "lenient_list")]
    pub stop_sequence: Vec<String>,
    /// Quadratic sampling, 0..=10.
    #[serde(deserialize_with = "real")]
    pub smoothing_factor: Option<f64>,
    /// Dynamic temperature: plus or minus this, 0..=5.
    #[serde(deserialize_with = "real")]
    pub dynatemp_range: Option<f64>,
    /// 0..=5, default 1.
    #[serde(deserialize_with = "real")]
    pub dynatemp_exponent: Option<f64>,
    /// End at the first line break.
    #[serde(deserialize_with = "lenient")]
    pub singleline: Option<bool>,
    /// Trim the incomplete last sentence.
    #[serde(deserialize_with = "lenient")]
    pub frmttriminc: Option<bool>,
    /// Collapse blank lines.
    #[serde(deserialize_with = "lenient")]
    pub frmtrmblln: Option<bool>,
    /// Remove special characters.
    #[serde(deserialize_with = "lenient")]
    pub frmtrmspch: Option<bool>,
    /// Add a space to the start of the input.
    #[serde(deserialize_with = "lenient")]
    pub frmtadsnsp: Option<bool>,
    /// Ban the backend's default bad tokens (the end token among them).
    #[serde(deserialize_with = "lenient")]
    pub use_default_badwordsids: Option<bool>,
    /// Newer servers: seed of the random stream, a number or digits in text.
    #[serde(deserialize_with = "crate::tolerant::seed")]
    pub seed: Option<u64>,
    /// Keys this version does not know (xtc, dry, mirostat, grammar …), as received.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// A text submission that is not a fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Submission {
    /// Continuation of a prompt, without the prompt.
    Prompt {
        /// The text; may be empty.
        generation: String,
        /// `ok`, `censored` or `csam`, all of which count for text.
        state: State,
        /// Seed used, where known.
        seed: Option<i64>,
        /// At most 50 entries.
        gen_metadata: Vec<Metadata>,
    },
    /// Answer of a chat job: the reply's keys besides `id`, in the SDK's shape.
    Chat(Value),
}

impl JobKind for Text {
    type PopRequest = PopRequest;
    type PopResponse = PopResponse;
    type Payload = Payload;
    type Submission = Submission;

    const POP_PATH: &'static str = "/v2/generate/text/pop";
    const SUBMIT_PATH: &'static str = "/v2/generate/text/submit";
    const DEFAULT_TTL: Duration = Duration::from_secs(150);
    const NAME: &'static str = "text";

    fn split(response: PopResponse) -> Popped<Payload> {
        let ids = notices::ids(response.ids, response.id);
        let is_chat = response.chat == Some(true);
        let payload = if is_chat {
            Ok(Payload::Chat(response.payload))
        } else {
            let params = serde_json::from_value(response.payload)
                .map_err(|error| format!("payload: {:?} error", error.classify()));
            params.map(|params| Payload::Prompt(Box::new(params)))
        };
        let job = PoppedJob {
            generations: notices::generations(ids, Vec::new()),
            fault_model: is_chat.then(|| response.model.clone().unwrap_or_default()),
            model: response.model,
            ttl: response.ttl.map(notices::lease),
            payload,
        };
        let jobs = if job.generations.is_empty() {
            Vec::new()
        } else {
            vec![job]
        };
        Popped {
            jobs,
            skipped: notices::counts(response.skipped.unwrap_or_default()),
            messages: notices::messages(response.messages),
        }
    }

    fn submit_body(id: GenerationId, submission: &Submission) -> Value {
        match submission {
            Submission::Prompt {
                generation,
                state,
                seed,
                gen_metadata,
            } => {
                let mut body = json!({ "id": id, "generation": generation, "state": state });
                if let Some(seed) = seed {
                    body["seed"] = json!(seed);
                }
                if !gen_metadata.is_empty() {
                    body["gen_metadata"] = json!(gen_metadata.iter().take(MOST_ENTRIES).collect::<Vec<_>>());
                }
                body
            }
            Submission::Chat(reply) => {
                let mut body = json!({ "id": id });
                if let (Some(body), Some(reply)) = (body.as_object_mut(), reply.as_object()) {
                    body.extend(
                        reply
                            .iter()
                            .filter(|(key, _)| *key != "id")
                            .map(|(key, value)| (key.clone(), value.clone())),
                    );
                }
                body
            }
        }
    }

    fn fault_body(id: GenerationId, told: HandBack<'_>) -> Value {
        match told.model {
            None => json!({ "id": id, "generation": "faulted", "state": "faulted" }),
            Some(model) => {
                json!({ "id": id, "state": "faulted", "model_id": model, "fault_reason": fault_reason(told.cause) })
            }
        }
    }
}

/// The SDK's word for why a chat job is handed back.
fn fault_reason(cause: Cause) -> &'static str {
    match cause {
        Cause::Failed => "generation_error",
        Cause::Overflow => "prompt_overflow",
        Cause::Unbuildable => "unbuildable_grammar",
        Cause::Violation => "tool_violation",
        Cause::Refused => "reply_refused",
    }
}
