//! In the engine child: an engine of `textgen`, with its speed measured.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use textgen::chat::ChatTemplate;
use textgen::sampler::Sampling;
use textgen::{NoWatch, TextAnswer, TextEngine, TextError, TextRequest, Watch};
use worker_runtime::backend::{Engine, EngineReport, Fault, JobContext};

use crate::chat::Chat;

/// What the engine needs for one job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    /// The request, within bounds.
    pub request: TextRequest,
    /// The conversation that the prompt is written from, for a chat job.
    #[serde(default)]
    pub chat: Option<Chat>,
}

/// What the engine made for one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// The answer.
    pub answer: TextAnswer,
    /// Tokens that were asked for.
    pub max_length: u32,
    /// The reply of a chat job, without its id.
    #[serde(default)]
    pub reply: Option<serde_json::Value>,
}

/// What a loaded engine tells the supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// The model's own name.
    pub model: String,
    /// Tokens of each slot.
    pub context_tokens: u32,
    /// Longest answer the engine itself allows.
    pub max_length: Option<u32>,
    /// Jobs at once.
    pub slots: usize,
    /// Whether it takes conversations.
    #[serde(default)]
    pub chat: bool,
    /// Tokens written per second and slot, with every slot busy.
    pub write_per_second: f64,
    /// Prompt tokens read per second, with every slot busy.
    pub read_per_second: f64,
    /// When its speed had been measured, in milliseconds of Unix time.
    #[serde(default)]
    pub measured_unix_ms: u64,
    /// How long that took, in milliseconds.
    #[serde(default)]
    pub measured_for_ms: u64,
}

/// One device's text engine.
pub struct ScribeEngine {
    engine: Arc<dyn TextEngine>,
    template: Option<ChatTemplate>,
    facts: Mutex<Facts>,
}

/// Words of each calibration prompt, about as many tokens.
const CALIBRATION_WORDS: usize = 48;
/// Tokens each calibration answer writes.
const CALIBRATION_TOKENS: u32 = 12;

impl ScribeEngine {
    /// Measures the engine's speed with every slot busy: a few seconds.
    ///
    /// # Errors
    /// Where the engine cannot serve at all.
    pub fn new(engine: Arc<dyn TextEngine>) -> Result<Self, TextError> {
        let told = engine.facts()?;
        let start = Instant::now();
        let speed = calibrate(engine.as_ref(), told.slots)?;
        let milliseconds = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        tracing::info!(
            slots = told.slots,
            write_per_second = speed.write_per_second,
            read_per_second = speed.read_per_second,
            "measured the text engine with every slot busy"
        );
        let template = told.chat.filter(ChatTemplate::works);
        let facts = Mutex::new(Facts {
            chat: template.is_some(),
            model: told.model,
            context_tokens: told.context_tokens,
            max_length: told.max_length,
            slots: told.slots.max(1),
            write_per_second: speed.write_per_second,
            read_per_second: speed.read_per_second,
            measured_unix_ms: milliseconds(unix),
            measured_for_ms: milliseconds(start.elapsed()),
        });
        Ok(Self {
            engine,
            template,
            facts,
        })
    }

    /// Lets a real job's speed move the measured one, slowly upwards and faster downwards.
    fn learn(&self, answer: &TextAnswer) {
        let seconds = answer.timings.decode.as_secs_f64();
        if answer.tokens < 16 || seconds <= 0.0 {
            return;
        }
        let seen = f64::from(answer.tokens - 1) / seconds;
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let weight = if seen < facts.write_per_second { 0.2 } else { 0.02 };
        facts.write_per_second = rounded(facts.write_per_second * (1.0 - weight) + seen * weight);
    }
}

struct Speed {
    write_per_second: f64,
    read_per_second: f64,
}

/// Runs one short request per slot, all at once; the slowest counts.
fn calibrate(engine: &dyn TextEngine, slots: usize) -> Result<Speed, TextError> {
    let start = Instant::now();
    let answers: Vec<Result<TextAnswer, TextError>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..slots.max(1))
            .map(|slot| {
                // Different beginnings: nothing may be shared.
                let prompt = format!("{slot} ") + &"measure this ".repeat(CALIBRATION_WORDS / 2);
                let request = TextRequest {
                    ban_eos: true,
                    seed: Some(slot as u64),
                    sampling: Sampling::neutral(),
                    ..TextRequest::new(prompt, CALIBRATION_TOKENS, 256)
                };
                scope.spawn(move || engine.generate(request, &NoWatch))
            })
            .collect();
        let panicked = |_| Err(TextError::Unavailable("measuring it ended in a panic".into()));
        running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(panicked))
            .collect()
    });
    let answers: Vec<TextAnswer> = answers.into_iter().collect::<Result<_, _>>()?;
    let slowest = |of: fn(&TextAnswer) -> f64| answers.iter().map(of).fold(0.001, f64::max);
    let decode = slowest(|answer| answer.timings.decode.as_secs_f64());
    let prefill = slowest(|answer| answer.timings.prefill.as_secs_f64());
    let read: u32 = answers.iter().map(|answer| answer.prompt_tokens).sum();
    let written = answers
        .iter()
        .map(|answer| answer.tokens)
        .min()
        .unwrap_or(1)
        .saturating_sub(1)
        .max(1);
    tracing::debug!(seconds = start.elapsed().as_secs_f64(), "measuring took");
    Ok(Speed {
        write_per_second: rounded(f64::from(written) / decode),
        read_per_second: rounded(f64::from(read) / prefill),
    })
}

/// Three digits: small changes are not worth telling.
fn rounded(number: f64) -> f64 {
    let scale = 10f64.powi(2 - number.abs().max(1e-9).log10().floor() as i32);
    (number * scale).round() / scale
}

impl Engine for ScribeEngine {
    type Work = Work;
    type Output = Written;

    fn report(&self) -> EngineReport {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        EngineReport {
            capacity: facts.slots,
            facts: serde_json::to_value(facts).unwrap_or_default(),
        }
    }

    fn run(&self, work: Work, job: &dyn JobContext) -> Result<Vec<Result<Written, Fault>>, Fault> {
        let Work { mut request, chat } = work;
        let max_length = request.max_length;
        if let Some(chat) = &chat {
            let template = self.template.as_ref();
            let template = template.ok_or_else(|| Fault::of_job("this model takes no conversations"))?;
            request.prompt = chat.prompt(template).map_err(fault)?;
        }
        // What keeps to a form is no thought, even where the template begins one.
        let is_thinking = request.constraint.is_none() && request.prompt.trim_end().ends_with("<think>");
        let answer = self.engine.generate(request, &JobWatch(job)).map_err(fault)?;
        self.learn(&answer);
        let reply = chat
            .map(|chat| chat.reply(&answer, is_thinking))
            .transpose()
            .map_err(Fault::of_job)?;
        Ok(vec![Ok(Written {
            answer,
            max_length,
            reply,
        })])
    }
}

/// Whom an error speaks against.
fn fault(error: TextError) -> Fault {
    match error {
        TextError::Cancelled | TextError::Unfit(_) | TextError::Grammar(_) => Fault::of_job(error.to_string()),
        TextError::Failed(_) | TextError::Unavailable(_) | TextError::Model(_) => Fault::of_worker(error.to_string()),
    }
}

struct JobWatch<'a>(&'a dyn JobContext);

impl Watch for JobWatch<'_> {
    fn progress(&self, done: u32, total: u32) {
        self.0.progress(done, total, "writing");
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_three_digits() {
        assert_eq!(rounded(123.456), 123.0);
        assert_eq!(rounded(0.012_345), 0.0123);
    }
}
