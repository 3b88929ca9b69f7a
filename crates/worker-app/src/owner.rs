//! The owner's hours: pauses the worker when a window opens and resumes it when the window closes.

use std::time::Duration;

use tokio::sync::mpsc;
use worker_runtime::Command;

use crate::config::Window;

/// A window opens or closes at most this late.
const LOOK: Duration = Duration::from_secs(10);

/// What a window's edge asks for. Only edges do: what the owner says in between by hand stands until the next one.
fn at_edge(was_open: bool, is_open: bool) -> Option<Command> {
    match (was_open, is_open) {
        (false, true) => Some(Command::Pause { for_: None, now: false }),
        (true, false) => Some(Command::Resume),
        _ => None,
    }
}

/// Watches the clock until dropped.
pub async fn keep_windows(windows: Vec<Window>, to_runtime: mpsc::Sender<Command>) {
    if windows.is_empty() {
        return;
    }
    let mut was_open = false;
    loop {
        let open = Window::open_now(&windows);
        if let Some(command) = at_edge(was_open, open.is_some()) {
            match open {
                Some(window) => tracing::info!(%window, "the owner's hours begin: pausing"),
                None => tracing::info!("the owner's hours are over: serving again"),
            }
            if to_runtime.send(command).await.is_err() {
                return;
            }
        }
        was_open = open.is_some();
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_edges_of_a_window_give_orders() {
        assert_eq!(at_edge(false, true), Some(Command::Pause { for_: None, now: false }));
        assert_eq!(at_edge(true, false), Some(Command::Resume));
        assert_eq!(at_edge(true, true), None);
        assert_eq!(at_edge(false, false), None);
    }
}
