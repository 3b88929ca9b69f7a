//! Answers to pops made by hand, for jobs that the rules of a real server would never let through: steps of -1, a
//! source that is a zip file, a grammar. Their ids stand in the book like all others.

use std::time::Duration;

use serde_json::json;

use crate::answer::Answer;
use crate::model::{Generation, Kind};
use crate::state::State;

/// Lease of what is handed out, on the server's side.
const LEASE: Duration = Duration::from_secs(150);

/// One answer that waits for a pop.
pub(crate) struct Scripted {
    kind: Kind,
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
        self.scripted.push_back(Scripted {
            kind: Kind::Image,
            ids: ids.clone(),
            body,
        });
        ids
    }

    /// Answers one text pop, after those scripted before, with what `body` makes of a fresh id: as it is, whatever the worker
    /// offered. Gives the id.
    pub fn script_text(&mut self, body: impl FnOnce(&str) -> String) -> String {
        let id = self.new_id();
        let body = body(&id);
        self.scripted.push_back(Scripted {
            kind: Kind::Text,
            ids: vec![id.clone()],
            body,
        });
        id
    }

    /// The next scripted answer to a pop of this kind, for this worker.
    pub(crate) fn next_scripted(&mut self, kind: Kind, worker: &str) -> Option<Answer> {
        let place = self.scripted.iter().position(|scripted| scripted.kind == kind)?;
        let Scripted { ids, body, .. } = self.scripted.remove(place)?;
        for id in &ids {
            self.hand_out(Generation::handed_out(id, "scripted", worker, "", LEASE), kind);
        }
        Some(Answer {
            body: body.into_bytes(),
            ..Answer::ok(&json!({}))
        })
    }
}
