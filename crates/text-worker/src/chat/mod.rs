//! Chat jobs: messages become a request, an answer becomes the reply, in the SDK's shapes (horde-sdk 0.33).

mod reply;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textgen::chat::ChatTemplate;
use textgen::sampler::{AnswerPenalties, Sampling};
use textgen::{Constraint, TextError, TextRequest};
use worker_runtime::backend::{Cause, Fault};

/// What this worker does with chat jobs; nothing that is not kept to.
pub const FEATURES: [&str; 10] = [
    "frequency_penalty",
    "json_object",
    "json_schema",
    "presence_penalty",
    "prompt_overflow_refused",
    "seed",
    "single_tool_call_enforced",
    "structured_output_enforced",
    "tool_choice_enforced",
    "tools",
];

/// What it does besides where the model's template takes notice of it.
pub const EFFORT: &str = "reasoning_effort";
/// How much a model may be asked to think.
const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

/// Bounds of the wire; a job beyond them is not from the Horde.
const MAX_MESSAGES: usize = 4_096;
const MAX_TEXT_BYTES: usize = 1 << 20;
const MAX_TOOLS: usize = 128;
const MAX_TOOLS_BYTES: usize = 256 << 10;
const MAX_STOPS: usize = 4;

/// A conversation with what its answer must be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chat {
    /// The Horde's name of the model.
    pub model_id: String,
    /// `role` and `content`, the latter always text; tool calls and their results as they came.
    pub messages: Vec<Value>,
    /// Functions in OpenAI's shape.
    pub tools: Vec<Value>,
    /// Whether the answer must be a call.
    pub must_call: bool,
    /// How much the model is to think, where that was asked for.
    #[serde(default)]
    pub effort: Option<String>,
}

/// The request and the conversation of a chat job's payload. The prompt is written later, where the model is.
///
/// # Errors
/// Says in words what is missing or out of bounds; holds nothing of the conversation.
pub fn read(payload: &Value, model_id: &str) -> Result<(TextRequest, Chat), Fault> {
    let list = |key: &str| payload[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let messages = list("messages").iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        return Err(Fault::of_job(format!("a chat of {} messages", messages.len())));
    }
    let n_bytes: usize = messages.iter().map(|message| message.to_string().len()).sum();
    if n_bytes > 2 * MAX_TEXT_BYTES {
        return Err(Fault::of_job(format!("messages of {n_bytes} bytes")));
    }
    let no_tools = payload["tool_choice"] == "none";
    let tools: Vec<Value> = if no_tools { Vec::new() } else { list("tools").to_vec() };
    let tools_bytes: usize = tools.iter().map(|tool| tool.to_string().len()).sum();
    if tools.len() > MAX_TOOLS || tools_bytes > MAX_TOOLS_BYTES {
        return Err(Fault::of_job(format!("{} tools of {tools_bytes} bytes", tools.len())));
    }
    if tools.iter().any(|tool| name_of(tool).is_none()) {
        return Err(Fault::of_job("a tool without a function's name"));
    }
    let choice = &payload["tool_choice"];
    let forced = choice.pointer("/function/name").and_then(Value::as_str);
    let must_call = !tools.is_empty() && (choice == "required" || forced.is_some());
    let constraint = if must_call {
        Some(Constraint::JsonSchema(calls(&tools, forced)))
    } else {
        structure(&payload["response_format"])?
    };
    let real = |key: &str, default: f32| payload[key].as_f64().map_or(default, |value| value as f32);
    let whole = |key: &str| {
        payload[key]
            .as_u64()
            .map(|value| u32::try_from(value).unwrap_or(u32::MAX))
    };
    let default = Sampling::default();
    let request = TextRequest {
        sampling: Sampling {
            temperature: real("temperature", default.temperature),
            top_p: real("top_p", 1.0),
            min_p: real("min_p", 0.0),
            top_k: whole("top_k").unwrap_or(0),
            rep_pen: real("rep_pen", 1.0),
            answer: AnswerPenalties {
                presence: real("presence_penalty", 0.0),
                frequency: real("frequency_penalty", 0.0),
            },
            ..Sampling::neutral()
        },
        stop: list("stop_sequence")
            .iter()
            .take(MAX_STOPS)
            .filter_map(|stop| stop.as_str().map(str::to_owned))
            .collect(),
        include_stop: false,
        seed: payload["seed"]
            .as_u64()
            .or(payload["seed"].as_i64().map(i64::unsigned_abs)),
        refuse_overflow: true,
        constraint,
        ..TextRequest::new(
            String::new(),
            whole("max_length").unwrap_or(512),
            whole("max_context_length").unwrap_or(2_048),
        )
    };
    let effort = payload[EFFORT].as_str();
    if effort.is_some_and(|effort| !EFFORTS.contains(&effort)) {
        tracing::info!("a chat asks for an effort that is not known; it is served without");
    }
    let chat = Chat {
        model_id: model_id.to_owned(),
        messages,
        tools,
        must_call,
        effort: effort.filter(|effort| EFFORTS.contains(effort)).map(str::to_owned),
    };
    Ok((request.clamped(), chat))
}

