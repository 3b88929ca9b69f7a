//! In the engine child: an engine of `textgen`, with its speed measured.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use textgen::chat::ChatTemplate;
use textgen::sampler::Sampling;
use textgen::{NoWatch, TextAnswer, TextEngine, TextError, TextRequest, Watch};
use worker_runtime::backend::{Cause, Engine, EngineReport, Fault, JobContext};

use crate::calibration::{Calibration, Measured, milliseconds, now_unix_ms};
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
    /// Whether its template takes notice of how much it is to think.
    #[serde(default)]
    pub effort: bool,
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
    learned: Mutex<Learned>,
}

/// What changes while the engine works.
struct Learned {
    facts: Facts,
    calibration: Calibration,
}

/// Words of each calibration prompt, about as many tokens.
const CALIBRATION_WORDS: usize = 48;
/// Tokens each calibration answer writes.
const CALIBRATION_TOKENS: u32 = 12;
/// Tokens a second below which the Horde counts a worker of models under 13B as slow and keeps most requests from it.
const SLOW_PER_SECOND: f64 = 5.0;
/// How far jobs may move the speed before it is kept anew.
const WORTH_KEEPING: f64 = 0.1;

impl ScribeEngine {
    /// Measures the engine's speed with every slot busy: a few seconds.
    ///
    /// # Errors
    /// Where the engine cannot serve at all.
    pub fn new(engine: Arc<dyn TextEngine>) -> Result<Self, TextError> {
        Self::calibrated(engine, Calibration::default())
    }

    /// With what is known of its speed; where nothing is, measured and kept.
    ///
    /// # Errors
    /// Where the engine cannot serve at all.
    pub fn calibrated(engine: Arc<dyn TextEngine>, mut calibration: Calibration) -> Result<Self, TextError> {
        let told = engine.facts()?;
        let slots = told.slots.max(1);
        let measured = match calibration.known {
            Some(known) => {
                tracing::info!(
                    slots = known.slots,
                    write_per_second = known.write_per_second,
                    read_per_second = known.read_per_second,
                    "the speed of the text engine is known from an earlier start; `scribe calibration --forget` has it measured anew"
                );
                known
            }
            None => {
                let measured = measure(engine.as_ref(), slots, &calibration)?;
                calibration.keep(measured);
                measured
            }
        };
        let template = told.chat.filter(ChatTemplate::works);
        let facts = Facts {
            chat: template.is_some(),
            effort: template.as_ref().is_some_and(ChatTemplate::knows_effort),
            model: told.model,
            context_tokens: told.context_tokens,
            max_length: told.max_length,
            slots: measured.slots.min(slots),
            write_per_second: measured.write_per_second,
            read_per_second: measured.read_per_second,
            measured_unix_ms: measured.unix_ms,
            measured_for_ms: measured.took_ms,
        };
        Ok(Self {
            engine,
            template,
            learned: Mutex::new(Learned { facts, calibration }),
        })
    }

    /// Lets a real job's speed move the measured one, slowly upwards and faster downwards.
    fn learn(&self, answer: &TextAnswer) {
        let seconds = answer.timings.decode.as_secs_f64();
        if answer.tokens < 16 || seconds <= 0.0 {
            return;
        }
        let seen = f64::from(answer.tokens - 1) / seconds;
        let mut learned = self.learned();
        let Learned { facts, calibration } = &mut *learned;
        let weight = if seen < facts.write_per_second { 0.2 } else { 0.02 };
        facts.write_per_second = rounded(facts.write_per_second * (1.0 - weight) + seen * weight);
        if let Some(known) = calibration.known
            && (facts.write_per_second / known.write_per_second - 1.0).abs() > WORTH_KEEPING
        {
            calibration.keep(Measured {
                write_per_second: facts.write_per_second,
                ..known
            });
        }
    }

