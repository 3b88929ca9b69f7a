//! What a download tells: events as plain data, shown as bars or written as JSON lines.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::digest::Sha256Sum;

/// One thing that happened. `file` is the plan's name. Serialised with its kind in `event`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// What is about to be fetched, all files together; `bytes` counts the known sizes only.
    Planned { files: usize, bytes: u64 },
    /// A file begins, or goes on at `resumed_bytes`.
    Started {
        file: String,
        total_bytes: Option<u64>,
        resumed_bytes: u64,
        source: String,
    },
    /// Bytes on disk so far, about four times a second.
    Advanced {
        file: String,
        done_bytes: u64,
        total_bytes: Option<u64>,
        bytes_per_second: u64,
    },
    /// Something failed that may work later.
    Retrying { file: String, reason: String, wait_ms: u64 },
    /// This source is given up; the next one follows if there is one.
    SourceFailed {
        file: String,
        source: String,
        reason: String,
    },
    /// Another process is fetching the same file; its result will be used.
    Waiting { file: String },
    /// Paused by the owner.
    Paused { file: String },
    /// All bytes are there; the rest of the sum is being taken.
    Verifying { file: String },
    /// A downloaded file is being turned into another format.
    Converting { file: String },
    /// The file stands under its final name.
    Done {
        file: String,
        path: PathBuf,
        bytes: u64,
        sha256: Sha256Sum,
        already_there: bool,
    },
    /// Nothing more is tried.
    Failed { file: String, reason: String },
}

/// Where events go. Called from async code: must return at once.
pub trait Progress: Send + Sync {
    /// Takes one event.
    fn event(&self, event: Event);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) {}
}

/// One JSON object per line.
pub struct JsonLines<W: Write + Send>(Mutex<W>);

impl<W: Write + Send> JsonLines<W> {
    /// Writes to `out`, flushed after every line.
    pub fn new(out: W) -> Self {
        Self(Mutex::new(out))
    }
}

impl<W: Write + Send> Progress for JsonLines<W> {
    fn event(&self, event: Event) {
        let Ok(line) = serde_json::to_string(&event) else {
            return;
        };
        let mut out = self.0.lock().expect("no holder of this lock panics");
        // A reader that went away must not stop the download.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}

/// A bar per file and one for the total, on standard error.
pub struct Bars {
    bars: MultiProgress,
    state: Mutex<BarState>,
}

#[derive(Default)]
struct BarState {
    total: Option<ProgressBar>,
    files: HashMap<String, (ProgressBar, u64)>,
}

impl Default for Bars {
    fn default() -> Self {
        Self {
            bars: MultiProgress::new(),
            state: Mutex::new(BarState::default()),
        }
    }
}

impl Bars {
    fn style(template: &str) -> ProgressStyle {
        ProgressStyle::with_template(template)
            .expect("the template is constant and valid")
            .progress_chars("━╸─")
    }

    fn bar<'a>(&self, state: &'a mut BarState, file: &str) -> &'a mut (ProgressBar, u64) {
        state.files.entry(file.to_owned()).or_insert_with(|| {
            // First among the others, then dressed: one that stands alone draws itself, and its line stays for ever.
            let bar = match &state.total {
                Some(total) => self.bars.insert_before(total, ProgressBar::new(0)),
                None => self.bars.add(ProgressBar::new(0)),
            };
            bar.set_style(Self::style(
                "{prefix:<32!} {bar:30} {bytes:>10}/{total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>4} {msg}",
            ));
            bar.set_prefix(file.to_owned());
            (bar, 0)
        })
    }

    fn say(&self, line: &str) {
        // Hidden bars (no terminal) swallow `println`, so the line goes to standard error itself.
        if self.bars.is_hidden() {
            eprintln!("{line}");
        } else {
            let _ = self.bars.println(line);
        }
    }
}

impl Progress for Bars {
    fn event(&self, event: Event) {
        let mut guard = self.state.lock().expect("no holder of this lock panics");
        let state = &mut *guard;
        match event {
            Event::Planned { files, bytes } => {
                if files > 1 && bytes > 0 {
                    let total = self.bars.add(ProgressBar::new(bytes));
                    total.set_style(Self::style(
                        "{prefix:<32!} {bar:30} {bytes:>10}/{total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>4}",
                    ));
                    total.set_prefix(format!("{files} files"));
                    state.total = Some(total);
                }
            }
            Event::Started {
                file,
                total_bytes,
                resumed_bytes,
                source,
            } => {
                let (bar, shown) = self.bar(state, &file);
                bar.set_length(total_bytes.unwrap_or(resumed_bytes));
                bar.set_position(resumed_bytes);
                bar.reset_eta();
                bar.set_message(String::new());
                *shown = resumed_bytes;
                if self.bars.is_hidden() {
                    eprintln!("fetching {file} from {source}");
                }
            }
            Event::Advanced {
                file,
                done_bytes,
                total_bytes,
                ..
            } => {
                let (bar, shown) = self.bar(state, &file);
                if let Some(total_bytes) = total_bytes {
                    bar.set_length(total_bytes);
                }
                bar.set_position(done_bytes);
                let step = done_bytes.saturating_sub(*shown);
                *shown = done_bytes;
                if let Some(total) = &state.total {
                    total.inc(step);
                }
            }
            Event::Retrying { file, reason, wait_ms } => {
                let message = format!("{reason}; again in {:.1} s", wait_ms as f64 / 1000.0);
                self.bar(state, &file).0.set_message(message);
            }
            Event::SourceFailed { file, source, reason } => self.say(&format!("{file}: {source}: {reason}")),
            Event::Waiting { file } => self.bar(state, &file).0.set_message("another process is fetching it"),
            Event::Paused { file } => self.bar(state, &file).0.set_message("paused"),
            Event::Verifying { file } => self.bar(state, &file).0.set_message("verifying"),
            Event::Converting { file } => self.bar(state, &file).0.set_message("converting"),
            Event::Done {
                file,
                bytes,
                already_there,
                path,
                ..
            } => {
                let (bar, _) = self.bar(state, &file);
                bar.set_length(bytes);
                bar.set_position(bytes);
                bar.finish_with_message(if already_there { "already there" } else { "done" });
                if self.bars.is_hidden() {
                    let how = if already_there { "already there" } else { "done" };
                    eprintln!("{file}: {how}, {}", path.display());
                }
            }
            Event::Failed { file, reason } => {
                self.bar(state, &file).0.abandon_with_message("failed");
                self.say(&format!("{file}: {reason}"));
            }
        }
    }
}
