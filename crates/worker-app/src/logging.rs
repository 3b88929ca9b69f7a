//! Log lines: written by a thread of their own behind a bounded queue, so that a slow disk or terminal costs lines, never
//! jobs. Control characters are escaped. What is logged holds no prompt, result or key; libraries that might print an
//! address or a header are held to warnings.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogSettings};
use crate::stop::Stop;
use crate::text::{printable, printable_json};

/// A second of very noisy logging; at most about 1 MiB.
const QUEUE_LINES: usize = 4096;
/// The log file is renamed to `….1` beyond this.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// Longest line kept.
const MAX_LINE_BYTES: usize = 16 << 10;
/// Appended to the owner's filter: these could print headers, addresses or bodies.
const QUIET: &str = "hyper=warn,hyper_util=warn,h2=warn,reqwest=warn,rustls=warn";

/// Where lines go.
pub enum Sink {
    /// Standard error.
    Stderr,
    /// A file, as the display has the terminal.
    File(PathBuf),
}

/// Where the supervisor tells its engines what to log; its own filter decides again.
pub const ENGINE_FILTER: &str = "WORKER_ENGINE_LOG";

/// Logs an engine's events to its standard error, a level in front of each, which the supervisor puts into its own log. Its
/// filter is that of [`ENGINE_FILTER`]; without one, information and what is worse.
pub fn start_in_engine() {
    let filter = std::env::var(ENGINE_FILTER).unwrap_or_default();
    let filter = EnvFilter::builder()
        .parse(format!("{},{QUIET}", if filter.is_empty() { "info" } else { &filter }))
        .unwrap_or_else(|_| EnvFilter::new("info"));
    // An engine without a log still serves.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(io::stderr)
        .finish()
        .try_init();
}

/// Keeps the writing thread; when dropped, what is queued is written.
pub struct Logging {
    dropped: Arc<AtomicU64>,
    warnings: Arc<AtomicU64>,
    queue: Option<SyncSender<Vec<u8>>>,
    writer: Option<JoinHandle<()>>,
}

impl Logging {
    /// Starts logging for the whole process. Starts a thread: the sandbox comes first.
    pub fn start(settings: &LogSettings, sink: Sink) -> Result<Self, Stop> {
        let (logging, lines) = Self::queue(sink)?;
        let filter = EnvFilter::builder()
            .parse(format!("{},{QUIET}", settings.filter))
            .map_err(|error| Stop::config(format!("`log` is no filter: {error}")))?;
        let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
        let started = match settings.format {
            LogFormat::Json => builder.json().with_writer(lines.json()).finish().try_init(),
            _ => builder.with_writer(lines).finish().try_init(),
        };
        started.map_err(|error| Stop::failed(format!("logging cannot be started: {error}")))?;
        Ok(logging)
    }

    /// Lines dropped so far.
    pub fn dropped(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.dropped)
    }

    /// Warnings and errors so far.
    pub fn warnings(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.warnings)
    }

    fn queue(sink: Sink) -> Result<(Self, Lines), Stop> {
        let (queue, received) = sync_channel(QUEUE_LINES);
        let (dropped, warnings) = (Arc::default(), Arc::default());
        let writer = std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_lines(&received, sink))
            .map_err(|error| Stop::failed(format!("no thread can be started: {error}")))?;
        let lines = Lines {
            queue: queue.clone(),
            dropped: Arc::clone(&dropped),
            warnings: Arc::clone(&warnings),
            is_json: false,
        };
        Ok((
            Self {
                dropped,
                warnings,
                queue: Some(queue),
                writer: Some(writer),
            },
            lines,
        ))
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let Some(queue) = self.queue.take() else { return };
        // The subscriber keeps its end for ever; an empty line is the end. A writer that is stuck is not waited for.
        for _ in 0..20 {
            match queue.try_send(Vec::new()) {
                Err(TrySendError::Full(_)) => std::thread::sleep(Duration::from_millis(10)),
                Err(TrySendError::Disconnected(_)) => break,
                Ok(()) => {
                    if let Some(writer) = self.writer.take() {
                        for _ in 0..50 {
                            if writer.is_finished() {
                                return;
                            }
                            std::thread::sleep(Duration::from_millis(10));
                        }
                    }
                    break;
                }
            }
        }
    }
}

