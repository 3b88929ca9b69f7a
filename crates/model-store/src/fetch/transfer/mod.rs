//! One file from one web address: a few connections fill the gaps of the part file in order.

mod answer;
mod stream;
mod watch;

use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;
use url::Url;

use super::follow::Follower;
use super::part::{Journal, Part};
use super::plan::{FetchError, FetchPlan, SourceFailure};
use super::progress::Event;
use super::{Control, Downloader, Progress};

/// Failures before the next source is tried, when this one never answered.
const ATTEMPTS_UNANSWERED: u32 = 2;

/// How the transfer of one source ended without the whole file.
pub(super) enum Halt {
    /// Try the next source.
    Source(SourceFailure),
    /// Nothing else will help.
    Fatal(FetchError),
}

impl From<FetchError> for Halt {
    fn from(error: FetchError) -> Self {
        Halt::Fatal(error)
    }
}

/// The file in the making, shared by its connections.
pub(super) struct Transfer<'a> {
    pub downloader: &'a Downloader,
    pub plan: &'a FetchPlan,
    pub part: &'a Part,
    pub progress: &'a dyn Progress,
    pub control: &'a Control,
    pub board: Mutex<Board>,
}

/// What is there, what is asked for, what went wrong.
pub(super) struct Board {
    pub journal: Journal,
    pub follower: Follower,
    /// Gaps nobody works on, first one last.
    todo: Vec<(u64, u64)>,
    failures: u32,
    /// Where the redirects ended the last time.
    resolved: Option<Url>,
    halt: Option<Halt>,
    /// Somebody got the whole file for a range: the connections end and one stream starts from zero.
    whole_only: bool,
    /// Has this source answered at all?
    answered: bool,
}

impl Board {
    pub(super) fn new(journal: Journal, follower: Follower) -> Self {
        follower.advance(journal.done.prefix());
        Self {
            journal,
            follower,
            todo: Vec::new(),
            failures: 0,
            resolved: None,
            halt: None,
            whole_only: false,
            answered: false,
        }
    }

    fn is_complete(&self) -> bool {
        self.journal
            .total_bytes
            .is_some_and(|total| self.journal.done.prefix() >= total)
    }
}

enum Body {
    Range(reqwest::Response),
    Whole(reqwest::Response),
}

