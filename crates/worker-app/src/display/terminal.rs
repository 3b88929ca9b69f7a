//! Owns the terminal while the worker runs, and gives it back on every way out, panics among them.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::{mpsc, watch};

use crate::state::StatusFile;
use crate::stop::Stop;

/// How often keys are looked for; also the delay of a redraw.
const TICK: Duration = Duration::from_millis(100);
/// Times shown (ages, rates) move at least this often.
const REDRAW: Duration = Duration::from_millis(1000);

/// What the owner pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// `p`
    Pause,
    /// `r`
    Resume,
    /// `f`
    Finish,
    /// `q`
    Drain,
    /// Ctrl-C, which a terminal in raw mode does not turn into a signal.
    Interrupt,
}

/// The thread that draws and reads keys.
pub struct Display {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Whether there is a terminal to draw on and read from.
    pub fn is_possible() -> bool {
        std::io::stdout().is_terminal() && std::io::stdin().is_terminal()
    }

    /// Takes the terminal. Ratatui's panic hook gives it back before a panic is printed.
    pub fn start(mut status: watch::Receiver<StatusFile>, keys: mpsc::Sender<Key>) -> Result<Self, Stop> {
        let cannot = |error: std::io::Error| {
            Stop::failed(format!("the terminal cannot be used: {error}"))
                .hint("use `--log text` to do without the display")
        };
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let mut terminal = ratatui::try_init().map_err(cannot)?;
        let thread = std::thread::Builder::new().name("display".to_owned()).spawn(move || {
            let mut last_draw: Option<Instant> = None;
            while !told.load(Ordering::Relaxed) {
                let is_due = last_draw.is_none_or(|at| at.elapsed() >= REDRAW);
                if is_due || status.has_changed().unwrap_or(false) {
                    let file = status.borrow_and_update().clone();
                    if terminal.draw(|frame| super::draw(frame, &file)).is_err() {
                        break;
                    }
                    last_draw = Some(Instant::now());
                }
                match read_key() {
                    Ok(Pressed::Key(key)) => drop(keys.try_send(key)),
                    Ok(Pressed::Resized) => last_draw = None,
                    Ok(Pressed::Nothing) => {}
                    // The terminal is gone; SIGHUP tells the worker.
                    Err(_) => break,
                }
            }
            ratatui::restore();
        });
        match thread {
            Ok(thread) => Ok(Self {
                over,
                thread: Some(thread),
            }),
            Err(error) => {
                ratatui::restore();
                Err(cannot(error))
            }
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the drawing thread has restored the terminal already.
            let _ = thread.join();
        }
    }
}

enum Pressed {
    Key(Key),
    Resized,
    Nothing,
}

fn read_key() -> std::io::Result<Pressed> {
    if !event::poll(TICK)? {
        return Ok(Pressed::Nothing);
    }
    Ok(match event::read()? {
        Event::Resize(..) => Pressed::Resized,
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Pressed::Key(Key::Interrupt),
            KeyCode::Char('p') => Pressed::Key(Key::Pause),
            KeyCode::Char('r') => Pressed::Key(Key::Resume),
            KeyCode::Char('f') => Pressed::Key(Key::Finish),
            KeyCode::Char('q') => Pressed::Key(Key::Drain),
            _ => Pressed::Nothing,
        },
        _ => Pressed::Nothing,
    })
}
