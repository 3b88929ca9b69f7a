//! One request at a backend, from its sending to its end: early where a stop text came, nobody wants it any more, or the
//! backend has fallen silent.

use std::time::{Duration, Instant};

use super::dialect::{Count, Event, Piece};
use super::lines::Events;
use super::{BridgeEngine, LOOK, MOST_BYTES, was_closed};
use crate::engine::{TextError, Watch};
use crate::request::{Finish, TextAnswer, TextRequest, Timings};
use crate::utf8;
use crate::writer::Writer;

/// How long to wait before a backend that was full is asked again.
const WHEN_FULL: Duration = Duration::from_millis(500);

/// Longer tokens are rare; what is cut by this need not be counted.
const MOST_BYTES_PER_TOKEN: usize = 32;
/// Each cut is a little too short rather than too long, so few are needed.
const MOST_CUTS: usize = 5;

/// A request that is sent or about to be.
pub(super) struct Running<'a> {
    pub(super) engine: &'a BridgeEngine,
    pub(super) request: &'a TextRequest,
    pub(super) watch: &'a dyn Watch,
    pub(super) model: String,
    /// Tokens of context that the backend says it has.
    pub(super) context_tokens: u32,
    pub(super) seed: u64,
    /// The backend's word for this request, by which it can be ended.
    pub(super) tag: String,
    pub(super) stall: Duration,
}

/// What came, and when.
struct Written {
    writer: Writer,
    /// Pieces with text in them; each may hold several tokens.
    pieces: u32,
    bytes: usize,
    /// When the first piece came and how many bytes it had.
    first: Option<(Instant, usize)>,
    finish: Option<Finish>,
    /// What the backend counted.
    count: Count,
    /// Whether the backend says in its pieces how they end: then an answer without such an end broke off.
    tells_ends: bool,
}