impl Transfer<'_> {
    /// Fills the part file from `url`. On return without error, every byte is written.
    pub(super) async fn run(&self, url: &Url) -> Result<(), Halt> {
        {
            let mut board = self.board();
            board.failures = 0;
            board.resolved = None;
            board.halt = None;
            board.answered = false;
        }
        let stop_ticking = Notify::new();
        let work = async {
            let outcome = self.fill(url).await;
            stop_ticking.notify_one();
            outcome
        };
        let (outcome, ()) = tokio::join!(work, self.tick(&stop_ticking));
        self.save_journal(false).await;
        let halted = self.board().halt.take();
        match (outcome, halted) {
            (_, Some(halt)) => Err(halt),
            (outcome, None) => outcome,
        }
    }

    async fn fill(&self, url: &Url) -> Result<(), Halt> {
        // The first connection finds out what the server can do and how long the file is.
        loop {
            if self.board().is_complete() {
                return Ok(());
            }
            let Some(mut first) = self.first_gap() else {
                return Ok(());
            };
            match self.open(url, first).await? {
                None => continue,
                Some(Body::Whole(response)) => {
                    if self.stream_whole(response).await? {
                        return Ok(());
                    }
                }
                Some(Body::Range(response)) => {
                    first.1 = self.plan_gaps(first)?;
                    let others = self.downloader.settings.connections_per_file.max(1) - 1;
                    let lead = self.work(url, Some((first, response)));
                    let rest = (0..others).map(|_| self.work(url, None));
                    let (lead, rest) = tokio::join!(lead, join_all(rest));
                    lead?;
                    rest.into_iter().collect::<Result<Vec<()>, _>>()?;
                    if self.board().is_complete() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// One connection: takes gaps until none is left or somebody halted the transfer.
    async fn work(&self, url: &Url, mut opened: Option<((u64, u64), reqwest::Response)>) -> Result<(), Halt> {
        loop {
            if self.is_over() {
                return Ok(());
            }
            let (mut gap, response) = match opened.take() {
                Some((gap, response)) => (gap, Some(response)),
                None => match self.board().todo.pop() {
                    Some(gap) => (gap, None),
                    None => return Ok(()),
                },
            };
            let response = match response {
                Some(response) => response,
                None => match self.open(url, gap).await {
                    Ok(Some(Body::Range(response))) => response,
                    Ok(Some(Body::Whole(_))) => {
                        self.board().whole_only = true;
                        return Ok(());
                    }
                    Ok(None) => {
                        self.board().todo.push(gap);
                        continue;
                    }
                    Err(halt) => {
                        self.board().halt.get_or_insert(halt);
                        return Ok(());
                    }
                },
            };
            let outcome = self.read(response, &mut gap.0, Some(gap.1)).await;
            if gap.0 < gap.1 {
                self.board().todo.push(gap);
            }
            match outcome {
                Ok(Some(reason)) => self.failed(reason, None).await?,
                Ok(None) => {}
                Err(halt) => {
                    self.board().halt.get_or_insert(halt);
                    return Ok(());
                }
            }
        }
    }

    /// Counts a failure and waits, or gives the source up.
    async fn failed(&self, reason: String, wait: Option<Duration>) -> Result<(), Halt> {
        let (failures, answered) = {
            let mut board = self.board();
            board.failures += 1;
            (board.failures, board.answered)
        };
        let mut attempts = self.downloader.http.patience().attempts.max(1);
        if !answered && self.plan.sources.len() > 1 {
            // Nobody waits for a host out of reach while another one may have the file.
            attempts = attempts.min(ATTEMPTS_UNANSWERED);
        }
        if failures >= attempts {
            return Err(Halt::Source(SourceFailure::Unreachable { reason }));
        }
        let wait = wait.unwrap_or_else(|| self.downloader.settings.backoff.wait(failures));
        self.progress.event(Event::Retrying {
            file: self.plan.name.clone(),
            reason,
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.control.interrupted() => {}
        }
        Ok(())
    }

    /// Shall the connections end?
    fn is_over(&self) -> bool {
        let board = self.board();
        board.halt.is_some() || board.whole_only
    }

    fn first_gap(&self) -> Option<(u64, u64)> {
        let board = self.board();
        let chunk = self.chunk_bytes(board.journal.total_bytes);
        match board.journal.total_bytes {
            Some(total) => board.journal.done.missing(total, chunk).first().copied(),
            None => Some((0, chunk)),
        }
    }

    /// Cuts what is missing besides `lead` into gaps once the length is known, and makes sure that it fits.
    /// Returns where `lead` really ends.
    fn plan_gaps(&self, lead: (u64, u64)) -> Result<u64, Halt> {
        let total = self.board().journal.total_bytes;
        let Some(total) = total else {
            return Err(Halt::Source(SourceFailure::WrongRange));
        };
        self.downloader
            .check_room(self.plan, total, self.part.allocated_bytes())?;
        self.part
            .reserve(total)
            .map_err(|e| super::io_error(self.part.path(), e))?;
        let mut board = self.board();
        let mut taken = board.journal.done.clone();
        taken.insert(lead.0, lead.1.min(total));
        let mut gaps = taken.missing(total, self.chunk_bytes(Some(total)));
        gaps.reverse();
        board.todo = gaps;
        board.whole_only = false;
        Ok(lead.1.min(total))
    }

    /// Long enough that a round trip per gap does not matter, short enough that the front keeps moving.
    fn chunk_bytes(&self, total: Option<u64>) -> u64 {
        let mib = total.map_or(8, |total| (total >> 26).clamp(4, 32));
        self.downloader.settings.chunk_bytes.unwrap_or(mib << 20).max(1)
    }

    /// Bytes that are in the part file.
    pub(super) fn done_bytes(&self) -> u64 {
        self.board().journal.done.bytes()
    }

    /// Length and sum of the filled part file. The next transfer into it starts with a new sum.
    pub(super) async fn take_sum(&self) -> Result<(u64, crate::digest::Sha256Sum), Halt> {
        let (total, follower) = {
            let mut board = self.board();
            let total = board.journal.total_bytes.unwrap_or_else(|| board.journal.done.bytes());
            // The sum is taken once; the idle one in its place costs nothing and serves if the file must be fetched anew.
            let idle = Follower::start(self.part.file.clone());
            (total, std::mem::replace(&mut board.follower, idle))
        };
        let length = self
            .part
            .file
            .metadata()
            .map_err(|e| super::io_error(self.part.path(), e))?
            .len();
        if length != total {
            // The file was reserved longer than what came, or somebody else wrote into it.
            self.part
                .file
                .set_len(total)
                .map_err(|e| super::io_error(self.part.path(), e))?;
        }
        let sum = follower
            .finish(total)
            .await
            .map_err(|e| super::io_error(self.part.path(), e))?;
        Ok((total, sum))
    }

    /// Throws away what is there: the next byte is byte zero.
    pub(super) fn start_over(&self) -> Result<(), FetchError> {
        self.part.reset().map_err(|e| super::io_error(self.part.path(), e))?;
        let mut board = self.board();
        board.follower = Follower::start(self.part.file.clone());
        board.journal.done = Default::default();
        board.journal.total_bytes = self.plan.size_bytes;
        board.journal.etag = None;
        Ok(())
    }

    /// Records that the part file was filled by other means, whole.
    pub(super) fn filled(&self, total: u64) {
        let mut board = self.board();
        board.journal.done.insert(0, total);
        board.journal.total_bytes = Some(total);
        board.follower.advance(total);
    }

    fn board(&self) -> std::sync::MutexGuard<'_, Board> {
        self.board.lock().expect("no holder of this lock panics")
    }
}
