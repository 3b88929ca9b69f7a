//! Asks for a gap and admits an answer only if it is what was asked for.

use std::time::Duration;

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG};
use url::Url;

use super::{Body, Halt, Transfer};
use crate::fetch::Wanted;
use crate::fetch::follow::Follower;
use crate::fetch::http::{Answer, Miss, header_text};
use crate::fetch::plan::{FetchError, SourceFailure};
use crate::fetch::progress::Event;

impl Transfer<'_> {
    /// Sends the request for `gap` and checks that the answer is what was asked for. `None`: waited, try again.
    pub(super) async fn open(&self, url: &Url, gap: (u64, u64)) -> Result<Option<Body>, Halt> {
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
}

pub(super) const SNIFF_BYTES: usize = 64;

/// What the first bytes betray, where a server labels everything as a stream of bytes.
pub(super) fn not_a_model(head: &[u8]) -> Option<&'static str> {
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
