//! A file of every pop and submit with its answer, one JSON object a line; keys of accounts are not in it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::routes::Call;

/// Writes what workers sent and got.
#[derive(Debug)]
pub struct Recorder(BufWriter<File>);

impl Recorder {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self(BufWriter::new(File::create(path)?)))
    }

    /// Writes a pop or a submit down; a full disk loses lines, not answers.
    pub(crate) fn note(&mut self, call: &Call<'_>, answer: &Answer) {
        let route = call.path.trim_start_matches("/api").trim_start_matches("/v2/");
        if !route.ends_with("/pop") && !route.ends_with("/submit") {
            return;
        }
        let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
        let line = json!({
            "route": route, "body": read(call.body), "status": answer.status.as_u16(), "answer": read(&answer.body),
        });
        writeln!(self.0, "{line}").and_then(|()| self.0.flush()).ok();
    }
}
