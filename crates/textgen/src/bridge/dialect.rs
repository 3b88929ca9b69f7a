//! What the two kinds of backends want to be told and what they say. Only keys named here ever reach a backend.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Usage;
use crate::engine::TextError;
use crate::request::{Constraint, Finish, TextRequest};
use crate::sampler::Step;
use crate::{format, gbnf};

/// A backend's language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// KoboldCpp and what speaks its API.
    Kobold,
    /// `/v1/completions`.
    OpenAi,
}

/// What a backend says of itself.
#[derive(Debug, PartialEq)]
pub(super) struct About {
    pub(super) model: String,
    pub(super) program: Option<String>,
    pub(super) context_tokens: Option<u32>,
    pub(super) max_length: Option<u32>,
    /// It tells no more to somebody without its key.
    pub(super) is_locked: bool,
}

/// One event of a stream.
#[derive(Debug, PartialEq)]
pub(super) enum Event {
    /// A part of the answer.
    Piece(Piece),
    /// Nothing will follow.
    Over,
    /// The backend gave the request up.
    Failed,
    /// No part of the answer.
    Other,
}

/// A part of an answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) finish: Option<Finish>,
    /// Whether it says how the answer ends, or that it does not yet.
    pub(super) tells_end: bool,
    pub(super) count: Count,
}

/// Tokens, as far as a backend counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Count {
    /// Of the answer.
    pub(super) written: Option<u32>,
    /// Of the prompt.
    pub(super) read: Option<u32>,
}

impl Count {
    /// The later word counts.
    pub(super) fn learn(&mut self, later: Self) {
        self.written = later.written.or(self.written);
        self.read = later.read.or(self.read);
    }
}

/// What KoboldCpp calls its model to somebody without its key.
const LOCKED_MODEL: &str = "koboldcpp/protected-model";
/// More than any vocabulary holds: off for every backend, of which some write 0 for it, some -1, and some refuse one of them.
const TOP_K_OFF: u32 = 1 << 20;