/// One message with its content as text; the parts of a list are put together.
fn message(message: &Value) -> Result<Value, Fault> {
    let role = message["role"].as_str().unwrap_or_default();
    if !["system", "developer", "user", "assistant", "tool"].contains(&role) {
        return Err(Fault::of_job("a message of an unknown role"));
    }
    let content = match &message["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            if parts.iter().any(|part| part["type"] != "text") {
                return Err(Fault::of_job("a message with a picture or a sound"));
            }
            let texts = parts.iter().filter_map(|part| part["text"].as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        Value::Null => String::new(),
        _ => return Err(Fault::of_job("a message without text")),
    };
    let mut out = message.as_object().cloned().unwrap_or_default();
    // Templates know no developers.
    let role = if role == "developer" { "system" } else { role };
    out.insert("role".into(), json!(role));
    out.insert("content".into(), json!(content));
    Ok(Value::Object(out))
}

fn name_of(tool: &Value) -> Option<&str> {
    tool.pointer("/function/name")?.as_str().filter(|name| !name.is_empty())
}

/// The schema of a call to one of the functions.
fn calls(tools: &[Value], forced: Option<&str>) -> Value {
    let wanted = tools
        .iter()
        .filter(|tool| forced.is_none_or(|name| name_of(tool) == Some(name)));
    let each = wanted.map(|tool| {
        let parameters = tool.pointer("/function/parameters").filter(|schema| schema.is_object());
        json!({
            "type": "object",
            "properties": {
                "name": { "const": name_of(tool) },
                "arguments": parameters.cloned().unwrap_or_else(|| json!({ "type": "object" })),
            },
            "required": ["name", "arguments"],
            "additionalProperties": false,
        })
    });
    json!({ "anyOf": each.collect::<Vec<_>>() })
}

fn structure(format: &Value) -> Result<Option<Constraint>, Fault> {
    let unbuildable = |why: &str| Fault::of_job(why).because(Cause::Unbuildable);
    Ok(match format["type"].as_str() {
        None | Some("text") => None,
        Some("json_object") => Some(Constraint::JsonSchema(json!({ "type": "object" }))),
        Some("json_schema") => {
            let schema = format
                .pointer("/json_schema/schema")
                .filter(|schema| schema.is_object());
            Some(Constraint::JsonSchema(
                schema
                    .cloned()
                    .ok_or_else(|| unbuildable("a response format without a schema"))?,
            ))
        }
        Some(_) => return Err(unbuildable("an unknown response format")),
    })
}

