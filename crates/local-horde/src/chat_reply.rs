//! What a worker hands in for a chat job: a reply or a fault, in the shapes of horde-sdk 0.33. What breaks them is refused.

use serde_json::{Map, Value, json};

use crate::answer::{Answer, Outcome, invalid};
use crate::chat::name_of;
use crate::model::{Phase, Request};
use crate::schema::Body;
use crate::state::State;

const FAULT_REASONS: [&str; 5] = [
    "prompt_overflow",
    "unbuildable_grammar",
    "tool_violation",
    "reply_refused",
    "generation_error",
];
const FINISHES: [&str; 4] = ["stop", "length", "content_filter", "tool_calls"];
const LONGEST_NATIVE_FINISH: usize = 32;

impl State {
    /// The request that a generation was handed out for, if it is a chat.
    pub(crate) fn chat_of(&self, id: &str) -> Option<Request> {
        let one = self.generations.get(id)?;
        let request = self.requests.iter().find(|request| request.id == one.request)?;
        request.chat.is_some().then(|| request.clone())
    }

    /// `POST /v2/generate/text/submit` for a chat job.
    pub(crate) fn submit_chat(&mut self, id: &str, key: Option<&str>, body: &Body, request: &Request) -> Outcome {
        let handed_out_for = self.generations.get(id).map(|one| one.model.clone());
        if handed_out_for != Some(body.required_text("model_id")?) {
            return Err(invalid("model_id", "is not the model this job was handed out for"));
        }
        match body.text("state")?.as_deref() {
            None => self.take_reply(id, key, body, request),
            Some("faulted") => self.take_fault(id, key, body),
            Some(_) => Err(invalid("state", "is not one of the known states")),
        }
    }

    fn take_fault(&mut self, id: &str, key: Option<&str>, body: &Body) -> Outcome {
        let reason = body.required_text("fault_reason")?;
        if !FAULT_REASONS.contains(&reason.as_str()) {
            return Err(invalid("fault_reason", "is not one of the known reasons"));
        }
        let reward = self.close(id, key, true, |_| {})?;
        if let Some(one) = self.generations.get_mut(id).filter(|one| one.phase == Phase::Faulted) {
            one.fault_reason = Some(reason.clone());
        }
        if let Some(entry) = self.ledger.generations.get_mut(id) {
            entry.fault_reason = Some(reason);
        }
        Ok(Answer::ok(&json!({ "reward": reward })))
    }

    fn take_reply(&mut self, id: &str, key: Option<&str>, body: &Body, request: &Request) -> Outcome {
        // Not as strict as elsewhere: its content may be null.
        let Some(Value::Object(message)) = body.0.get("message") else {
            return Err(invalid("message", "is not of type 'object'"));
        };
        let text = checked(message, &request.params)?;
        let finish = body.required_text("finish_reason")?;
        if !FINISHES.contains(&finish.as_str()) {
            return Err(invalid("finish_reason", "is not one of the known reasons"));
        }
        if finish == "tool_calls" && !message.contains_key("tool_calls") {
            return Err(invalid("finish_reason", "`tool_calls` without any"));
        }
        let format = request.params.get("response_format");
        let is_json = serde_json::from_str::<Value>(&text).is_ok();
        if format.is_some() && finish == "stop" && !is_json {
            return Err(invalid("message.content", "is not JSON, which was asked for"));
        }
        if let Some(native) = body.text("native_finish_reason")?
            && native.chars().count() > LONGEST_NATIVE_FINISH
        {
            return Err(invalid("native_finish_reason", "is longer than 32 characters"));
        }
        for key in ["prompt_tokens", "completion_tokens", "reasoning_tokens"] {
            body.integer(key, 0..=i64::MAX)?;
        }
        let result = json!({
            "message": message, "finish_reason": finish, "prompt_tokens": body.0.get("prompt_tokens"),
            "completion_tokens": body.0.get("completion_tokens"),
        });
        self.price_text(id, &text);
        let reward = self.close(id, key, false, |horde| {
            if let Some(one) = horde.generations.get_mut(id) {
                one.result = Some(result);
            }
        })?;
        Ok(Answer::ok(&json!({ "reward": reward })))
    }
}

/// Holds a reply's message against its shape and against what was asked for; returns what was written, for its price.
fn checked(message: &Map<String, Value>, asked: &Map<String, Value>) -> Result<String, Box<Answer>> {
    let no = |key: &str, why: &str| Err(invalid(&format!("message.{key}"), why));
    if message.get("role") != Some(&json!("assistant")) {
        return no("role", "is not `assistant`");
    }
    let known = ["role", "content", "tool_calls", "reasoning_content"];
    if let Some(key) = message.keys().find(|key| !known.contains(&key.as_str())) {
        return no(key, "is not a key of a reply");
    }
    if message
        .get("reasoning_content")
        .is_some_and(|thought| !thought.is_string())
    {
        return no("reasoning_content", "is not of type 'string'");
    }
    let calls = message.get("tool_calls").and_then(Value::as_array);
    let content = match message.get("content") {
        Some(Value::String(content)) => content.as_str(),
        Some(Value::Null) if calls.is_some_and(|calls| !calls.is_empty()) => "",
        _ => return no("content", "is not of type 'string', and there are no calls"),
    };
    if message.contains_key("tool_calls") && calls.is_none_or(Vec::is_empty) {
        return no("tool_calls", "is no list of calls");
    }
    let offered: Vec<&str> = crate::chat_needs::tools(asked).filter_map(name_of).collect();
    for call in calls.into_iter().flatten() {
        let text = |at: &str| call.pointer(at).and_then(Value::as_str);
        let name = text("/function/name");
        if text("/id").is_none() || text("/type") != Some("function") || name.is_none() {
            return no("tool_calls", "is a call without an id, a type or a name");
        }
        if !name.is_some_and(|name| offered.contains(&name)) {
            return no("tool_calls", "calls what was not offered");
        }
        let arguments = text("/function/arguments").and_then(|text| serde_json::from_str::<Value>(text).ok());
        if !arguments.is_some_and(|arguments| arguments.is_object()) {
            return no("tool_calls", "has arguments that are no JSON object in text");
        }
    }
    if asked.get("tool_choice") == Some(&json!("required")) && calls.is_none() {
        return no("tool_calls", "A call was asked for");
    }
    let cut_calls = calls.map(|calls| json!(calls).to_string()).unwrap_or_default();
    Ok(format!("{content}{cut_calls}"))
}