    fn learned(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Measures with all `slots` busy; where that is slow for the Horde and the owner left their number open, with half of them
/// and so on.
fn measure(engine: &dyn TextEngine, slots: usize, calibration: &Calibration) -> Result<Measured, TextError> {
    let start = Instant::now();
    let mut busy = slots;
    let mut speed = calibrate(engine, busy)?;
    while calibration.may_use_fewer_slots && busy > 1 && speed.write_per_second < SLOW_PER_SECOND {
        tracing::info!(
            slots = busy,
            write_per_second = speed.write_per_second,
            "so many jobs at once are slow; half of them are tried"
        );
        busy /= 2;
        speed = calibrate(engine, busy)?;
    }
    tracing::info!(
        slots = busy,
        write_per_second = speed.write_per_second,
        read_per_second = speed.read_per_second,
        seconds = start.elapsed().as_secs_f64(),
        "measured the text engine with every slot busy"
    );
    Ok(Measured {
        slots: busy,
        write_per_second: speed.write_per_second,
        read_per_second: speed.read_per_second,
        prefill_tokens: calibration.prefill_tokens,
        unix_ms: now_unix_ms(),
        took_ms: milliseconds(start.elapsed()),
    })
}

struct Speed {
    write_per_second: f64,
    read_per_second: f64,
}

/// Runs one short request per slot, all at once; the slowest counts.
fn calibrate(engine: &dyn TextEngine, slots: usize) -> Result<Speed, TextError> {
    let answers: Vec<Result<TextAnswer, TextError>> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..slots.max(1))
            .map(|slot| {
                // Different beginnings, also from the round before: nothing may be shared.
                let prompt = format!("{slots}.{slot} ") + &"measure this ".repeat(CALIBRATION_WORDS / 2);
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
        let facts = self.learned().facts.clone();
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
        let reply = chat.map(|chat| chat.reply(&answer, is_thinking)).transpose()?;
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
        TextError::Overflow(_) => Fault::of_job(error.to_string()).because(Cause::Overflow),
        TextError::Grammar(_) => Fault::of_job(error.to_string()).because(Cause::Unbuildable),
        TextError::Cancelled | TextError::Unfit(_) => Fault::of_job(error.to_string()),
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
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use textgen::settings::LlamaSettings;
    use textgen::{EngineFacts, Finish, Timings};

    use super::*;

    #[test]
    fn the_horde_is_told_why_in_its_own_words() {
        for (error, ours, cause) in [
            (TextError::Overflow("x".into()), false, Cause::Overflow),
            (TextError::Grammar("x".into()), false, Cause::Unbuildable),
            (TextError::Unfit("x".into()), false, Cause::Failed),
            (TextError::Cancelled, false, Cause::Failed),
            (TextError::Failed("x".into()), true, Cause::Failed),
            (TextError::Unavailable("x".into()), true, Cause::Failed),
        ] {
            let fault = fault(error);
            assert_eq!((fault.ours, fault.cause), (ours, cause), "{fault}");
        }
    }

    #[test]
    fn rounding_keeps_three_digits() {
        assert_eq!(rounded(123.456), 123.0);
        assert_eq!(rounded(0.012_345), 0.0123);
    }

    /// Writes each token in `per_job` milliseconds for each of the jobs that are asked for at once.
    struct Fake {
        asked: AtomicUsize,
        slots: usize,
        per_job: u64,
    }

    impl TextEngine for Fake {
        fn facts(&self) -> Result<EngineFacts, TextError> {
            Ok(EngineFacts {
                model: "fake".into(),
                context_tokens: 4_096,
                max_length: None,
                slots: self.slots,
                chat: None,
                program: None,
            })
        }

        fn generate(&self, request: TextRequest, _: &dyn Watch) -> Result<TextAnswer, TextError> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let busy: u64 = request
                .prompt
                .split('.')
                .next()
                .and_then(|slots| slots.parse().ok())
                .unwrap_or(1);
            Ok(TextAnswer {
                text: String::new(),
                tokens: request.max_length,
                finish: Finish::Length,
                prompt_tokens: 50,
                seed: 1,
                timings: Timings {
                    prefill: Duration::from_millis(500),
                    decode: Duration::from_millis(self.per_job * busy * u64::from(request.max_length - 1)),
                    ..Timings::default()
                },
            })
        }
    }

    fn fake(slots: usize, per_job: u64) -> Arc<Fake> {
        Arc::new(Fake {
            asked: AtomicUsize::new(0),
            slots,
            per_job,
        })
    }

    fn facts(engine: &ScribeEngine) -> Facts {
        engine.learned().facts.clone()
    }

    #[test]
    fn the_second_start_does_not_measure_and_a_changed_setting_does() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("m.gguf");
        std::fs::write(&model, "weights").unwrap();
        let start = |threads: u32| {
            let engine = fake(4, 10);
            let llama = LlamaSettings {
                threads,
                ..LlamaSettings::for_model(&model)
            };
            let mut calibration = Calibration::of(folder.path(), &llama, "cpu");
            calibration.prefill_tokens = 128;
            let scribe = ScribeEngine::calibrated(engine.clone(), calibration).unwrap();
            (scribe, engine.asked.load(Ordering::SeqCst))
        };
        let (first, asked) = start(1);
        assert_eq!(
            (asked, facts(&first).write_per_second),
            (4, 25.0),
            "each slot was measured"
        );
        let (second, asked) = start(1);
        assert_eq!((asked, facts(&second)), (0, facts(&first)), "known");
        assert_eq!(start(2).1, 4, "another setting");
        // Jobs that run slower move the speed, for the next start too.
        let slow = second
            .engine
            .generate(TextRequest::new("8.x", 32, 256), &NoWatch)
            .unwrap();
        (0..10).for_each(|_| second.learn(&slow));
        let (third, asked) = start(1);
        assert_eq!(asked, 0);
        assert!(
            (12.0..16.0).contains(&facts(&third).write_per_second),
            "{:?}",
            facts(&third)
        );
    }

    #[test]
    fn slots_that_are_too_slow_together_are_not_all_used_unless_the_owner_wants_them() {
        let check = |per_job: u64, may_use_fewer_slots: bool, slots: usize| {
            let mut calibration = Calibration::default();
            calibration.may_use_fewer_slots = may_use_fewer_slots;
            let engine = ScribeEngine::calibrated(fake(8, per_job), calibration).unwrap();
            assert_eq!(
                (facts(&engine).slots, engine.report().capacity),
                (slots, slots),
                "{per_job} ms"
            );
        };
        check(20, true, 8);
        // 8 at once write 2.1 tokens a second, 4 write 4.2, 2 write 8.3.
        check(60, true, 2);
        check(60, false, 8);
        check(900, true, 1);
    }
}
