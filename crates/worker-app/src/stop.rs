//! How a program ends, and what doctor finds: one message, one hint, one exit code.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// Why the program ends. Shown as one `error:` line and one `hint:` line; the code is for service managers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Stop {
    /// Which exit code.
    pub code: Code,
    /// The fact and the value, values in backticks, no full stop. Never a secret.
    pub message: String,
    /// What to try, as one sentence without a full stop.
    pub hint: Option<String>,
}

/// The exit codes of every worker (after sysexits.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Something nobody foresaw, or a check of doctor failed.
    Failed = 1,
    /// The command line cannot be understood.
    Usage = 64,
    /// No model to serve is on disk.
    NoModel = 66,
    /// No device to run on, or not the one asked for.
    NoDevice = 69,
    /// The state directory cannot be used.
    StateDir = 73,
    /// Another instance holds the state directory; for commands: no worker runs.
    Instance = 75,
    /// The configuration is wrong; also a key or name the Horde refuses.
    Config = 78,
}

impl Stop {
    /// A stop with `code` and no hint yet.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// No model to serve (66).
    pub fn no_model(message: impl Into<String>) -> Self {
        Self::new(Code::NoModel, message)
    }

    /// No device (69).
    pub fn no_device(message: impl Into<String>) -> Self {
        Self::new(Code::NoDevice, message)
    }

    /// Wrong configuration (78).
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Code::Config, message)
    }

    /// Something unforeseen (1).
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Code::Failed, message)
    }

    /// The same stop with what to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The lines for stderr, control characters escaped.
    pub fn render(&self) -> String {
        let mut lines = format!("error: {}\n", crate::text::printable_lines(&self.message));
        if let Some(hint) = &self.hint {
            lines.push_str(&format!("hint: {}\n", crate::text::printable_lines(hint)));
        }
        lines
    }
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        ExitCode::from(code as u8)
    }
}

/// How one check of doctor went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The worker runs, but the owner loses something.
    Warn,
    /// The worker cannot run like this.
    Fail,
}

/// One line of doctor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, one or two words.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Check {
    /// A check that went well.
    pub fn ok(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::with(name, Verdict::Ok, message)
    }

    /// A check that found a loss.
    pub fn warn(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::with(name, Verdict::Warn, message)
    }

    /// A check that found an obstacle.
    pub fn fail(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::with(name, Verdict::Fail, message)
    }

    /// The same check with what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A failed check that says what `stop` says.
    pub fn from_stop(name: impl Into<String>, stop: &Stop) -> Self {
        Self {
            name: name.into(),
            verdict: Verdict::Fail,
            message: stop.message.clone(),
            hint: stop.hint.clone(),
        }
    }

    fn with(name: impl Into<String>, verdict: Verdict, message: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            verdict,
            message: message.into(),
            hint: None,
        }
    }
}
