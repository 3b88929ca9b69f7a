//! Chat: asked for in OpenAI's shape, handed to workers that declare it, in the shapes of horde-sdk 0.33.
//!
//! The routes of clients are this server's own: those of the real one are not documented.

use serde_json::{Map, Value, json};

use crate::answer::{Answer, Outcome, invalid, refuse};
use crate::chat_needs::{ChatWorker, Needs, tools};
use crate::model::{Kind, Phase, Request};
use crate::schema::Body;
use crate::state::State;
use crate::text::merge;

const MOST_TOOLS: usize = 128;
const MOST_TOOL_BYTES: usize = 256 << 10;
const MOST_TEXT_BYTES: usize = 1 << 20;
const MOST_STOPS: usize = 4;
/// Containers of a schema within each other: itself, two for each of ten levels, and one for the deepest's keywords.
const MOST_CONTAINERS: usize = 22;
const DEFAULT_LENGTH: i64 = 512;
/// Values a job carries where the client set none.
const SAMPLING: [(&str, f64, (f64, f64)); 4] = [
    ("temperature", 1.0, (0.0, 2.0)),
    ("top_p", 1.0, (0.0, 1.0)),
    ("frequency_penalty", 0.0, (-2.0, 2.0)),
    ("presence_penalty", 0.0, (-2.0, 2.0)),
];

impl State {
    /// `POST /v2/generate/chat/async`.
    pub(crate) fn file_chat(&mut self, key: Option<&str>, mut body: Body) -> Outcome {
        let (key, _) = self.user(key)?;
        let models = body.texts("models")?;
        let payload = payload(&body)?;
        let needs = Needs::of(&body.0);
        let said: Vec<&str> = texts(&payload["messages"]).collect();
        // What is paid for reading.
        body.0.insert("prompt".to_owned(), json!(said.join("\n")));
        let id = self.new_id();
        self.requests.push(Request {
            models,
            body: body.0,
            params: payload,
            chat: Some(needs),
            ..Request::filed(&id, Kind::Text, &key)
        });
        Ok(Answer::json(202, &json!({ "id": id, "kudos": 0.0 })))
    }

    /// `GET /v2/generate/chat/status/{id}`.
    pub(crate) fn chat_status(&mut self, id: &str) -> Outcome {
        self.sweep_if_due();
        let request = self.find_request(id, Kind::Text)?.clone();
        if request.chat.is_none() {
            return Err(refuse(
                404,
                "RequestNotFound",
                &format!("Request with ID '{id}' not found."),
            ));
        }
        let (counts, done) = self.counts(&request);
        let replies: Vec<Value> = self
            .delivered(&request)
            .map(|one| {
                let mut reply = json!({ "model": one.model, "worker_name": one.worker });
                merge(&mut reply, one.result.clone().unwrap_or_default());
                reply
            })
            .collect();
        let of_request = |id: &String| self.generations.get(id);
        let faulted = request.generations.iter().filter_map(of_request);
        let reasons: Vec<&String> = faulted
            .filter(|one| one.phase == Phase::Faulted)
            .filter_map(|one| one.fault_reason.as_ref())
            .collect();
        let mut status = json!({
            "done": done, "faulted": request.faulted, "kudos": self.spent(&request), "generations": replies,
            "fault_reasons": reasons,
        });
        merge(&mut status, counts);
        Ok(Answer::ok(&status))
    }
}

/// Whether `worker` may have a chat request, as far as its declaration goes.
pub(crate) fn suits(worker: &ChatWorker, needs: &Needs, request: &Request) -> bool {
    let number = |key: &str| request.params.get(key).and_then(Value::as_i64).unwrap_or(0);
    let model = request.models.is_empty() || request.models.contains(&worker.model);
    let fits = number("max_length") <= worker.max_length && number("max_context_length") <= worker.max_context_length;
    model && fits && worker.meets(needs)
}

/// What `worker` is handed of `request`.
pub(crate) fn handed_out(worker: &ChatWorker, request: &Request) -> Map<String, Value> {
    let mut payload = request.params.clone();
    payload
        .entry("max_context_length")
        .or_insert_with(|| json!(worker.max_context_length));
    payload
}

