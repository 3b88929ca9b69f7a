//! Answers to image pops made by hand, for jobs that the rules of a real server would never let through: steps of -1, a
//! source that is a zip file. Their ids stand in the book like all others.

use std::time::Duration;

use serde_json::json;

use crate::answer::Answer;
use crate::model::{Generation, Kind};
use crate::state::State;

/// Lease of what is handed out, on the server's side.
const LEASE: Duration = Duration::from_secs(150);

/// One answer that waits for a pop.
pub(crate) struct Scripted {
    ids: Vec<String>,
    body: String,
}

impl State {
    /// Answers one image pop, after those scripted before, with what `body` makes of `n` fresh ids and their upload
    /// addresses: as it is, whatever the worker offered. Gives the ids.
    pub fn script_image(&mut self, n: usize, body: impl FnOnce(&[String], &[String]) -> String) -> Vec<String> {
        let ids: Vec<String> = (0..n).map(|_| self.new_id()).collect();
        let uploads: Vec<String> = ids
            .iter()
            .map(|id| self.objects.sign("PUT", &format!("{id}.webp")))
            .collect();
        let body = body(&ids, &uploads);
        self.scripted.push_back(Scripted { ids: ids.clone(), body });
        ids
    }

    /// The next scripted answer, for this worker.
    pub(crate) fn next_scripted(&mut self, worker: &str) -> Option<Answer> {
        let Scripted { ids, body } = self.scripted.pop_front()?;
        for id in &ids {
            self.hand_out(Generation::handed_out(id, "scripted", worker, "", LEASE), Kind::Image);
        }
        Some(Answer {
            body: body.into_bytes(),
            ..Answer::ok(&json!({}))
        })
    }
}
