//! The memory that is promised before anything is loaded, beside what llama.cpp says it has taken.

use std::sync::{Mutex, PoisonError};

use textgen::llama::{CacheType, Flash, LlamaEngine, LlamaSettings, plan};
use textgen::{NoWatch, TextEngine, TextRequest};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::models::smollm2;
use crate::tiny_gguf::{Meta, tiny};

/// Lines of llama.cpp that name a buffer and its size.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Listening;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Listening {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Message(String);
        impl tracing::field::Visit for Message {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                if field.name() == "message" {
                    self.0 = format!("{value:?}");
                }
            }
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        if message.0.contains("buffer size = ") {
            LINES.lock().unwrap_or_else(PoisonError::into_inner).push(message.0);
        }
    }
}

/// MiB of all buffers of a kind since the last time that were told.
fn taken(lines: &[String], kind: &str) -> f64 {
    let sizes = lines
        .iter()
        .filter_map(|line| line.split_once(kind)?.1.split("MiB").next()?.trim().parse().ok());
    sizes.fold(0.0, |sum: f64, size: f64| sum + size)
}

#[test]
fn the_plan_is_what_llama_cpp_takes() {
    tracing_subscriber::registry().with(Listening).try_init().unwrap();
    let base = LlamaSettings {
        slots: 1,
        context_tokens: 4_096,
        threads: 1,
        prefill_tokens: 64,
        gpu_layers: Some(0),
        ..LlamaSettings::for_model(smollm2())
    };
    let q8 = |settings: LlamaSettings| LlamaSettings {
        cache_keys: CacheType::Q8_0,
        cache_values: CacheType::Q8_0,
        ..settings
    };
    let cases = [
        ("one slot", base.clone()),
        (
            "eight slots",
            LlamaSettings {
                slots: 8,
                ..base.clone()
            },
        ),
        (
            "an odd context",
            LlamaSettings {
                slots: 3,
                context_tokens: 1_000,
                ..base.clone()
            },
        ),
        ("eight bits", q8(base.clone())),
        (
            "eight slots with eight bits",
            q8(LlamaSettings {
                slots: 8,
                context_tokens: 2_048,
                ..base.clone()
            }),
        ),
        (
            "small batches",
            LlamaSettings {
                batch_tokens: 64,
                ..base.clone()
            },
        ),
        (
            "no flash attention",
            LlamaSettings {
                slots: 4,
                flash_attention: Flash::Off,
                ..base.clone()
            },
        ),
        (
            "not mapped",
            LlamaSettings {
                mmap: false,
                ..base.clone()
            },
        ),
    ];
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut wrong = Vec::new();
    for (name, settings) in cases {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let promised = plan(&settings).unwrap();
        let engine = LlamaEngine::load(settings, |_| true).unwrap();
        assert_eq!(engine.plan(), promised, "{name}");
        // A prompt of several batches takes no more.
        engine
            .generate(TextRequest::new("word ".repeat(700), 4, 4_096), &NoWatch)
            .unwrap();
        drop(engine);
        let lines = std::mem::take(&mut *LINES.lock().unwrap_or_else(PoisonError::into_inner));
        for (what, promised, kinds) in [
            ("weights", promised.weight_bytes, &["model buffer size = "][..]),
            ("cache", promised.cache_bytes, &["KV buffer size = "]),
            (
                "work space",
                promised.compute_bytes,
                &["compute buffer size = ", "output buffer size = "],
            ),
        ] {
            let real: f64 = kinds.iter().map(|kind| taken(&lines, kind)).sum();
            let share = mib(promised) / real;
            println!(
                "{name}: {what}: {:.1} MiB promised, {real:.1} taken: {share:.3}",
                mib(promised)
            );
            // Never less but for rounding, and at most a twentieth more.
            if !(0.995..=1.05).contains(&share) {
                wrong.push(format!(
                    "{name}: {what}: {:.1} MiB promised, {real:.1} taken",
                    mib(promised)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn numbers_beyond_every_machine_are_planned_without_overflow_and_refused() {
    let mut model = tiny();
    for (key, value) in &mut model.meta {
        if key == "llama.context_length" {
            *value = Meta::U32(1 << 28);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    model.write(&path);
    let check = |settings: LlamaSettings, slots: u32, context_tokens: u32| {
        let settings = LlamaSettings {
            threads: 1,
            gpu_layers: Some(0),
            ..settings
        };
        let promised = plan(&settings).unwrap();
        assert_eq!((promised.slots, promised.context_tokens), (slots, context_tokens));
        let refused = LlamaEngine::load(settings, |_| true).unwrap_err().to_string();
        assert!(
            refused.contains("MiB are free") && refused.contains("fewer slots"),
            "{refused}"
        );
    };
    let with = |slots: u32, context_tokens: u32| LlamaSettings {
        slots,
        context_tokens,
        ..LlamaSettings::for_model(&path)
    };
    check(with(64, 1 << 20), 64, 1 << 20);
    check(with(1_000_000, 1_000_000_000), 64, 1 << 28);
    check(with(u32::MAX, u32::MAX), 64, 1 << 28);
    // Left open, the slots are as many as fit: one.
    check(with(0, u32::MAX), 1, 1 << 28);
    // More than the model was made for is not planned.
    let trained = plan(&LlamaSettings {
        context_tokens: 1 << 20,
        slots: 1,
        ..LlamaSettings::for_model(smollm2())
    })
    .unwrap();
    assert_eq!(trained.context_tokens, 8_192);
    // The same file with sane settings is served.
    assert!(
        LlamaEngine::load(
            LlamaSettings {
                threads: 1,
                ..with(2, 512)
            },
            |_| true
        )
        .is_ok()
    );
}
