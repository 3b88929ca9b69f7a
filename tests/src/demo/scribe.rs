//! Text: a real language model answers short, long, stopped, emoji, CJK and very long prompts, several at once.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::demo::report::Report;
use crate::demo::stage::Stage;

/// Name under which requests ask for the demo model and the worker offers it.
pub const MODEL: &str = "koboldcpp/SmolLM2-135M-Instruct";

/// One request of the demo.
pub struct Ask {
    /// What it shows.
    pub title: &'static str,
    /// Prompt as sent, template included.
    pub prompt: String,
    /// Text parameters of the request.
    pub params: Value,
}

/// Runs the demo. True if every request was answered and nothing was handed back or lost.
pub async fn show(timeout: Duration) -> anyhow::Result<(Report, bool)> {
    let asks = asks();
    let mut stage = Stage::set("scribe", &[]).await?;
    let mut ids = Vec::new();
    for ask in &asks {
        let body = json!({ "prompt": ask.prompt, "params": ask.params, "models": [MODEL] });
        ids.push(
            stage
                .requester
                .file("generate/text/async", &body)
                .await
                .with_context(|| format!("filing \"{}\"", ask.title))?,
        );
    }
    println!("{} requests are waiting; scribe is at work.\n", asks.len());
    let results = stage.finished("generate/text/status", &ids, timeout).await?;
    let mut outputs = Vec::new();
    for (ask, result) in asks.iter().zip(&results) {
        let text = result["generations"][0]["text"].as_str();
        let kudos = result["kudos"].as_f64().unwrap_or(0.0);
        println!(
            "── {} ({kudos:.2} kudos)\n{}\n→ {}\n",
            ask.title,
            shortened(&ask.prompt),
            text.map_or("(no answer)", str::trim)
        );
        outputs.push(json!({ "title": ask.title, "prompt": ask.prompt, "text": text, "kudos": kudos, "answered": text.is_some_and(|text| !text.trim().is_empty()) }));
    }
    let books = stage.close().await?;
    let count = |name: &str| books.summary[name].as_u64().unwrap_or(0);
    let totals = &books.status["totals"];
    let report = Report {
        worker: "scribe",
        submitted: count("accepted"),
        faulted: count("faulted"),
        expired: count("expired") + count("open"),
        busy_fraction: books.status["busy_fraction"].as_f64().unwrap_or(0.0),
        kudos: books.summary["kudos"].as_f64().unwrap_or(0.0),
        outputs,
    };
    let tokens = totals["units"].as_f64().unwrap_or(0.0);
    let rate = if books.span_seconds > 0.0 {
        tokens / books.span_seconds
    } else {
        0.0
    };
    println!(
        "{} answered, {} handed back, {} lost; {tokens:.0} tokens in {:.1} s ({rate:.1} tokens/s, device busy {:.0} % of the time); {:.2} kudos",
        report.submitted,
        report.faulted,
        report.expired,
        books.span_seconds,
        100.0 * report.busy_fraction,
        report.kudos
    );
    let complete = report.complete(asks.len());
    Ok((report, complete))
}

/// A prompt on few lines: long ones lose their middle.
fn shortened(prompt: &str) -> String {
    const SHOWN: usize = 160;
    let n_chars = prompt.chars().count();
    if n_chars <= 2 * SHOWN {
        return prompt.trim().to_owned();
    }
    let head: String = prompt.chars().take(SHOWN).collect();
    let tail: String = prompt.chars().skip(n_chars - SHOWN).collect();
    format!(
        "{}\n  … {} characters …\n{}",
        head.trim(),
        n_chars - 2 * SHOWN,
        tail.trim()
    )
}

fn chat(text: &str) -> String {
    format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
}

/// The demo's requests.
pub fn asks() -> Vec<Ask> {
    let greedy = json!({"max_length": 48, "max_context_length": 1024, "temperature": 0.0, "top_k": 1});
    let lively = json!({"max_length": 80, "max_context_length": 1024, "temperature": 0.8, "top_p": 0.92, "top_k": 60, "rep_pen": 1.1, "rep_pen_range": 320, "sampler_order": [6, 0, 1, 3, 4, 2, 5]});
    let with = |base: &Value, extra: Value| {
        let mut merged = base.clone();
        if let (Some(merged), Value::Object(extra)) = (merged.as_object_mut(), extra) {
            merged.extend(extra);
        }
        merged
    };
    vec![
        Ask {
            title: "a short question",
            prompt: chat("What is the capital of France?"),
            params: greedy.clone(),
        },
        Ask {
            title: "a longer story",
            prompt: chat("Write a short story about a lighthouse keeper and a storm."),
            params: lively.clone(),
        },
        Ask {
            title: "stop sequence: ends at the first full stop",
            prompt: "The three primary colours are".to_owned(),
            params: with(&greedy, json!({"stop_sequence": ["."]})),
        },
        Ask {
            title: "emoji",
            prompt: chat("Describe this in one sentence: 🦊🌧️☂️"),
            params: greedy.clone(),
        },
        Ask {
            title: "Chinese and Japanese",
            prompt: chat("Translate to English: 你好，世界。猫が好きです。"),
            params: greedy.clone(),
        },
        Ask {
            title: "one line only",
            prompt: chat("List three kinds of trees."),
            params: with(&greedy, json!({"singleline": true})),
        },
        Ask {
            title: "a prompt of 6,000 characters",
            prompt: long_prompt(6_000),
            params: with(&greedy, json!({"max_context_length": 2048})),
        },
        Ask {
            title: "a prompt longer than its context, cut from the left",
            prompt: long_prompt(6_000),
            params: with(&greedy, json!({"max_context_length": 512})),
        },
        Ask {
            title: "one of two at once",
            prompt: chat("Give me a recipe for pancakes."),
            params: lively.clone(),
        },
        Ask {
            title: "the other of two at once",
            prompt: chat("Why is the sky blue?"),
            params: with(&lively, json!({"min_p": 0.05, "frmttriminc": true})),
        },
    ]
}

/// A prompt of exactly `n_chars` characters that ends in a question about its text.
fn long_prompt(n_chars: usize) -> String {
    let head = "<|im_start|>user\nRead this log of a garden.\n";
    let tail = "\nWhich plant was watered last?<|im_end|>\n<|im_start|>assistant\n";
    let plants = ["tomato", "basil", "rose", "fern", "mint", "pepper", "lily"];
    let mut body = String::new();
    let room = n_chars - head.len() - tail.len();
    for day in 1.. {
        let line = format!(
            "Day {day}: the {} was watered in the morning.\n",
            plants[day % plants.len()]
        );
        if body.len() + line.len() > room {
            break;
        }
        body.push_str(&line);
    }
    body.push_str(&" ".repeat(room - body.len()));
    format!("{head}{body}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_prompt_is_as_long_as_it_says() {
        assert_eq!(long_prompt(6_000).chars().count(), 6_000);
    }

    #[test]
    fn there_are_at_least_eight_requests() {
        assert!(asks().len() >= 8);
    }
}
