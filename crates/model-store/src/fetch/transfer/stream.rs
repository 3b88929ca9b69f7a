//! Moves the bytes of one answer into the part file and sees when they stop coming.

use std::os::unix::fs::FileExt;

use reqwest::header::CONTENT_LENGTH;
use tokio::time::Instant;

use super::answer::{SNIFF_BYTES, not_a_model};
use super::{Halt, Transfer};
use crate::fetch::follow::Follower;
use crate::fetch::http::{header_text, plain};
use crate::fetch::io_error;
use crate::fetch::plan::SourceFailure;

/// Bytes gathered before a write; one write is one hop to a blocking thread.
const WRITE_BYTES: usize = 1 << 20;
/// The slowest connection that is kept.
const DRIP_BYTES_PER_SECOND: u64 = 1024;

impl Transfer<'_> {
    /// A server without ranges: one stream from byte zero; any interruption starts it again.
    pub(super) async fn stream_whole(&self, response: reqwest::Response) -> Result<bool, Halt> {
        {
            let mut board = self.board();
            board.whole_only = false;
            if board.journal.done.bytes() > 0 {
                self.part.reset().map_err(|e| io_error(self.part.path(), e))?;
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
    pub(super) async fn read(
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
                Err(error) => Some(plain(&error)),
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
            .map_err(|e| io_error(self.part.path(), e))?;
        *at += bytes.len() as u64;
        let mut board = self.board();
        board.journal.done.insert(offset, *at);
        board.failures = 0;
        board.follower.advance(board.journal.done.prefix());
        *buffer = bytes;
        buffer.clear();
        Ok(())
    }
}
