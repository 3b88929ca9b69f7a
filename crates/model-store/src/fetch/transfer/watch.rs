//! Looks at a running transfer four times a second: journal, free space, progress.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Halt, Transfer};
use crate::fetch::progress::Event;

/// Between two looks at disk space, journal and progress.
const TICK: Duration = Duration::from_millis(250);
/// Between two journals whose bytes are known to be on the disk.
const SYNC_EVERY: Duration = Duration::from_secs(5);

impl Transfer<'_> {
    /// Journal, free space and progress, until told to end.
    pub(super) async fn tick(&self, stop: &Notify) {
        let mut last = (Instant::now(), self.board().journal.done.bytes());
        let mut speed = 0.0f64;
        let mut synced = Instant::now();
        loop {
            tokio::select! {
                () = stop.notified() => return,
                () = tokio::time::sleep(TICK) => {}
            }
            let (done, total) = {
                let board = self.board();
                (board.journal.done.bytes(), board.journal.total_bytes)
            };
            let now = Instant::now();
            let rate = done.saturating_sub(last.1) as f64 / (now - last.0).as_secs_f64().max(1e-3);
            speed = if speed == 0.0 { rate } else { 0.7 * speed + 0.3 * rate };
            last = (now, done);
            self.progress.event(Event::Advanced {
                file: self.plan.name.clone(),
                done_bytes: done,
                total_bytes: total,
                bytes_per_second: speed as u64,
            });
            if let Err(error) = self.downloader.check_room(self.plan, 0, 0) {
                self.board().halt.get_or_insert(Halt::Fatal(error));
            }
            let sync = synced.elapsed() >= SYNC_EVERY;
            self.save_journal(sync).await;
            if sync {
                synced = Instant::now();
            }
        }
    }

    /// Saves what is there. A failure is not fatal here: the write of the data itself will tell.
    pub(super) async fn save_journal(&self, sync: bool) {
        let mut journal = self.board().journal.clone();
        let part = self.part.handle();
        let saved = tokio::task::spawn_blocking(move || part.write_journal(&mut journal, sync).map(|()| journal)).await;
        match saved {
            Ok(Ok(journal)) => self.board().journal.adopt_synced(journal),
            Ok(Err(error)) => tracing::debug!(%error, "could not save the journal of a download"),
            Err(error) => tracing::debug!(%error, "the journal's writer panicked"),
        }
    }
}
