//! The end of a generation: submissions of every kind pass here once, are refused or taken, and paid.

use tokio::time::Instant;

use crate::answer::{Answer, refuse};
use crate::kudos::billions_in_name;
use crate::ledger::Fate;
use crate::model::{Generation, Kind, Phase};
use crate::state::State;

impl State {
    /// Takes a submission of any kind through the rules they share. `accept` is called for a result that counts.
    pub(crate) fn close(
        &mut self,
        id: &str,
        key: Option<&str>,
        faulted: bool,
        accept: impl FnOnce(&mut Self),
    ) -> Result<f64, Box<Answer>> {
        self.sweep_if_due();
        let Some(one) = self.generations.get(id).cloned() else {
            return Err(refuse(
                404,
                "InvalidJobID",
                &format!("Job with ID '{id}' not found in this horde"),
            ));
        };
        let key =
            key.ok_or_else(|| crate::answer::invalid("apikey", "Missing required parameter in the HTTP headers"))?;
        if !self.users.contains_key(key) {
            // A bug of the real server: an unknown key on a job that exists.
            return Err(Box::new(Answer::json(
                500,
                &serde_json::json!({ "message": "Internal Server Error" }),
            )));
        }
        let worker = self.workers.get(&one.worker).cloned();
        if worker.as_ref().is_none_or(|worker| worker.owner != key) {
            return Err(refuse(
                403,
                "WrongCredentials",
                "Wrong credentials to submit as this worker.",
            ));
        }
        let maintenance = worker.as_ref().is_some_and(|worker| worker.maintenance.is_some());
        let decoy = one.request.is_empty();
        let entry = self.ledger.generations.get_mut(id);
        match (one.phase, faulted) {
            (Phase::Done, _) => {
                if let Some(entry) = entry {
                    entry.duplicates += u32::from(!faulted);
                }
                if maintenance {
                    return Ok(0.0);
                }
                Err(refuse(
                    400,
                    "DuplicateGen",
                    &format!("Processing Generation with ID {id} already submitted"),
                ))
            }
            (Phase::Aborted | Phase::Faulted, true) => {
                if let Some(entry) = entry {
                    entry.fault_submits += 1;
                }
                Ok(0.0)
            }
            (Phase::Aborted | Phase::Faulted, false) => {
                if let Some(entry) = entry {
                    entry.too_late += 1;
                }
                Err(refuse(
                    400,
                    "AbortedGen",
                    &format!("Processing Job with ID {id} has already been aborted"),
                ))
            }
            (Phase::Live, true) => {
                if let Some(entry) = entry {
                    entry.fault_submits += 1;
                    entry.fate = Fate::Faulted;
                    entry.seconds = Some(one.popped.elapsed().as_secs_f64());
                }
                if let Some(one) = self.generations.get_mut(id) {
                    one.phase = Phase::Faulted;
                }
                if !decoy {
                    self.give_back(id);
                }
                Ok(0.0)
            }
            (Phase::Live, false) => {
                if let Some(entry) = entry {
                    entry.accepted += 1;
                    entry.fate = Fate::Accepted;
                    entry.reward = one.reward;
                    entry.seconds = Some(one.popped.elapsed().as_secs_f64());
                }
                if let Some(one) = self.generations.get_mut(id) {
                    one.phase = Phase::Done;
                }
                self.pay(&one, decoy);
                accept(self);
                Ok(one.reward)
            }
        }
    }

    fn pay(&mut self, one: &Generation, decoy: bool) {
        if let Some(request) = self
            .requests
            .iter_mut()
            .find(|request| request.generations.contains(&one.id))
        {
            request.touched = Instant::now();
        }
        let Some(worker) = self.workers.get_mut(&one.worker) else {
            return;
        };
        if decoy {
            return;
        }
        let user = self.users.get_mut(&worker.owner);
        let trusted = user.as_ref().is_some_and(|user| user.trusted);
        let speed = one.units / one.popped.elapsed().as_secs_f64().max(0.001);
        worker.speeds.push_back(speed);
        if worker.speeds.len() > 20 {
            worker.speeds.pop_front();
        }
        let fastest = match worker.kind {
            Kind::Image => 20.0,
            Kind::Text => fastest_text(&one.model, trusted),
            Kind::Alchemy => f64::INFINITY,
        };
        worker.suspicion += u32::from(speed > fastest);
        // Five marks pause the worker of an untrusted owner, who is not told.
        worker.paused |= worker.suspicion >= 5 && !trusted;
        worker.fulfilled += 1;
        let factor = if worker.kind == Kind::Image {
            worker.agent.image_pay()
        } else {
            1.0
        };
        worker.kudos += one.reward * factor;
        if let Some(user) = user {
            // Half of an untrusted account's pay waits in escrow.
            user.kudos += one.reward * factor * if trusted { 1.0 } else { 0.5 };
        }
    }
}

/// Tokens a second above which a text is suspicious: 150 for everybody, less for large models of untrusted owners.
fn fastest_text(model: &str, trusted: bool) -> f64 {
    let experts = if model.contains("8x") { 3.0 } else { 1.0 };
    match billions_in_name(model) {
        Some(billions) if !trusted && billions >= 70.0 => 30.0 * experts,
        Some(billions) if !trusted && billions >= 14.0 => 100.0 * experts,
        _ => 150.0,
    }
}
