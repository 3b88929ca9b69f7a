//! Asks, on a terminal or along a pipe.

use std::io::{BufRead, IsTerminal, Write};

use super::setup::MOST_TRIES;
use crate::stop::{Code, Stop};

/// Longest answer read.
const MAX_ANSWER_BYTES: u64 = 4096;

/// Answers, from a terminal or from a pipe.
pub(super) struct Input {
    is_terminal: bool,
    /// Nobody is asked: every answer is Enter.
    is_silent: bool,
}

impl Input {
    pub(super) fn new(is_silent: bool) -> Self {
        Self {
            is_terminal: std::io::stdin().is_terminal(),
            is_silent,
        }
    }

    pub(super) fn ask(&mut self, question: &str) -> Result<String, Stop> {
        if self.is_silent {
            return Ok(String::new());
        }
        print!("{question}");
        let _ = std::io::stdout().flush();
        let mut line = String::new();
        let n_read = std::io::Read::take(std::io::stdin().lock(), MAX_ANSWER_BYTES)
            .read_line(&mut line)
            .map_err(|error| Stop::failed(format!("the answer cannot be read: {error}")))?;
        if n_read == 0 {
            return Err(Stop::new(Code::Usage, "the answers ended before the questions did")
                .hint("run `setup` on a terminal, or write the configuration by hand"));
        }
        if !self.is_terminal {
            println!();
        }
        Ok(line.trim().to_owned())
    }

    /// As [`Input::ask`], without showing what is typed.
    pub(super) fn ask_secret(&mut self, question: &str) -> Result<String, Stop> {
        use crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers, read};
        if !self.is_terminal || self.is_silent {
            return self.ask(question);
        }
        print!("{question}");
        let _ = std::io::stdout().flush();
        let cannot = |error: std::io::Error| Stop::failed(format!("the terminal cannot be read: {error}"));
        crossterm::terminal::enable_raw_mode().map_err(cannot)?;
        let mut typed = String::new();
        let ended = loop {
            match read() {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => match key.code {
                    KeyCode::Enter => break Ok(()),
                    KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                        break Err(Stop::new(Code::Usage, "setup was left; nothing was written"));
                    }
                    KeyCode::Backspace => drop(typed.pop()),
                    KeyCode::Char(character) if typed.len() < 256 => typed.push(character),
                    _ => {}
                },
                Ok(Event::Paste(text)) => typed.push_str(&text),
                Ok(_) => {}
                Err(error) => break Err(cannot(error)),
            }
        };
        let _ = crossterm::terminal::disable_raw_mode();
        println!();
        ended.map(|()| typed)
    }

    /// Numbers from 1 to `n_choices` as indices; nothing typed is an empty list.
    pub(super) fn pick(&mut self, question: &str, n_choices: usize, several: bool) -> Result<Vec<usize>, Stop> {
        for _ in 0..MOST_TRIES {
            let typed = self.ask(question)?;
            if typed.is_empty() || typed == "auto" {
                return Ok(Vec::new());
            }
            let numbers: Result<Vec<usize>, _> = typed.split(',').map(|number| number.trim().parse()).collect();
            match numbers {
                Ok(numbers)
                    if (several || numbers.len() == 1)
                        && numbers.iter().all(|number| (1..=n_choices).contains(number)) =>
                {
                    return Ok(numbers.into_iter().map(|number| number - 1).collect());
                }
                _ => println!("   Type a number from the list."),
            }
        }
        Err(Stop::new(Code::Usage, "no number from the list was given"))
    }
}
