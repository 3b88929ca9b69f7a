//! An answer while it grows, whatever engine makes its pieces.

use crate::format;
use crate::request::{Formatting, TextRequest};
use crate::stop::{Stop, StopScanner};
use crate::utf8;

/// Collects the pieces of one answer and sees where it has to end.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    scanner: StopScanner,
    stop: Option<Stop>,
    include_stop: bool,
    formatting: Formatting,
}

impl Writer {
    pub(crate) fn new(request: &TextRequest) -> Self {
        Self {
            bytes: Vec::new(),
            scanner: StopScanner::new(&request.stop),
            stop: None,
            include_stop: request.include_stop,
            formatting: request.formatting,
        }
    }

    /// Appends a piece; true when the answer has to end here.
    pub(crate) fn push(&mut self, piece: &[u8]) -> bool {
        self.bytes.extend_from_slice(piece);
        if self.stop.is_none() {
            self.stop = self.scanner.scan(&self.bytes);
        }
        // With `single_line` nothing behind the first line end would be kept.
        self.stop.is_some() || (self.formatting.single_line && piece.contains(&b'\n'))
    }

    /// The finished text: whole characters, cut at the stop text, formatted.
    pub(crate) fn finish(mut self) -> String {
        if let Some(stop) = self.stop {
            self.bytes
                .truncate(if self.include_stop { stop.end } else { stop.start });
        }
        format::output(utf8::whole(&self.bytes), self.formatting)
    }
}
