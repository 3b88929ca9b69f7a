//! One file from one web address: a few connections fill the gaps of the part file in order.

use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG};
use tokio::sync::Notify;
use tokio::time::Instant;
use url::Url;

use super::follow::Follower;
use super::http::{Answer, Miss, header_text};
use super::part::{Journal, Part};
use super::plan::{FetchError, FetchPlan, SourceFailure};
use super::progress::Event;
use super::{Control, Downloader, Progress, Wanted};

/// Bytes gathered before a write; one write is one hop to a blocking thread.
const WRITE_BYTES: usize = 1 << 20;
/// Between two looks at disk space, journal and progress.
const TICK: Duration = Duration::from_millis(250);
/// Between two journals whose bytes are known to be on the disk.
const SYNC_EVERY: Duration = Duration::from_secs(5);
/// The slowest connection that is kept.
const DRIP_BYTES_PER_SECOND: u64 = 1024;

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

    /// Sends the request for `gap` and checks that the answer is what was asked for. `None`: waited, try again.
    async fn open(&self, url: &Url, gap: (u64, u64)) -> Result<Option<Body>, Halt> {
        if self.control.wanted() != Wanted::Run {
            self.progress.event(Event::Paused {
                file: self.plan.name.clone(),
            });
            if !self.control.may_run().await {
                return Err(FetchError::Stopped.into());
            }
        }
        let resolved = self.board().resolved.clone();
        let target = resolved.as_ref().unwrap_or(url);
        let host_permit = self.downloader.host_permit(target).await;
        let sent = tokio::select! {
            sent = self.downloader.http.get(target, Some(gap)) => sent,
            () = self.control.interrupted() => return Ok(None),
        };
        drop(host_permit);
        let answer = match sent {
            Ok(answer) => answer,
            Err(Miss::Transient { reason, wait }) => {
                self.board().resolved = None;
                self.failed(reason, wait).await?;
                return Ok(None);
            }
            Err(Miss::Final(SourceFailure::Refused {
                status: 401 | 403 | 404 | 410,
            })) if resolved.is_some() => {
                // A signed link that expired: its resolver hands out a new one.
                self.board().resolved = None;
                self.failed("the signed link has expired".into(), Some(Duration::ZERO))
                    .await?;
                return Ok(None);
            }
            Err(Miss::Final(SourceFailure::Refused { status: 416 })) => {
                return Err(Halt::Source(match self.board().journal.total_bytes {
                    Some(expected) => SourceFailure::WrongLength { announced: 0, expected },
                    None => SourceFailure::WrongRange,
                }));
            }
            Err(Miss::Final(failure)) => return Err(Halt::Source(failure)),
        };
        self.admit(answer, gap).map(Some).map_err(Halt::Source)
    }

    fn admit(&self, answer: Answer, gap: (u64, u64)) -> Result<Body, SourceFailure> {
        let Answer {
            response,
            url,
            linked_sum,
        } = answer;
        if let Some(kind) = header_text(&response, CONTENT_TYPE.as_str())
            && kind.to_ascii_lowercase().starts_with("text/html")
        {
            return Err(SourceFailure::NotTheFile {
                found: "a web page".into(),
            });
        }
        if let (Some(expected), Some(Ok(found))) = (self.plan.sha256, linked_sum.map(|sum| sum.parse()))
            && found != expected
        {
            return Err(SourceFailure::WrongHash { found, expected });
        }
        let partial = response.status().as_u16() == 206;
        let total = if partial {
            let (start, end, total) = header_text(&response, CONTENT_RANGE.as_str())
                .and_then(|text| parse_content_range(&text))
                .ok_or(SourceFailure::WrongRange)?;
            if start != gap.0 || end > gap.1 || end <= start {
                return Err(SourceFailure::WrongRange);
            }
            total
        } else {
            header_text(&response, CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok())
        };
        let etag = header_text(&response, ETAG.as_str()).filter(|tag| !tag.starts_with("W/"));
        let mut board = self.board();
        board.answered = true;
        if let Some(announced) = total {
            if let Some(expected) = self.plan.size_bytes.filter(|expected| *expected != announced) {
                return Err(SourceFailure::WrongLength { announced, expected });
            }
            if announced > self.plan.max_bytes {
                return Err(SourceFailure::TooLong {
                    limit: self.plan.max_bytes,
                });
            }
        }
        // Without a sum, only an unchanged tag and length say that old and new bytes belong together.
        let changed = self.plan.sha256.is_none()
            && board.journal.done.bytes() > 0
            && (board.journal.etag != etag || (total.is_some() && total != board.journal.total_bytes));
        if changed {
            self.part
                .reset()
                .map_err(|e| SourceFailure::Unreachable { reason: e.to_string() })?;
            board.follower = Follower::start(self.part.file.clone());
            board.journal.done = Default::default();
            board.todo.clear();
            board.journal.total_bytes = self.plan.size_bytes;
            board.journal.etag = None;
            return Err(SourceFailure::Changed);
        }
        if let Some(total) = total {
            board.journal.total_bytes = Some(total);
        }
        board.journal.etag = etag;
        board.resolved = Some(url);
        Ok(if partial {
            Body::Range(response)
        } else {
            Body::Whole(response)
        })
    }

    /// A server without ranges: one stream from byte zero; any interruption starts it again.
    async fn stream_whole(&self, response: reqwest::Response) -> Result<bool, Halt> {
        {
            let mut board = self.board();
            board.whole_only = false;
            if board.journal.done.bytes() > 0 {
                self.part.reset().map_err(|e| super::io_error(self.part.path(), e))?;
                board.follower = Follower::start(self.part.file.clone());
                board.journal.done = Default::default();
            }
        }
        if let Some(total) = self.board().journal.total_bytes {
            self.downloader
                .check_room(self.plan, total, self.part.allocated_bytes())?;
        }
        let announced = header_text(&response, CONTENT_LENGTH.as_str()).is_some();
        let mut at = 0;
        match self.read(response, &mut at, None).await? {
            Some(reason) => {
                self.failed(reason, None).await?;
                Ok(false)
            }
            None => {
                let expected = self.board().journal.total_bytes;
                match expected {
                    Some(total) if at < total && announced => {
                        self.failed("the answer ended early".into(), None).await?;
                        Ok(false)
                    }
                    Some(expected) if at < expected => Err(Halt::Source(SourceFailure::WrongLength {
                        announced: at,
                        expected,
                    })),
                    _ => {
                        self.board().journal.total_bytes = Some(at);
                        Ok(true)
                    }
                }
            }
        }
    }

    /// Reads one answer into the part file from `at` to `end` (or its own end). `Some(reason)`: it broke off.
    async fn read(
        &self,
        mut response: reqwest::Response,
        at: &mut u64,
        end: Option<u64>,
    ) -> Result<Option<String>, Halt> {
        let limit = end.or(self.board().journal.total_bytes).unwrap_or(self.plan.max_bytes);
        let _host = self.downloader.host_permit(response.url()).await;
        let patience = self.downloader.http.patience();
        let mut buffer: Vec<u8> = Vec::new();
        let mut drip_since = (Instant::now(), *at);
        loop {
            let got = tokio::select! {
                got = response.chunk() => got,
                () = self.control.interrupted() => {
                    self.write(&mut buffer, at).await?;
                    return Ok(None);
                }
            };
            let broke = match got {
                Ok(Some(bytes)) => {
                    self.downloader.throttle.take(bytes.len()).await;
                    if *at + (buffer.len() + bytes.len()) as u64 > limit {
                        return Err(Halt::Source(SourceFailure::TooLong { limit }));
                    }
                    if *at == 0 && buffer.len() < SNIFF_BYTES {
                        buffer.extend_from_slice(&bytes);
                        if let Some(found) = not_a_model(&buffer) {
                            return Err(Halt::Source(SourceFailure::NotTheFile { found: found.into() }));
                        }
                    } else {
                        buffer.extend_from_slice(&bytes);
                    }
                    if self.is_over() && end.is_some() || self.board().halt.is_some() {
                        self.write(&mut buffer, at).await?;
                        return Ok(None);
                    }
                    if buffer.len() >= WRITE_BYTES {
                        self.write(&mut buffer, at).await?;
                    }
                    None
                }
                Ok(None) => {
                    self.write(&mut buffer, at).await?;
                    let short = end.is_some_and(|end| *at < end);
                    return Ok(short.then(|| "the answer ended early".to_owned()));
                }
                Err(error) => Some(super::http::plain(&error)),
            };
            let elapsed = drip_since.0.elapsed();
            let dripping = elapsed > patience.drip && {
                let come = *at + buffer.len() as u64 - drip_since.1;
                drip_since = (Instant::now(), *at + buffer.len() as u64);
                // A cap of the owner's own may be as slow as that; then nothing is wrong with the server.
                self.downloader.settings.bytes_per_second.is_none() && come < DRIP_BYTES_PER_SECOND * elapsed.as_secs()
            };
            if let Some(reason) = broke.or(dripping.then(|| "slower than 1 KiB/s".to_owned())) {
                self.write(&mut buffer, at).await?;
                return Ok(Some(reason));
            }
        }
    }

    async fn write(&self, buffer: &mut Vec<u8>, at: &mut u64) -> Result<(), Halt> {
        if buffer.is_empty() {
            return Ok(());
        }
        let (file, offset, bytes) = (self.part.file.clone(), *at, std::mem::take(buffer));
        let written = tokio::task::spawn_blocking(move || file.write_all_at(&bytes, offset).map(|()| bytes)).await;
        let bytes = written
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(|e| super::io_error(self.part.path(), e))?;
        *at += bytes.len() as u64;
        let mut board = self.board();
        board.journal.done.insert(offset, *at);
        board.failures = 0;
        board.follower.advance(board.journal.done.prefix());
        *buffer = bytes;
        buffer.clear();
        Ok(())
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

    /// Journal, free space and progress, until told to end.
    async fn tick(&self, stop: &Notify) {
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
    async fn save_journal(&self, sync: bool) {
        let mut journal = self.board().journal.clone();
        let part = self.part.handle();
        let saved = tokio::task::spawn_blocking(move || part.write_journal(&mut journal, sync).map(|()| journal)).await;
        match saved {
            Ok(Ok(journal)) => self.board().journal.adopt_synced(journal),
            Ok(Err(error)) => tracing::debug!(%error, "could not save the journal of a download"),
            Err(error) => tracing::debug!(%error, "the journal's writer panicked"),
        }
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

/// Failures before the next source is tried, when this one never answered.
const ATTEMPTS_UNANSWERED: u32 = 2;
const SNIFF_BYTES: usize = 64;

/// What the first bytes betray, where a server labels everything as a stream of bytes.
fn not_a_model(head: &[u8]) -> Option<&'static str> {
    let text: Vec<u8> = head.iter().take(SNIFF_BYTES).map(u8::to_ascii_lowercase).collect();
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let text = &text[text.iter().take_while(|b| b.is_ascii_whitespace()).count()..];
    if text.starts_with(b"<!doctype") || text.starts_with(b"<html") {
        Some("a web page")
    } else if text.starts_with(b"version https://git-lfs") {
        Some("a pointer to the file (git-lfs)")
    } else {
        None
    }
}

/// `bytes 0-99/1234` → `(0, 100, Some(1234))`; the total may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let end = last.trim().parse::<u64>().ok()?.checked_add(1)?;
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse().ok().filter(|total| *total >= end)?),
    };
    Some((start.trim().parse().ok()?, end, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(parse_content_range("bytes 0-99/1234"), Some((0, 100, Some(1234))));
        assert_eq!(parse_content_range("bytes 5-9/*"), Some((5, 10, None)));
        for bad in [
            "",
            "bytes",
            "bytes 0-99/50",
            "bytes a-9/10",
            "bytes 0-18446744073709551615/1",
            "items 0-1/2",
        ] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn web_pages_and_pointers_are_known_by_their_first_bytes() {
        assert!(not_a_model(b"\xef\xbb\xbf \n<!DOCTYPE html><p>log in").is_some());
        assert!(not_a_model(b"version https://git-lfs.github.com/spec/v1").is_some());
        assert!(not_a_model(b"GGUF\x03\0\0\0").is_none());
    }
}