fn write_lines(lines: &Receiver<Vec<u8>>, sink: Sink) {
    let mut sink = match sink {
        Sink::Stderr => Out::Stderr,
        Sink::File(path) => Out::File(LogFile::open(path)),
    };
    while let Ok(line) = lines.recv() {
        if line.is_empty() {
            break;
        }
        // A full disk must not end the worker: the line is lost.
        let _ = match &mut sink {
            Out::Stderr => io::stderr().write_all(&line),
            Out::File(file) => file.write(&line),
        };
    }
}

enum Out {
    Stderr,
    File(LogFile),
}

struct LogFile {
    path: PathBuf,
    file: Option<File>,
    bytes: u64,
}

impl LogFile {
    fn open(path: PathBuf) -> Self {
        let file = open_append(&path).ok();
        let bytes = file
            .as_ref()
            .and_then(|file| file.metadata().ok())
            .map_or(0, |metadata| metadata.len());
        Self { path, file, bytes }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > MAX_FILE_BYTES {
            let mut older = self.path.clone().into_os_string();
            older.push(".1");
            std::fs::rename(&self.path, older)?;
            self.file = None;
            self.bytes = 0;
        }
        if self.file.is_none() {
            self.file = Some(open_append(&self.path)?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(line)?;
            self.bytes += line.len() as u64;
        }
        Ok(())
    }
}

fn open_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Makes one writer per event.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    warnings: Arc<AtomicU64>,
    is_json: bool,
}

impl Lines {
    fn json(self) -> Self {
        Self { is_json: true, ..self }
    }
}

/// Collects one event and queues it when dropped.
struct Line {
    lines: Lines,
    bytes: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            lines: self.clone(),
            bytes: Vec::with_capacity(256),
        }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Line {
        // Levels are ordered by how much they let through: errors are the least.
        if *meta.level() <= tracing::Level::WARN {
            self.warnings.fetch_add(1, Ordering::Relaxed);
        }
        self.make_writer()
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_LINE_BYTES.saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.bytes.is_empty() {
            return;
        }
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.trim_end_matches('\n');
        let mut line = if self.lines.is_json {
            printable_json(text)
        } else {
            printable(text)
        };
        line.push('\n');
        if self.lines.queue.try_send(line.into_bytes()).is_err() {
            self.lines.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(lines: &Lines, text: &str) {
        write!(lines.make_writer(), "{text}").unwrap();
    }

    #[test]
    fn lines_reach_the_file_escaped_and_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("worker.log");
        let (logging, lines) = Logging::queue(Sink::File(path.clone())).unwrap();
        line(&lines, "one\x1b[31m\n");
        line(&lines.clone().json(), "{\"m\":\"a\u{9b}b\"}\n");
        drop(logging);
        assert_eq!(
            std::fs::read_to_string(path).unwrap(),
            "one\\u{1b}[31m\n{\"m\":\"a\\u009bb\"}\n"
        );
    }

    #[test]
    fn warnings_and_errors_are_counted_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let (logging, lines) = Logging::queue(Sink::File(directory.path().join("worker.log"))).unwrap();
        let subscriber = tracing_subscriber::fmt().with_writer(lines).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("a");
            tracing::warn!("b");
            tracing::error!("c");
        });
        assert_eq!(logging.warnings().load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_stuck_writer_costs_lines_and_counts_them() {
        let (queue, _received) = sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let lines = Lines {
            queue,
            dropped: Arc::clone(&dropped),
            warnings: Arc::default(),
            is_json: false,
        };
        for _ in 0..4 {
            line(&lines, "x");
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_log_file_that_grew_too_long_is_moved_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("worker.log");
        let mut file = LogFile::open(path.clone());
        file.write(b"old\n").unwrap();
        file.bytes = MAX_FILE_BYTES + 1;
        file.write(b"new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        assert_eq!(
            std::fs::read_to_string(directory.path().join("worker.log.1")).unwrap(),
            "old\n"
        );
    }
}
