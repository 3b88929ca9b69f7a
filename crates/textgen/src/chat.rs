//! A conversation as the text that a model was trained to continue, by the template that its file brings along.
//!
//! Templates are Jinja as Hugging Face's `apply_chat_template` runs it: `messages`, `tools`, `add_generation_prompt`,
//! `bos_token`, `eos_token`, `raise_exception`, `strftime_now`, and the methods of Python's texts and dictionaries.
//! A template is the model maker's program: its steps and the length of its text are bounded.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::TextError;

/// A model's template and the two tokens it may write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatTemplate {
    /// Jinja.
    pub source: String,
    /// Text of the token that begins a text; may be empty.
    pub begin: String,
    /// Text of the token that ends one; may be empty.
    pub end: String,
}

/// Steps a template may take; the longest known ones take some thousands per message.
const FUEL: u64 = 5_000_000;
/// Longest text that is believed, in bytes.
const MAX_BYTES: usize = 8 << 20;

/// Names by which templates are told how much the model is to think.
const EFFORT: [&str; 3] = ["reasoning_effort", "enable_thinking", "thinking is"];

impl ChatTemplate {
    /// Whether it can write a short conversation.
    pub fn works(&self) -> bool {
        let message = |role: &str| serde_json::json!({ "role": role, "content": "hello" });
        self.render(&[message("user")], &[])
            .is_ok_and(|text| text.contains("hello"))
    }

    /// Whether it takes notice of how much the model is to think.
    pub fn knows_effort(&self) -> bool {
        EFFORT.iter().any(|name| self.source.contains(name))
    }

    /// Whether it writes functions that can be called into the text by itself.
    pub fn knows_tools(&self) -> bool {
        self.source.contains("tools")
    }

    /// The text up to where the model's answer begins. `messages` are objects with `role` and `content` in OpenAI's
    /// shape, `tools` its function tools.
    ///
    /// # Errors
    /// [`TextError::Unfit`] where the template refuses the conversation (as some do a system message or two messages of
    /// one role in a row), is broken, or takes too many steps, [`TextError::Overflow`] where its text is longer than any
    /// context. The message holds nothing of the conversation.
    pub fn render(&self, messages: &[Value], tools: &[Value]) -> Result<String, TextError> {
        self.render_with(messages, tools, None)
    }

    /// The same for a model that is to think as much as `effort` says (OpenAI's words: `none`, `low`, `high` …), by the names
    /// that published templates know: `reasoning_effort` (gpt-oss), `enable_thinking` (Qwen 3, GLM), `thinking` (Granite,
    /// DeepSeek).
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_with(&self, messages: &[Value], tools: &[Value], effort: Option<&str>) -> Result<String, TextError> {
        let refused = |error: Error| {
            let kind = match error.kind() {
                ErrorKind::OutOfFuel => "it takes too many steps".to_owned(),
                kind => format!("{kind}"),
            };
            TextError::Unfit(format!("the model's chat template refuses this conversation: {kind}"))
        };
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(refused)?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |_: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "refused by the template"))
        });
        environment.add_function("strftime_now", |format: String| now(&format));
        environment.add_template("chat", &self.source).map_err(refused)?;
        let template = environment.get_template("chat").map_err(refused)?;
        let tools = (!tools.is_empty()).then_some(tools);
        // What is not asked for is not defined: templates have defaults of their own.
        let thinks = effort.map_or(minijinja::Value::UNDEFINED, |effort| (effort != "none").into());
        let effort = effort.map_or(minijinja::Value::UNDEFINED, minijinja::Value::from);
        let text = template
            .render(context! {
                reasoning_effort => effort, enable_thinking => &thinks, thinking => &thinks, messages => Serde(messages), tools => Serde(tools), add_generation_prompt => true,
                bos_token => self.begin.as_str(), eos_token => self.end.as_str(),
            })
            .map_err(refused)?;
        if text.len() > MAX_BYTES {
            return Err(TextError::Overflow(format!("its text has {} bytes", text.len())));
        }
        Ok(text)
    }
}

/// The date for templates that tell the model what day it is: `%d`, `%m`, `%b`, `%B`, `%Y` in UTC; others stay as they are.
fn now(format: &str) -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    dated(format, seconds / 86_400)
}

/// Days since 1970-01-01 as a date. H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn dated(format: &str, days: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    format
        .replace("%d", &format!("{day:02}"))
        .replace("%m", &format!("{month:02}"))
        .replace("%b", name.get(..3).unwrap_or_default())
        .replace("%B", name)
        .replace("%Y", &year.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate {
            source: source.into(),
            begin: "<s>".into(),
            end: "</s>".into(),
        }
    }

    #[test]
    fn a_conversation_becomes_the_text_that_the_template_says() {
        // ChatML with Python's methods, a namespace and loop controls, as published templates use them.
        let source = "{%- set ns = namespace(seen=false) -%}{{ bos_token }}{% for m in messages %}\
            {%- if m.role == 'system' and ns.seen %}{% continue %}{% endif %}{% set ns.seen = true %}\
            <|im_start|>{{ m['role'] }}\n{{ m['content'].strip() }}<|im_end|>\n{% endfor %}\
            {%- if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let messages = [
            json!({ "role": "system", "content": " Be brief. " }),
            json!({ "role": "user", "content": "Hi" }),
        ];
        let text = template(source).render(&messages, &[]).unwrap();
        assert!(
            text.starts_with("<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>"),
            "{text:?}"
        );
        assert!(text.trim_end().ends_with("<|im_start|>assistant"), "{text:?}");
        let text = template(source)
            .render(&messages, &[json!({ "type": "function" })])
            .unwrap();
        assert!(text.contains(r#""type""#), "{text:?}");
    }

    #[test]
    fn a_template_that_refuses_loops_or_is_broken_is_an_error_without_the_conversation() {
        let messages = [json!({ "role": "user", "content": "mango" })];
        for source in [
            "{{ raise_exception('only mangos') }}",
            "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
            "{% if %}",
            "{{ messages[0].nothing.at_all }}",
            "{% include 'elsewhere' %}",
        ] {
            let error = template(source).render(&messages, &[]).unwrap_err();
            assert!(
                matches!(&error, TextError::Unfit(why) if !why.contains("mango")),
                "{error}"
            );
            assert!(!template(source).works());
        }
    }

    #[test]
    fn effort_reaches_templates_by_the_names_they_know() {
        let messages = [json!({ "role": "user", "content": "hello" })];
        let check = |source: &str, effort: Option<&str>, expected: &str| {
            let template = template(&format!("{{{{ messages[0].content }}}}{source}"));
            assert!(template.knows_effort() && template.works(), "{source}");
            let text = template.render_with(&messages, &[], effort).unwrap();
            assert_eq!(text, format!("hello{expected}"), "{source}");
        };
        let open = "{%- if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %} effort: {{ reasoning_effort }}";
        check(open, None, " effort: medium");
        check(open, Some("high"), " effort: high");
        let qwen = "{%- if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}";
        check(qwen, None, "");
        check(qwen, Some("low"), "");
        check(qwen, Some("none"), "<think></think>");
        let granite = "{%- if thinking is defined and thinking %}Think first.{% endif %}";
        check(granite, None, "");
        check(granite, Some("medium"), "Think first.");
        assert!(!template("{{ messages }}").knows_effort());
    }

    #[test]
    fn days_are_dates() {
        assert_eq!(dated("%d %b %Y", 0), "01 Jan 1970");
        assert_eq!(dated("%d/%m/%Y", 11_016), "29/02/2000");
        assert_eq!(dated("%B", 20_782), "November");
    }
}