impl Dialect {
    pub(super) fn generate_path(self) -> &'static str {
        match self {
            Self::Kobold => "api/extra/generate/stream",
            Self::OpenAi => "v1/completions",
        }
    }

    /// Routes to ask before [`Dialect::about`].
    pub(super) fn questions(self) -> &'static [&'static str] {
        match self {
            Self::Kobold => &[
                "api/v1/model",
                "api/extra/true_max_context_length",
                "api/v1/config/max_context_length",
                "api/v1/config/max_length",
                "api/extra/version",
            ],
            Self::OpenAi => &["v1/models", "v1/model", "props"],
        }
    }

    /// Where it tells how it is used.
    pub(super) fn usage_path(self) -> Option<&'static str> {
        match self {
            Self::Kobold => Some("api/extra/perf"),
            Self::OpenAi => None,
        }
    }

    /// What the answers to [`Dialect::questions`] say; `None` where no model is named.
    pub(super) fn about(self, answers: &[Option<Value>]) -> Option<About> {
        let at = |index: usize, pointer: &str| answers.get(index)?.as_ref()?.pointer(pointer);
        let number = |value: Option<&Value>| value?.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        let model = match self {
            Self::Kobold => at(0, "/result"),
            Self::OpenAi => at(0, "/data/0/id"),
        };
        let model = model?.as_str()?.trim().chars().take(255).collect::<String>();
        let (context_tokens, max_length) = match self {
            Self::Kobold => {
                // What the model holds, and what its owner set for the Horde (`--hordemaxctx`, `--hordegenlen`).
                let told = [number(at(1, "/value")), number(at(2, "/value"))];
                (told.into_iter().flatten().min(), number(at(3, "/value")))
            }
            Self::OpenAi => {
                // vLLM and Aphrodite; TabbyAPI; llama-server (per slot).
                let told = number(at(0, "/data/0/max_model_len"))
                    .or_else(|| number(at(1, "/parameters/max_seq_len")))
                    .or_else(|| number(at(2, "/default_generation_settings/n_ctx")));
                (told, None)
            }
        };
        let word = |index, pointer| {
            at(index, pointer)
                .and_then(Value::as_str)
                .filter(|word| word.len() < 64)
        };
        let program = match self {
            Self::Kobold => word(4, "/result").map(|name| [name, word(4, "/version").unwrap_or_default()].join(" ")),
            Self::OpenAi => word(0, "/data/0/owned_by").map(str::to_owned),
        };
        (!model.is_empty() && model != "inactive").then_some(About {
            is_locked: model == LOCKED_MODEL,
            program,
            model,
            context_tokens,
            max_length,
        })
    }

    /// The body of a request, every key of it from this list.
    pub(super) fn body(self, request: &TextRequest, model: &str, seed: u64, tag: &str) -> Value {
        let s = &request.sampling;
        let prompt = format::input(&request.prompt, request.formatting);
        // Backends keep seeds in 31 or 32 bits.
        let seed = seed & 0x7fff_ffff;
        let mut body = match self {
            Self::Kobold => json!({
                "prompt": prompt, "max_length": request.max_length, "max_context_length": request.max_context_length,
                "temperature": s.temperature, "dynatemp_range": s.dynatemp_range,
                "dynatemp_exponent": s.dynatemp_exponent, "smoothing_factor": s.smoothing_factor, "top_k": s.top_k,
                "top_a": s.top_a, "top_p": s.top_p, "min_p": s.min_p, "tfs": s.tfs, "typical": s.typical,
                "rep_pen": s.rep_pen, "rep_pen_range": s.rep_pen_range, "rep_pen_slope": s.rep_pen_slope,
                "presence_penalty": s.presence_penalty, "sampler_order": s.order.iter().map(step).collect::<Vec<_>>(),
                "xtc_threshold": s.xtc.threshold, "xtc_probability": s.xtc.probability,
                "dry_multiplier": s.dry.multiplier, "dry_base": s.dry.base, "dry_allowed_length": s.dry.allowed_length,
                "dry_penalty_last_n": s.dry.range, "dry_sequence_breakers": s.dry.breakers,
                "stop_sequence": request.stop, "use_default_badwordsids": request.ban_eos, "sampler_seed": seed,
                "genkey": tag, "quiet": true, "trim_stop": false,
            }),
            // Without `stop`: these backends would cut the stop text off, and which one it was would not be known.
            Self::OpenAi => json!({
                "model": model, "prompt": prompt, "max_tokens": request.max_length, "stream": true, "n": 1,
                "temperature": s.temperature, "top_p": s.top_p.max(0.001),
                "top_k": if s.top_k == 0 { TOP_K_OFF } else { s.top_k }, "min_p": s.min_p, "top_a": s.top_a,
                "tfs": s.tfs, "typical_p": s.typical,
                // These backends know OpenAI's penalties alone.
                "presence_penalty": s.presence_penalty + s.answer.presence, "frequency_penalty": s.answer.frequency,
                "smoothing_factor": s.smoothing_factor, "ignore_eos": request.ban_eos, "seed": seed,
                // vLLM, Aphrodite and TabbyAPI; llama-server and llama-cpp-python.
                "repetition_penalty": s.rep_pen, "repeat_penalty": s.rep_pen, "repeat_last_n": s.rep_pen_range,
                "stream_options": { "include_usage": true },
                "truncate_prompt_tokens": request.max_context_length.saturating_sub(request.max_length).max(1),
            }),
        };
        if let Some(mirostat) = s.mirostat {
            body["mirostat"] = json!(if mirostat.second { 2 } else { 1 });
            body["mirostat_mode"] = body["mirostat"].clone();
            body["mirostat_tau"] = json!(mirostat.tau);
            body["mirostat_eta"] = json!(mirostat.eta);
        }
        if !s.logit_bias.is_empty() {
            let biases = s
                .logit_bias
                .iter()
                .map(|(token, bias)| (token.to_string(), json!(bias)));
            body["logit_bias"] = Value::Object(biases.collect());
        }
        // KoboldCpp and llama-server keep to a grammar; others take no notice of the key.
        match &request.constraint {
            Some(Constraint::Gbnf(grammar)) => body["grammar"] = json!(grammar),
            Some(Constraint::JsonSchema(schema)) => body["json_schema"] = schema.clone(),
            None => {}
        }
        body
    }

    /// Where and how a running request is ended, where the dialect has a word for it.
    pub(super) fn abort(self, tag: &str) -> Option<(&'static str, Value)> {
        match self {
            Self::Kobold => Some(("api/extra/abort", json!({ "genkey": tag }))),
            Self::OpenAi => None,
        }
    }

    /// What one event of the stream says.
    pub(super) fn event(self, event: &str) -> Event {
        if event == "[DONE]" {
            return Event::Over;
        }
        let Ok(value) = serde_json::from_str::<Value>(event) else {
            return Event::Other;
        };
        if value.get("error").is_some_and(|error| !error.is_null()) {
            return Event::Failed;
        }
        let (text, finish) = match self {
            Self::Kobold => (value.get("token"), value.get("finish_reason")),
            Self::OpenAi => (
                value.pointer("/choices/0/text"),
                value.pointer("/choices/0/finish_reason"),
            ),
        };
        let count = |at: &str| value.pointer(at)?.as_u64().and_then(|count| u32::try_from(count).ok());
        Event::Piece(Piece {
            text: text.and_then(Value::as_str).unwrap_or_default().to_owned(),
            tells_end: finish.is_some(),
            // KoboldCpp calls everything but the model's own end `length`, a stop text too, and `null` what goes on.
            finish: match finish.and_then(Value::as_str) {
                Some("length") => Some(Finish::Length),
                Some("stop" | "eos" | "eos_token") => Some(Finish::Eos),
                _ => None,
            },
            count: Count {
                written: count("/usage/completion_tokens"),
                read: count("/usage/prompt_tokens"),
            },
        })
    }

    /// How a text's tokens are counted, where the dialect has a route for it.
    pub(super) fn count(self, text: &str, model: &str) -> Option<(&'static str, Value)> {
        match self {
            Self::Kobold => Some(("api/extra/tokencount", json!({ "prompt": text, "special": false }))),
            // llama-server; vLLM and Aphrodite.
            Self::OpenAi => Some(("tokenize", json!({ "content": text, "prompt": text, "model": model }))),
        }
    }

    /// What the answer to that says.
    pub(super) fn counted(self, answer: &Value) -> Option<u32> {
        let listed = answer.get("tokens").and_then(Value::as_array).map(Vec::len);
        let count = match self {
            Self::Kobold => answer.get("value"),
            Self::OpenAi => answer.get("count"),
        };
        let count = count.and_then(Value::as_u64).or(listed.map(|count| count as u64))?;
        u32::try_from(count).ok()
    }

    /// Whether it cuts a prompt from the left where that is too long, and does not refuse it or write less for it.
    pub(super) fn cuts_prompts(self) -> bool {
        self == Self::Kobold
    }

    /// Whether it says behind an answer's end how much was counted.
    pub(super) fn counts_at_the_end(self) -> bool {
        self == Self::OpenAi
    }

    /// Whether its answer's head may come while the request still waits for others.
    pub(super) fn answers_from_the_queue(self) -> bool {
        self == Self::OpenAi
    }

    /// Refuses what a backend would not keep to without saying so: KoboldCpp ignores a grammar that it cannot read.
    ///
    /// # Errors
    /// [`TextError::Grammar`].
    pub(super) fn check(self, request: &TextRequest) -> Result<(), TextError> {
        match (&request.constraint, self) {
            (Some(Constraint::Gbnf(grammar)), _) => gbnf::to_lark(grammar).map(drop).map_err(TextError::Grammar),
            (Some(Constraint::JsonSchema(_)), Self::Kobold) => {
                Err(TextError::Grammar("this backend takes no schemas".into()))
            }
            _ => Ok(()),
        }
    }
}

/// Reads KoboldCpp's `/api/extra/perf`: `idletime` in seconds since the last request of anybody, `queue`, `idle` (0 or 1).
/// `None` from older versions, which have no `idletime`.
pub(super) fn usage(answer: &Value) -> Option<Usage> {
    let idle = Duration::try_from_secs_f64(answer.get("idletime")?.as_f64()?.max(0.0)).ok()?;
    let number = |key: &str| answer.get(key).and_then(Value::as_f64);
    Some(Usage {
        idle,
        busy: number("idle") == Some(0.0),
        waiting: number("queue").map_or(0, |count| count.max(0.0) as u64),
    })
}

/// The number of a step in `sampler_order`.
fn step(step: &Step) -> u8 {
    match step {
        Step::TopK => 0,
        Step::TopA => 1,
        Step::TopP => 2,
        Step::Tfs => 3,
        Step::Typical => 4,
        Step::Temperature => 5,
        Step::RepPen => 6,
    }
}
