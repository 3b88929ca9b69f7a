//! From an answer to the reply: a call of a function, or what was said apart from what was thought.

use serde_json::{Map, Value, json};
use textgen::{Finish, TextAnswer};
use worker_runtime::backend::{Cause, Fault};

use super::{Chat, name_of};

impl Chat {
    /// The reply without its `id`. `is_thinking` where the prompt ended in the beginning of a thought.
    ///
    /// # Errors
    /// A call was due and none came, because the answer was too short for it.
    pub fn reply(&self, answer: &TextAnswer, is_thinking: bool) -> Result<Value, Fault> {
        let (thought, said) = apart(&answer.text, is_thinking);
        let call = self.call(said, answer.seed);
        if self.must_call && call.is_none() {
            let why = "the answer had no room for the call that was asked for";
            return Err(Fault::of_job(why).because(Cause::Violation));
        }
        let mut message = Map::from_iter([("role".to_owned(), json!("assistant"))]);
        let finish = match (&call, answer.finish) {
            (Some(_), _) => "tool_calls",
            (None, Finish::Length) => "length",
            (None, Finish::Stop | Finish::Eos) => "stop",
        };
        match call {
            Some(call) => {
                message.insert("content".into(), Value::Null);
                message.insert("tool_calls".into(), json!([call]));
            }
            None => {
                message.insert("content".into(), json!(said));
            }
        }
        if let Some(thought) = thought.filter(|thought| !thought.is_empty()) {
            message.insert("reasoning_content".into(), json!(thought));
        }
        Ok(json!({
            "model_id": self.model_id, "message": message, "finish_reason": finish,
            "prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.tokens,
        }))
    }

    /// A call of one of the functions that the text is, bare or in the marks that models put around it.
    fn call(&self, text: &str, seed: u64) -> Option<Value> {
        let text = text.trim();
        let inner = [("<tool_call>", "</tool_call>"), ("```json", "```"), ("```", "```")]
            .into_iter()
            .find_map(|(open, close)| Some(text.strip_prefix(open)?.trim_end().trim_end_matches(close)));
        let value: Value = serde_json::from_str(inner.unwrap_or(text).trim()).ok()?;
        let name = value["name"].as_str()?;
        let arguments = value
            .get("arguments")
            .or(value.get("parameters"))
            .filter(|value| value.is_object())?;
        let is_known = self.tools.iter().any(|tool| name_of(tool) == Some(name));
        is_known.then(|| {
            json!({
                "id": format!("call_{:08x}", seed & 0xffff_ffff), "type": "function",
                "function": { "name": name, "arguments": arguments.to_string() },
            })
        })
    }
}

/// What a model thought, up to `</think>`, and what it said. Some templates write `<think>` at the end of the prompt
/// themselves: then `is_thinking`, and a text without an end of it is all thought.
fn apart(text: &str, is_thinking: bool) -> (Option<&str>, &str) {
    let opened = text.trim_start().strip_prefix("<think>");
    match opened.unwrap_or(text).split_once("</think>") {
        Some((thought, said)) => (Some(thought.trim()), said.trim()),
        // It thought to the end.
        None if opened.is_some() || is_thinking => (Some(opened.unwrap_or(text).trim()), ""),
        None => (None, text.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::read;
    use crate::chat::tests::payload;
    use textgen::Timings;

    fn answer(text: &str, finish: Finish) -> TextAnswer {
        TextAnswer {
            text: text.into(),
            tokens: 3,
            finish,
            prompt_tokens: 31,
            seed: 7,
            timings: Timings::default(),
        }
    }

    #[test]
    fn replies_have_the_documented_shape() {
        let (_, mut chat) = read(&payload(), "koboldcpp/Lite").unwrap();
        let called = chat
            .reply(
                &answer(r#"{"name": "weather", "arguments": {"city": "Rome"}}"#, Finish::Eos),
                false,
            )
            .unwrap();
        assert_eq!(called["finish_reason"], "tool_calls");
        assert_eq!(
            called["message"]["tool_calls"][0]["function"]["arguments"],
            r#"{"city":"Rome"}"#
        );
        assert!(called["message"]["content"].is_null() && called["model_id"] == "koboldcpp/Lite");
        let no_call = chat.reply(&answer("I will", Finish::Length), false).unwrap_err();
        assert_eq!(no_call.cause, Cause::Violation);
        chat.must_call = false;
        let said = chat
            .reply(&answer("<think>warm</think>\n\nSunny.", Finish::Eos), false)
            .unwrap();
        assert_eq!(
            said,
            json!({
                "model_id": "koboldcpp/Lite", "finish_reason": "stop", "prompt_tokens": 31, "completion_tokens": 3,
                "message": { "role": "assistant", "content": "Sunny.", "reasoning_content": "warm" }
            })
        );
        let tagged = answer(
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {}}\n</tool_call>",
            Finish::Eos,
        );
        assert_eq!(chat.reply(&tagged, false).unwrap()["finish_reason"], "tool_calls");
        let unknown = answer(r#"{"name": "launch", "arguments": {}}"#, Finish::Eos);
        assert_eq!(chat.reply(&unknown, false).unwrap()["finish_reason"], "stop");
        assert_eq!(
            chat.reply(&answer("and so on", Finish::Length), false).unwrap()["finish_reason"],
            "length"
        );
    }

    #[test]
    fn no_thought_is_said() {
        let check = |text, is_thinking, expected| assert_eq!(apart(text, is_thinking), expected, "{text}");
        check("Sunny.", false, (None, "Sunny."));
        check("<think>warm</think> Sunny.", false, (Some("warm"), "Sunny."));
        check("warm</think>\nSunny.", true, (Some("warm"), "Sunny."));
        // A prompt may open a thought in words that are not known here.
        check("warm</think>Sunny.", false, (Some("warm"), "Sunny."));
        check("warm and", true, (Some("warm and"), ""));
        check("<think>warm and", false, (Some("warm and"), ""));
    }
}
