//! What the process gives up before it does anything: listening, and being looked into.

use landlock::{ABI, Access, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus};

/// How far the process is confined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Listening on TCP is denied by the kernel.
    NoListening,
    /// The kernel cannot deny it (before 6.7, or Landlock is off); the program does not listen by itself.
    Unconfined,
}

impl Sandbox {
    /// Denies binding TCP ports, for this thread and all it starts: call it before the first other thread exists.
    /// Best effort: an old kernel is told in the result, never an error.
    pub fn enter() -> Self {
        let restricted = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessNet::from_all(ABI::V4) & AccessNet::BindTcp)
            .and_then(Ruleset::create)
            .and_then(|ruleset| ruleset.restrict_self());
        match restricted.map(|status| status.ruleset) {
            Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Self::NoListening,
            _ => Self::Unconfined,
        }
    }

    /// For the status file and doctor.
    pub fn describe(self) -> &'static str {
        match self {
            Self::NoListening => "listening on TCP is denied by the kernel (Landlock)",
            Self::Unconfined => "not confined: this kernel has no Landlock network rules",
        }
    }
}

/// Keeps other processes of the same user from reading this one's memory, where the key is; also no core dumps.
pub fn hide_memory() {
    #[cfg(target_os = "linux")]
    if let Err(error) = nix::sys::prctl::set_dumpable(false) {
        tracing::warn!(%error, "the process could not be hidden from debuggers");
    }
}

/// In an engine child: Ctrl-C on a terminal goes to the whole group, but ending the child is the supervisor's decision.
pub fn leave_signals_to_supervisor() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal installs no handler code.
    if let Err(error) = unsafe { signal(Signal::SIGINT, SigHandler::SigIgn) } {
        eprintln!("warning: SIGINT cannot be ignored: {error}");
    }
}
