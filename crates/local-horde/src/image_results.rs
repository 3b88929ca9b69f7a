//! Images coming back: submissions, what clients read, cancelling.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::answer::{Answer, Outcome, invalid};
use crate::model::Kind;
use crate::schema::{self, Body};
use crate::state::State;
use crate::text::merge;

impl State {
    /// `POST /v2/generate/submit`.
    pub(crate) fn submit_image(&mut self, key: Option<&str>, body: &Body) -> Outcome {
        let id = body.required_text("id")?;
        let picture = body.required_text("generation")?;
        let state = body.text("state")?.unwrap_or_else(|| "ok".to_owned());
        if !["ok", "censored", "faulted", "csam"].contains(&state.as_str()) {
            return Err(invalid("state", "is not one of the known states"));
        }
        let seed = match body.0.get("seed") {
            None => return Err(invalid("seed", "'seed' is a required property")),
            // A whole number that its database cannot hold crashes the real server.
            Some(value) if value.is_u64() && value.as_i64().is_none() => {
                return Err(Box::new(Answer::json(
                    500,
                    &json!({ "message": "Internal Server Error" }),
                )));
            }
            Some(value) => value
                .as_i64()
                .ok_or_else(|| invalid("seed", &format!("{value} is not of type 'integer'")))?,
        };
        let metadata = schema::metadata(body)?;
        // A fault with a censorship entry is taken as a finished picture: a trap of the real server.
        let censored = metadata.iter().any(|entry| entry["type"] == "censorship");
        let faulted = state == "faulted" && !censored;
        let too_many = metadata.len() > 50;
        let reward = self.close(&id, key, faulted, |horde| {
            let stored = picture != "R2" && !faulted;
            if stored && let Ok(bytes) = STANDARD.decode(picture.trim()) {
                horde.objects.put_own(&format!("{id}.webp"), bytes);
            }
            if let Some(one) = horde.generations.get_mut(&id) {
                one.result = Some(json!("R2"));
                one.seed = Some(seed);
                one.state = if censored {
                    "censored".to_owned()
                } else {
                    "ok".to_owned()
                };
                one.metadata = metadata.into_iter().take(50).collect();
            }
        })?;
        if too_many {
            return Err(invalid("gen_metadata", "has more than 50 entries"));
        }
        Ok(Answer::ok(&json!({ "reward": reward })))
    }

    /// `GET /v2/generate/check/{id}` and `/status/{id}`; only the latter holds results.
    pub(crate) fn image_status(&mut self, id: &str, with_results: bool) -> Outcome {
        self.sweep_if_due();
        let request = self.find_request(id, Kind::Image)?.clone();
        let (counts, done) = self.counts(&request);
        let mut status = json!({ "done": done, "faulted": request.faulted, "wait_time": 0, "queue_position": 0, "kudos": self.spent(&request), "is_possible": true });
        merge(&mut status, counts);
        if with_results {
            // Clients that switched object storage off get the picture itself.
            let addressed = Body(request.body.clone()).flag("r2", true).unwrap_or(true);
            let picture = |id: &str| {
                let key = format!("{id}.webp");
                match self.objects.look(&key) {
                    Some(bytes) if !addressed => STANDARD.encode(bytes),
                    _ => self.objects.sign("GET", &key),
                }
            };
            let results: Vec<Value> = self
                .delivered(&request)
                .map(|one| {
                    json!({
                        "img": picture(&one.id), "seed": one.seed.map(|seed| seed.to_string()), "id": one.id,
                        "censored": one.state == "censored", "gen_metadata": one.metadata, "worker_id": self.worker_id(&one.worker), "worker_name": one.worker,
                        "model": one.model, "state": one.state,
                    })
                })
                .collect();
            merge(&mut status, json!({ "generations": results, "shared": false }));
        }
        Ok(Answer::ok(&status))
    }

    /// `DELETE /v2/generate/status/{id}` and its text sibling: what is in hand may still come in.
    pub(crate) fn cancel(&mut self, id: &str, kind: Kind) -> Outcome {
        self.find_request(id, kind)?;
        if let Some(request) = self.requests.iter_mut().find(|request| request.id == id) {
            request.cancelled = true;
            request.n_waiting = 0;
        }
        match kind {
            Kind::Image => self.image_status(id, true),
            Kind::Text => self.text_status(id),
            Kind::Alchemy => self.alchemy_status(id),
        }
    }
}
