//! What the owner wants: run, rest for a while, finish what is there, or stop.

use std::time::Duration;

use tokio::time::Instant;

/// What the owner or the system asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Stop popping; when `now`, hand back what is held at once instead of finishing it. Devices are emptied. Ends by itself after `for_`.
    Pause {
        /// How long; `None` until told otherwise.
        for_: Option<Duration>,
        /// Hand back what is held instead of finishing it.
        now: bool,
    },
    /// End a pause, and take back a `Finish`.
    Resume,
    /// Pop nothing more, finish everything held, then exit.
    Finish,
    /// As the first signal: hand back what waits, finish what runs and ends soon, exit.
    Stop,
}

/// How urgently the program should end; never goes backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shutdown {
    /// Not at all.
    #[default]
    No,
    /// First signal: drain.
    Drain,
    /// Second signal: hand everything back within five seconds.
    HandBack,
    /// Third signal: leave now; the ledger remembers.
    Abort,
}

/// What the owner wants at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Serve.
    #[default]
    Run,
    /// Rest.
    Pause {
        /// Until then; `None` until told otherwise.
        until: Option<Instant>,
        /// Hand back instead of finishing.
        now: bool,
    },
    /// Finish and exit.
    Finish,
    /// End, this urgently.
    Stop(Shutdown),
}

impl Wish {
    /// The wish after a command. Stopping is never taken back.
    #[must_use]
    pub fn on(self, command: Command, now: Instant) -> Self {
        match (self, command) {
            (Self::Stop(how), _) => Self::Stop(how),
            (_, Command::Stop) => Self::Stop(Shutdown::Drain),
            (_, Command::Pause { for_, now: at_once }) => {
                // A pause too long to be counted has no end.
                Self::Pause {
                    until: for_.and_then(|length| now.checked_add(length)),
                    now: at_once,
                }
            }
            (_, Command::Finish) => Self::Finish,
            (_, Command::Resume) => Self::Run,
        }
    }

    /// The wish after a signal of the system.
    #[must_use]
    pub fn on_shutdown(self, how: Shutdown) -> Self {
        match self {
            Self::Stop(before) => Self::Stop(before.max(how)),
            other if how == Shutdown::No => other,
            _ => Self::Stop(how),
        }
    }

    /// The wish when time has passed: a pause ends by itself.
    #[must_use]
    pub fn at(self, now: Instant) -> Self {
        match self {
            Self::Pause { until: Some(until), .. } if until <= now => Self::Run,
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_by_itself_or_by_resume_and_a_huge_one_never() {
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        let paused = Wish::Run.on(
            Command::Pause {
                for_: Some(hour),
                now: false,
            },
            now,
        );
        assert!(matches!(paused.at(now + hour / 2), Wish::Pause { .. }));
        assert_eq!(paused.at(now + hour), Wish::Run);
        assert_eq!(paused.on(Command::Resume, now), Wish::Run);
        let endless = Wish::Run.on(
            Command::Pause {
                for_: Some(Duration::MAX),
                now: false,
            },
            now,
        );
        assert_eq!(
            endless,
            Wish::Pause {
                until: None,
                now: false
            }
        );
    }

    #[test]
    fn stopping_only_gets_more_urgent() {
        let now = Instant::now();
        let wish = Wish::Run.on_shutdown(Shutdown::HandBack);
        assert_eq!(wish.on_shutdown(Shutdown::Drain), Wish::Stop(Shutdown::HandBack));
        assert_eq!(wish.on(Command::Resume, now), Wish::Stop(Shutdown::HandBack));
        assert_eq!(Wish::Finish.on_shutdown(Shutdown::No), Wish::Finish);
        assert_eq!(wish.on_shutdown(Shutdown::Abort), Wish::Stop(Shutdown::Abort));
    }
}