/// Checks a request as the SDK documents the server to and makes the payload of its jobs.
fn payload(body: &Body) -> Result<Map<String, Value>, Box<Answer>> {
    let messages = body.0.get("messages").and_then(Value::as_array);
    let messages = messages.filter(|list| !list.is_empty() && list.iter().all(Value::is_object));
    let messages = messages.ok_or_else(|| invalid("messages", "is no list of messages"))?;
    let n_bytes: usize = texts(&json!(messages)).map(str::len).sum();
    if n_bytes > MOST_TEXT_BYTES {
        return Err(invalid("messages", "The texts of a chat may be at most 1048576 bytes"));
    }
    let mut payload = Map::from_iter([("messages".to_owned(), json!(messages))]);
    payload.extend(tool_keys(body)?);
    if let Some(format) = body.0.get("response_format").filter(|format| format["type"] != "text") {
        let schema = match format["type"].as_str() {
            Some("json_object") => &Value::Null,
            Some("json_schema") => format.pointer("/json_schema/schema").unwrap_or(&Value::Null),
            _ => return Err(invalid("response_format.type", "is not one of the known types")),
        };
        shallow("response_format.json_schema.schema", schema)?;
        payload.insert("response_format".into(), format.clone());
    }
    let asked = match body.integer("max_completion_tokens", 16..=16_384)? {
        Some(asked) => Some(asked),
        None => body.integer("max_tokens", 16..=16_384)?,
    };
    payload.insert("max_length".into(), json!(asked.unwrap_or(DEFAULT_LENGTH)));
    if let Some(context) = body.integer("max_context_length", 80..=1_048_576)? {
        payload.insert("max_context_length".into(), json!(context));
    }
    for (key, default, (least, most)) in SAMPLING {
        let value = body.0.get(key).map_or(Some(default), Value::as_f64);
        let within = value.filter(|value| (least..=most).contains(value));
        let within = within.ok_or_else(|| invalid(key, &format!("must be between {least} and {most}")))?;
        payload.insert(key.into(), json!(within));
    }
    for (key, default) in [("rep_pen", json!(1.0)), ("top_k", json!(0)), ("min_p", json!(0.0))] {
        payload.insert(key.into(), body.0.get(key).cloned().unwrap_or(default));
    }
    body.integer("n", 1..=1)?;
    match body.0.get("stop") {
        None => {}
        Some(Value::String(stop)) => {
            payload.insert("stop_sequence".into(), json!([stop]));
        }
        Some(_) => {
            let stops = body.texts("stop")?;
            if stops.len() > MOST_STOPS {
                return Err(invalid("stop", "A chat may carry at most 4 stop sequences"));
            }
            payload.insert("stop_sequence".into(), json!(stops));
        }
    }
    for key in ["seed", "reasoning_effort"] {
        payload.extend(body.0.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    Ok(payload)
}

/// The keys about functions; none of them where none may be called. One function that must be called is sent alone.
fn tool_keys(body: &Body) -> Result<Map<String, Value>, Box<Answer>> {
    let mut keys = Map::new();
    let mut offered: Vec<&Value> = tools(&body.0).collect();
    if offered.len() > MOST_TOOLS {
        return Err(invalid("tools", "A chat may define at most 128 tools"));
    }
    let choice = body.0.get("tool_choice").unwrap_or(&Value::Null);
    let form = body.0.get("response_format").unwrap_or(&Value::Null);
    if json!({ "tools": offered, "tool_choice": choice, "response_format": form })
        .to_string()
        .len()
        > MOST_TOOL_BYTES
    {
        return Err(invalid(
            "tools",
            "Tools and response format may take at most 262144 bytes",
        ));
    }
    for (index, tool) in offered.iter().enumerate() {
        let parameters = tool.pointer("/function/parameters").unwrap_or(&Value::Null);
        shallow(&format!("tools[{index}].function.parameters"), parameters)?;
        if name_of(tool).is_none() {
            return Err(invalid(
                &format!("tools[{index}].function.name"),
                "is a required property",
            ));
        }
    }
    let choice = match choice {
        Value::Null => None,
        Value::String(word) if ["none", "auto", "required"].contains(&word.as_str()) => Some(word.as_str()),
        Value::Object(_) => {
            let wanted = choice.pointer("/function/name").and_then(Value::as_str);
            offered.retain(|tool| name_of(tool) == wanted);
            Some("required")
        }
        _ => return Err(invalid("tool_choice", "is not one of the known choices")),
    };
    if choice == Some("none") {
        return Ok(keys);
    }
    if offered.is_empty() {
        return match choice {
            Some("required") => Err(invalid("tool_choice", "There is no such tool")),
            _ => Ok(keys),
        };
    }
    keys.insert("tools".into(), json!(offered));
    keys.extend(choice.map(|choice| ("tool_choice".to_owned(), json!(choice))));
    if body.0.contains_key("parallel_tool_calls") {
        let parallel = body.flag("parallel_tool_calls", true)?;
        keys.insert("parallel_tool_calls".into(), json!(parallel));
    }
    Ok(keys)
}

/// The name of a function that is offered.
pub(crate) fn name_of(tool: &Value) -> Option<&str> {
    tool.pointer("/function/name")?.as_str()
}

/// Refuses a schema that is deeper than ten levels below its root.
fn shallow(path: &str, schema: &Value) -> Result<(), Box<Answer>> {
    let mut pending = vec![(schema, 1)];
    while let Some((value, depth)) = pending.pop() {
        let children: Vec<&Value> = match value {
            Value::Object(map) => map.values().collect(),
            Value::Array(list) => list.iter().collect(),
            _ => continue,
        };
        if depth > MOST_CONTAINERS {
            return Err(invalid(path, "A JSON Schema may nest at most 10 levels below its root"));
        }
        pending.extend(children.into_iter().map(|child| (child, depth + 1)));
    }
    Ok(())
}

/// All that is said in messages, the calls of functions among it.
fn texts(messages: &Value) -> impl Iterator<Item = &str> {
    messages.as_array().into_iter().flatten().flat_map(|message| {
        let whole = message["content"].as_str();
        let parts = message["content"].as_array().into_iter().flatten();
        let parts = parts.filter_map(|part| part["text"].as_str());
        let calls = message["tool_calls"].as_array().into_iter().flatten();
        let calls = calls.flat_map(|call| ["/function/name", "/function/arguments"].map(|at| call.pointer(at)));
        whole
            .into_iter()
            .chain(parts)
            .chain(calls.filter_map(|text| text?.as_str()))
    })
}