impl Running<'_> {
    /// The answer.
    ///
    /// # Errors
    /// [`TextError::Unavailable`] where the backend is gone, silent or broke off, [`TextError::Cancelled`] where the
    /// watch said so.
    pub(super) async fn answer(self) -> Result<TextAnswer, TextError> {
        let start = Instant::now();
        let response = self.sent(start).await?;
        let began = if self.engine.dialect.answers_from_the_queue() {
            start
        } else {
            Instant::now()
        };
        let mut written = self.read(response).await?;
        let ended = Instant::now();
        let text = std::mem::replace(&mut written.writer, Writer::new(self.request)).finish();
        if written.count.written.is_none() {
            written.count.written = self.engine.count(&text, &self.model).await;
        }
        let tokens = written.count.written.unwrap_or(written.pieces);
        let tokens = tokens.clamp(
            u32::from(written.bytes > 0),
            self.request.max_length.max(written.pieces),
        );
        let by_count = if tokens >= self.request.max_length {
            Finish::Length
        } else {
            Finish::Eos
        };
        let room = self.request.max_context_length.saturating_sub(self.request.max_length);
        let guessed = u32::try_from(self.request.prompt.len() / 4).unwrap_or(u32::MAX);
        Ok(TextAnswer {
            text,
            tokens,
            finish: written.finish.unwrap_or(by_count),
            prompt_tokens: written.count.read.unwrap_or(guessed.min(room.max(1))),
            seed: self.seed,
            timings: timings(start, began, ended, &written),
        })
    }

    /// Sends until the backend takes it: one that is full is asked again, as long as one may be silent.
    async fn sent(&self, start: Instant) -> Result<reqwest::Response, TextError> {
        let engine = self.engine;
        let request = TextRequest {
            prompt: self.prompt().await,
            ..self.request.clone()
        };
        let body = engine.dialect.body(&request, &self.model, self.seed, &self.tag);
        let send = || engine.send(engine.dialect.generate_path(), Some(&body));
        let mut sending = Box::pin(send()?.send());
        let mut is_first = true;
        loop {
            let response = match tokio::time::timeout(LOOK, &mut sending).await {
                Ok(Err(error)) if is_first && was_closed(&error, start) => {
                    is_first = false;
                    sending = Box::pin(send()?.send());
                    continue;
                }
                Ok(sent) => sent.map_err(|error| TextError::Unavailable(engine.told(&error)))?,
                Err(_) => {
                    self.may_wait(start).await?;
                    continue;
                }
            };
            match response.status().as_u16() {
                200 => return Ok(response),
                400 | 422 => return Err(TextError::Unfit("the backend does not accept it".into())),
                401 | 403 => return Err(engine.locked()),
                503 => {
                    tracing::debug!("the backend is full");
                    self.may_wait(start).await?;
                    tokio::time::sleep(WHEN_FULL).await;
                    sending = Box::pin(send()?.send());
                }
                status => return Err(TextError::Failed(format!("the backend answered {status}"))),
            }
        }
    }

    /// The prompt, cut from the left so that the answer fits behind it, where the backend can count and does not cut.
    async fn prompt(&self) -> String {
        let mut prompt = self.request.prompt.as_str();
        let context = self.request.max_context_length.min(self.context_tokens);
        // The token that begins a text and a space that is put in front count, too.
        let room = context.saturating_sub(self.request.max_length.saturating_add(2)).max(1);
        if self.engine.dialect.cuts_prompts() {
            return prompt.to_owned();
        }
        let mut bytes = (room as usize).saturating_mul(MOST_BYTES_PER_TOKEN);
        for _ in 0..MOST_CUTS {
            prompt = utf8::last(prompt, bytes);
            // A token has a byte at least.
            if prompt.len() <= room as usize {
                break;
            }
            match self.engine.count(prompt, &self.model).await {
                Some(count) if count > room => {
                    let share = f64::from(room) / f64::from(count);
                    bytes = (prompt.len() as f64 * share * 0.98) as usize;
                }
                _ => break,
            }
        }
        prompt.to_owned()
    }

    /// Reads the stream to where the answer ends.
    async fn read(&self, mut response: reqwest::Response) -> Result<Written, TextError> {
        let mut written = Written {
            writer: Writer::new(self.request),
            pieces: 0,
            bytes: 0,
            first: None,
            finish: None,
            count: Count::default(),
            tells_ends: false,
        };
        let (mut events, mut heard) = (Events::default(), Instant::now());
        let mut is_over = false;
        'answer: loop {
            let chunk = match tokio::time::timeout(LOOK, response.chunk()).await {
                Ok(Ok(Some(chunk))) => chunk,
                Ok(Ok(None)) => break,
                // What counts has been said; how the connection ends does not matter.
                Ok(Err(_)) if written.finish.is_some() => break,
                Ok(Err(error)) => return Err(TextError::Unavailable(self.engine.told(&error))),
                Err(_) => {
                    // The count behind the end was only hoped for.
                    if written.finish.is_some() {
                        break;
                    }
                    self.may_wait(heard).await?;
                    continue;
                }
            };
            heard = Instant::now();
            if events.push(&chunk) > MOST_BYTES {
                return Err(self
                    .give_up(TextError::Failed("the backend's answer has no end".into()))
                    .await);
            }
            while let Some(event) = events.next() {
                match self.engine.dialect.event(&event) {
                    Event::Other => {}
                    Event::Over => {
                        is_over = true;
                        break 'answer;
                    }
                    Event::Failed => return Err(TextError::Failed("the backend failed at it".into())),
                    Event::Piece(piece) => {
                        if self.take(piece, &mut written).await {
                            break 'answer;
                        }
                    }
                }
            }
            if self.watch.is_cancelled() {
                return Err(self.give_up(TextError::Cancelled).await);
            }
        }
        match written.finish {
            None if (written.tells_ends || written.bytes == 0) && !is_over => {
                let url = &self.engine.settings.url;
                Err(TextError::Unavailable(format!(
                    "the backend at {url} broke the answer off"
                )))
            }
            None | Some(Finish::Length) if written.bytes == 0 => {
                Err(TextError::Failed("the backend ended its answer before it began".into()))
            }
            _ => Ok(written),
        }
    }

    /// Takes one piece; true where nothing more is wanted.
    async fn take(&self, piece: Piece, written: &mut Written) -> bool {
        written.tells_ends |= piece.tells_end;
        written.count.learn(piece.count);
        if !piece.text.is_empty() && written.finish.is_none() {
            written.pieces = written.pieces.saturating_add(1);
            written.bytes += piece.text.len();
            written.first.get_or_insert((Instant::now(), piece.text.len()));
            let most = self.request.max_length;
            self.watch.progress(written.pieces.min(most), most);
            if written.writer.push(piece.text.as_bytes()) {
                self.engine.abort(&self.tag).await;
                written.finish = Some(Finish::Stop);
                return true;
            }
        }
        written.finish = written.finish.or(piece.finish);
        written.finish.is_some() && !self.engine.dialect.counts_at_the_end()
    }

    /// Whether to go on waiting for what was silent `since`.
    async fn may_wait(&self, since: Instant) -> Result<(), TextError> {
        if self.watch.is_cancelled() {
            return Err(self.give_up(TextError::Cancelled).await);
        }
        if since.elapsed() > self.stall {
            let seconds = self.stall.as_secs();
            let stalled = TextError::Unavailable(format!("the backend was silent for {seconds} s"));
            return Err(self.give_up(stalled).await);
        }
        Ok(())
    }

    async fn give_up(&self, error: TextError) -> TextError {
        self.engine.abort(&self.tag).await;
        error
    }
}

/// Where the time went, as far as pieces show it: a piece of several tokens took its share of the time for all of them.
/// An answer that came in one piece has half of its time for each.
fn timings(start: Instant, began: Instant, ended: Instant, written: &Written) -> Timings {
    let queued = began.duration_since(start);
    let whole = ended.duration_since(began);
    let decode = match written.first {
        None => Duration::ZERO,
        Some((_, first)) if first >= written.bytes => whole / 2,
        Some((at, first)) => {
            let later = (written.bytes - first) as f64 / written.bytes as f64;
            ended.duration_since(at).div_f64(later).min(whole)
        }
    };
    Timings {
        queued,
        prefill: whole - decode,
        decode,
        ..Timings::default()
    }
}
