//! The system's signals: each further one is more urgent than the one before.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use worker_runtime::Shutdown;

/// The urgency after one more signal of the ordinary kind.
pub fn more_urgent(before: Shutdown) -> Shutdown {
    match before {
        Shutdown::No => Shutdown::Drain,
        Shutdown::Drain => Shutdown::HandBack,
        Shutdown::HandBack | Shutdown::Abort => Shutdown::Abort,
    }
}

/// Raises `shutdown` on each SIGTERM, SIGINT or SIGHUP, and at once to the top on SIGQUIT. Runs until dropped.
pub async fn watch_signals(shutdown: watch::Sender<Shutdown>) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut quit = signal(SignalKind::quit())?;
    loop {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = hangup.recv() => "SIGHUP",
            _ = quit.recv() => "SIGQUIT",
        };
        shutdown.send_modify(|how| {
            *how = if name == "SIGQUIT" {
                Shutdown::Abort
            } else {
                more_urgent(*how)
            }
        });
        let what = match *shutdown.borrow() {
            Shutdown::No => "nothing",
            Shutdown::Drain => {
                "jobs that end soon are finished, the rest is handed back; once more hands everything back"
            }
            Shutdown::HandBack => "everything is handed back; once more leaves at once",
            Shutdown::Abort => "leaving at once; the next start cleans up",
        };
        tracing::warn!(signal = name, "{what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_drains_the_second_hands_back_the_third_leaves() {
        let first = more_urgent(Shutdown::No);
        let second = more_urgent(first);
        let third = more_urgent(second);
        assert_eq!(
            (first, second, third),
            (Shutdown::Drain, Shutdown::HandBack, Shutdown::Abort)
        );
        assert_eq!(more_urgent(third), Shutdown::Abort);
    }
}