impl Chat {
    /// The prompt, by the model's own template. One that knows no functions is told of them in words.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn prompt(&self, template: &ChatTemplate) -> Result<String, TextError> {
        let effort = self.effort.as_deref();
        if self.tools.is_empty() || template.knows_tools() {
            return template.render_with(&self.messages, &self.tools, effort);
        }
        let functions: Vec<&Value> = self.tools.iter().filter_map(|tool| tool.get("function")).collect();
        let told = format!(
            "You can call these functions:\n{}\nTo call one, answer only with JSON such as {}.",
            json!(functions),
            json!({ "name": "NAME", "arguments": {} })
        );
        let mut messages = self.messages.clone();
        match messages.first_mut() {
            Some(first) if first["role"] == "system" => {
                let said = first["content"].as_str().unwrap_or_default();
                first["content"] = json!(format!("{said}\n\n{told}"));
            }
            _ => messages.insert(0, json!({ "role": "system", "content": told })),
        }
        template.render_with(&messages, &[], effort)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The documented example of a job.
    pub(crate) fn payload() -> Value {
        json!({
            "messages": [
                { "role": "system", "content": "Be brief." },
                { "role": "user", "content": "What is the weather in Rome?" }
            ],
            "tools": [{ "type": "function", "function": {
                "name": "weather",
                "parameters": { "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] }
            } }],
            "tool_choice": "required", "parallel_tool_calls": false, "max_length": 256, "max_context_length": 8192,
            "temperature": 0.7, "top_p": 1.0, "frequency_penalty": 0.5, "presence_penalty": 0.25, "rep_pen": 1.0,
            "top_k": 0, "min_p": 0.0, "stop_sequence": ["</s>"], "seed": 7, "reasoning_effort": "none"
        })
    }

    #[test]
    fn a_job_is_read_whole() {
        let (request, chat) = read(&payload(), "koboldcpp/Lite").unwrap();
        assert_eq!(
            (request.max_length, request.max_context_length, request.seed),
            (256, 8192, Some(7))
        );
        assert_eq!((request.sampling.temperature, request.sampling.rep_pen), (0.7, 1.0));
        // OpenAI's meaning, not KoboldCpp's.
        let penalties = AnswerPenalties {
            presence: 0.25,
            frequency: 0.5,
        };
        assert_eq!(
            (request.sampling.answer, request.sampling.presence_penalty),
            (penalties, 0.0)
        );
        assert_eq!(chat.effort.as_deref(), Some("none"));
        assert!(request.refuse_overflow && !request.include_stop && chat.must_call);
        let Some(Constraint::JsonSchema(schema)) = &request.constraint else {
            panic!("a call is a schema");
        };
        assert_eq!(schema["anyOf"][0]["properties"]["name"]["const"], "weather");
        let mut free = payload();
        free["tool_choice"] = json!("none");
        free["reasoning_effort"] = json!("<|im_end|>");
        let (request, chat) = read(&free, "m").unwrap();
        assert_eq!(chat.effort, None, "no word of the wire");
        assert!(request.constraint.is_none() && chat.tools.is_empty() && !chat.must_call);
    }

    #[test]
    fn what_no_horde_sends_is_refused_in_words() {
        let check = |change: &dyn Fn(&mut Value), words: &str| {
            let mut payload = payload();
            change(&mut payload);
            let why = read(&payload, "m").unwrap_err();
            assert!(why.reason.contains(words) && !why.reason.contains("Rome"), "{why}");
            why.cause
        };
        check(&|p| p["messages"] = json!([]), "0 messages");
        check(&|p| p["messages"] = json!("hello"), "0 messages");
        check(&|p| p["messages"][0]["role"] = json!("king"), "unknown role");
        check(&|p| p["messages"][0]["content"] = json!(7), "without text");
        check(
            &|p| p["messages"][1]["content"] = json!([{ "type": "image_url" }]),
            "picture",
        );
        check(&|p| p["messages"][0]["content"] = json!("x".repeat(3 << 20)), "bytes");
        check(&|p| p["tools"] = json!(vec![p["tools"][0].clone(); 200]), "200 tools");
        check(&|p| p["tools"] = json!([{ "type": "function" }]), "name");
        let format = |format: Value| {
            move |p: &mut Value| {
                p["tool_choice"] = json!("none");
                p["response_format"] = format.clone();
            }
        };
        let cause = check(&format(json!({ "type": "xml" })), "response format");
        assert_eq!(cause, Cause::Unbuildable);
        let cause = check(&format(json!({ "type": "json_schema" })), "without a schema");
        assert_eq!(cause, Cause::Unbuildable);
    }

    #[test]
    fn a_template_without_tools_is_told_of_them_in_words() {
        let (_, chat) = read(&payload(), "m").unwrap();
        let template = ChatTemplate {
            source: "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}".into(),
            begin: String::new(),
            end: String::new(),
        };
        let prompt = chat.prompt(&template).unwrap();
        assert!(
            prompt.starts_with("[system] Be brief.\n\nYou can call these functions:"),
            "{prompt}"
        );
        assert!(prompt.contains("\"name\":\"weather\""), "{prompt}");
    }
}
