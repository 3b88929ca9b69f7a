//! What a worker declares about chat jobs on a pop, and what a chat request needs of a worker (horde-sdk 0.33).

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::answer::{Answer, invalid};
use crate::schema::Body;

/// What a chat request needs declared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Needs {
    /// Capabilities and guarantees, by their words on the wire.
    pub declarations: BTreeSet<&'static str>,
    /// The temperature, where functions are offered: some workers cap it then.
    pub tools_temperature: Option<f64>,
}

/// What one pop declares.
#[derive(Clone, Debug)]
pub(crate) struct Declared {
    /// Whether prompts are taken, too.
    pub prompts: bool,
    /// `None` where no chat jobs are taken.
    pub chat: Option<ChatWorker>,
}

/// A worker that takes chat jobs.
#[derive(Clone, Debug)]
pub(crate) struct ChatWorker {
    pub model: String,
    pub max_length: i64,
    pub max_context_length: i64,
    features: BTreeSet<String>,
    tools_max_temperature: Option<f64>,
}

impl Needs {
    /// Of a request in OpenAI's shape. A value at its default needs nothing; functions that may not be called are not sent.
    pub(crate) fn of(body: &Map<String, Value>) -> Self {
        let is = |key: &str, value: &str| body.get(key).and_then(Value::as_str) == Some(value);
        let mut declarations = BTreeSet::new();
        for key in ["seed", "reasoning_effort"] {
            if body.contains_key(key) {
                declarations.insert(key);
            }
        }
        for key in ["presence_penalty", "frequency_penalty"] {
            if body.get(key).and_then(Value::as_f64).is_some_and(|value| value != 0.0) {
                declarations.insert(key);
            }
        }
        let messages = || body.get("messages").and_then(Value::as_array).into_iter().flatten();
        let parts = |message: &Value| message["content"].as_array().cloned().unwrap_or_default();
        if messages().any(|message| parts(message).iter().any(|part| part["type"] == "image_url")) {
            declarations.insert("vision");
        }
        let sends_tools = tools(body).next().is_some() && !is("tool_choice", "none");
        let has_tool_turn = messages().any(|message| message["role"] == "tool" || message["tool_calls"].is_array());
        if sends_tools || has_tool_turn {
            declarations.insert("tools");
        }
        let format = body.get("response_format").unwrap_or(&Value::Null);
        let form = match format["type"].as_str() {
            Some("json_object") => Some("json_object"),
            Some("json_schema") => Some("json_schema"),
            _ => None,
        };
        declarations.extend(form);
        if form.is_some() && sends_tools {
            declarations.insert("tools_with_response_format");
        }
        if body
            .get("horde")
            .is_none_or(|horde| horde["conformance"] != "best_effort")
        {
            declarations.insert("prompt_overflow_refused");
            let choice = body.get("tool_choice").unwrap_or(&Value::Null);
            if sends_tools && !choice.is_null() && choice != "auto" {
                declarations.insert("tool_choice_enforced");
            }
            if form == Some("json_schema") && format.pointer("/json_schema/strict") == Some(&Value::Bool(true)) {
                declarations.insert("structured_output_enforced");
            }
        }
        let temperature = body.get("temperature").and_then(Value::as_f64).unwrap_or(1.0);
        Self {
            declarations,
            tools_temperature: sends_tools.then_some(temperature),
        }
    }
}

/// The functions a request offers.
pub(crate) fn tools(body: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    body.get("tools").and_then(Value::as_array).into_iter().flatten()
}

impl Declared {
    /// Reads a pop. Words that are not known here are kept: they satisfy nothing.
    pub(crate) fn of(body: &Body, models: &[String]) -> Result<Self, Box<Answer>> {
        let prompts = body.flag("prompt_jobs", true)?;
        if !body.flag("chat_jobs", false)? {
            if !prompts {
                return Err(invalid(
                    "prompt_jobs",
                    "A worker without prompt jobs has to take chat jobs",
                ));
            }
            return Ok(Self { prompts, chat: None });
        }
        let model = body.required_text("model_id")?;
        if !models.contains(&model) {
            return Err(invalid("model_id", "is not one of the worker's models"));
        }
        let features: BTreeSet<String> = body.texts("chat_features")?.into_iter().collect();
        let transports = body.texts("image_transports")?;
        if features.contains("vision") && !transports.iter().any(|way| way == "url" || way == "base64") {
            return Err(invalid("image_transports", "Vision needs `url` or `base64`"));
        }
        if !body.0.contains_key("chat_limits") {
            return Err(invalid("chat_limits", "'chat_limits' is a required property"));
        }
        let limits = Body(body.object("chat_limits")?);
        let limit = |key: &str| {
            let missing = || invalid(&format!("chat_limits.{key}"), "is a required property");
            limits.integer(key, 1..=i64::MAX)?.ok_or_else(missing)
        };
        Ok(Self {
            prompts,
            chat: Some(ChatWorker {
                max_length: limit("max_length")?,
                max_context_length: limit("max_context_length")?,
                tools_max_temperature: limits.0.get("tools_max_temperature").and_then(Value::as_f64),
                features,
                model,
            }),
        })
    }
}

impl ChatWorker {
    /// Whether it declares all that is needed.
    pub(crate) fn meets(&self, needs: &Needs) -> bool {
        let declares = needs.declarations.iter().all(|word| self.features.contains(*word));
        let too_warm = match (needs.tools_temperature, self.tools_max_temperature) {
            (Some(wanted), Some(most)) => wanted > most,
            _ => false,
        };
        declares && !too_warm
    }
}
