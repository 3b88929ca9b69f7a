//! The routes: one call in, one answer out, no sockets.

use std::time::Duration;

use serde_json::{Value, json};

use crate::answer::{Answer, Outcome, refuse};
use crate::limits::Counted;
use crate::model::Kind;
use crate::objects::Denied;
use crate::schema::Body;
use crate::state::State;

/// One call as it came in.
pub struct Call<'a> {
    /// Verb.
    pub method: &'a str,
    /// Path without the query, such as `/api/v2/generate/pop` or `/objects/KEY`.
    pub path: &'a str,
    /// Query without `?`.
    pub query: &'a str,
    /// `apikey` header.
    pub key: Option<&'a str>,
    /// Whether a `Content-Length` came with it.
    pub length_told: bool,
    /// Whether the content type is JSON.
    pub json: bool,
    /// Body.
    pub body: &'a [u8],
}

impl State {
    /// Answers a call.
    pub fn answer(&mut self, call: &Call<'_>) -> Answer {
        let answer = self.act(call);
        if let Some(recorder) = &mut self.recorder {
            recorder.note(call, &answer);
        }
        answer
    }

    fn act(&mut self, call: &Call<'_>) -> Answer {
        if let Some(key) = call.path.strip_prefix("/objects/") {
            return self.object(call, key);
        }
        if let Some(rest) = call.path.strip_prefix("/local/") {
            return self.local(rest);
        }
        let Some(path) = call.path.strip_prefix("/api").unwrap_or(call.path).strip_prefix("/v2/") else {
            return Answer::html(404);
        };
        let counted = match self.count_call(call, path) {
            Counted::Over(answer) => return answer,
            Counted::Within(headers) => headers,
        };
        let mut answer = self.route(call, path).unwrap_or_else(|refusal| *refusal);
        answer.headers.extend(counted);
        answer
    }

    fn route(&mut self, call: &Call<'_>, path: &str) -> Outcome {
        let body = || {
            if call.json {
                Body::parse(call.body)
            } else {
                Err(Box::new(Answer::json(
                    400,
                    &json!({ "message": "Did not attempt to load JSON data because the request Content-Type was not 'application/json'." }),
                )))
            }
        };
        let segments: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        match (call.method, &segments[..]) {
            ("POST", ["generate", "pop"]) => self.pop_image(call.key, &body()?),
            ("POST", ["generate", "submit"]) => self.submit_image(call.key, &body()?),
            ("POST", ["generate", "text", "pop"]) => self.pop_text(call.key, &body()?),
            ("POST", ["generate", "text", "submit"]) => self.submit_text(call.key, &body()?),
            ("POST", ["interrogate", "pop"]) => self.pop_alchemy(call.key, &body()?),
            ("POST", ["interrogate", "submit"]) => self.submit_alchemy(call.key, &body()?),
            ("POST", ["generate", "async"]) => self.file_image(call.key, body()?),
            ("POST", ["generate", "text", "async"]) => self.file_text(call.key, body()?),
            ("POST", ["generate", "chat", "async"]) => self.file_chat(call.key, body()?),
            ("GET", ["generate", "chat", "status", id]) => self.chat_status(id),
            ("POST", ["interrogate", "async"]) => self.file_alchemy(call.key, body()?),
            ("GET", ["generate", "check", id]) => self.image_status(id, false),
            ("GET", ["generate", "status", id]) => self.image_status(id, true),
            ("GET", ["generate", "text", "status", id]) => self.text_status(id),
            ("GET", ["interrogate", "status", id]) => self.alchemy_status(id),
            ("DELETE", ["generate", "status", id]) => self.cancel(id, Kind::Image),
            ("DELETE", ["generate", "text", "status", id]) => self.cancel(id, Kind::Text),
            ("DELETE", ["interrogate", "status", id]) => self.cancel_alchemy(id),
            ("GET", ["find_user"]) => self.find_user(call.key),
            ("GET", ["workers"]) => {
                let name = query_value(call.query, "name").map(|name| percent_decoded(&name.replace('+', "%20")));
                Ok(self.list_workers(query_value(call.query, "type"), name.as_deref()))
            }
            ("GET", ["workers", "name", name]) => {
                let name = percent_decoded(name);
                self.one_worker(|worker| worker.name == name)
            }
            ("GET", ["workers", id]) => self.one_worker(|worker| worker.id == *id),
            ("PUT", ["workers", id]) => self.change_worker(id, call.key, &body()?),
            ("DELETE", ["workers", id]) => self.delete_worker(id, call.key),
            ("GET", ["status", "heartbeat"]) => Ok(Answer::ok(&json!({ "message": "OK", "version": "5.1.5" }))),
            ("GET", ["status", "modes"]) if call.key.is_some() => {
                Err(refuse(403, "NotModerator", "Only moderators can see this with a key"))
            }
            ("GET", ["status", "modes"]) => Ok(Answer::ok(
                &json!({ "maintenance_mode": false, "invite_only_mode": false }),
            )),
            ("GET", ["status", "performance"]) => Ok(Answer::ok(&self.performance())),
            ("GET", ["status", "models"]) => Ok(Answer::ok(
                &self.demand(query_value(call.query, "type").unwrap_or("image"), None),
            )),
            ("GET", ["status", "models", name]) => {
                let name = percent_decoded(name);
                let kind = if self
                    .requests
                    .iter()
                    .any(|request| request.kind == Kind::Text && request.models.contains(&name))
                {
                    "text"
                } else {
                    "image"
                };
                Ok(Answer::ok(&self.demand(kind, Some(&name))))
            }
            ("GET", ["status", "news"]) => Ok(Answer::ok(&json!([]))),
            ("GET", ["stats", "img" | "text", "models"]) => {
                Ok(Answer::ok(&json!({ "day": {}, "month": {}, "total": {} })))
            }
            ("GET", ["stats", "img", "totals"]) => Ok(Answer::ok(&totals("images", "ps"))),
            ("GET", ["stats", "text", "totals"]) => Ok(Answer::ok(&totals("requests", "tokens"))),
            ("GET", ["documents", "terms" | "privacy" | "sponsors"]) => {
                Ok(Answer::ok(&json!({ "markdown": "A Horde on this machine." })))
            }
            ("GET", ["filters", ..]) => Err(refuse(403, "NotModerator", "Only moderators can see filters")),
            _ => Err(Box::new(Answer::json(
                404,
                &json!({ "message": "The requested URL was not found on the server. Did you mean /api/v2/status/heartbeat ?" }),
            ))),
        }
    }

    fn object(&mut self, call: &Call<'_>, key: &str) -> Answer {
        let outcome = match call.method {
            "PUT" => self
                .objects
                .put(key, call.query, call.length_told, call.body.to_vec())
                .map(|()| Vec::new()),
            "GET" => self.objects.get(key, call.query),
            _ => Err(Denied::Forbidden),
        };
        match outcome {
            Ok(bytes) => Answer::object(bytes),
            Err(Denied::Forbidden) => Answer::html(403),
            Err(Denied::Missing) => Answer::html(404),
            Err(Denied::LengthRequired) => Answer::html(411),
        }
    }

    /// What a test or a person reads beside the API: never part of a real Horde.
    fn local(&mut self, path: &str) -> Answer {
        match path {
            "ledger" => {
                self.sweep_if_due();
                Answer::ok(&json!({ "summary": self.ledger.summary(), "generations": self.ledger.generations }))
            }
            _ => Answer::html(404),
        }
    }

    fn cancel_alchemy(&mut self, id: &str) -> Outcome {
        for request in self
            .requests
            .iter_mut()
            .filter(|request| request.id == id && request.kind == Kind::Alchemy)
        {
            request.cancelled = true;
            request.n_waiting = 0;
        }
        self.alchemy_status(id)
    }

    fn find_user(&self, key: Option<&str>) -> Outcome {
        let key = key.ok_or_else(|| refuse(401, "InvalidAPIKey", "No API key was sent"))?;
        let user = self
            .users
            .get(key)
            .ok_or_else(|| refuse(404, "UserNotFound", "No user matching sent API Key."))?;
        let workers: Vec<&str> = self
            .workers
            .values()
            .filter(|worker| worker.owner == key)
            .map(|worker| worker.id.as_str())
            .collect();
        Ok(Answer::ok(&json!({
            "username": user.alias, "id": user.id, "kudos": user.kudos, "trusted": user.trusted, "flagged": false, "worker_ids": workers, "worker_count": workers.len(),
        })))
    }

    fn performance(&self) -> Value {
        let waiting = |kind: Kind| -> u32 {
            self.requests
                .iter()
                .filter(|request| request.kind == kind)
                .map(|request| request.n_waiting)
                .sum()
        };
        let workers = |kind: Kind| {
            self.workers
                .values()
                .filter(|worker| worker.kind == kind && worker.seen.elapsed() < Duration::from_secs(300))
                .count()
        };
        json!({
            "queued_requests": waiting(Kind::Image), "queued_text_requests": waiting(Kind::Text), "queued_forms": waiting(Kind::Alchemy),
            "worker_count": workers(Kind::Image), "text_worker_count": workers(Kind::Text), "interrogator_count": workers(Kind::Alchemy),
            "thread_count": workers(Kind::Image), "text_thread_count": workers(Kind::Text), "interrogator_thread_count": workers(Kind::Alchemy),
            "queued_megapixelsteps": 0.0, "past_minute_megapixelsteps": 0.0, "queued_tokens": 0.0, "past_minute_tokens": 0.0,
        })
    }

    fn demand(&self, kind: &str, only: Option<&str>) -> Value {
        let wanted = if kind == "text" { Kind::Text } else { Kind::Image };
        let mut names: Vec<String> = self
            .requests
            .iter()
            .filter(|request| request.kind == wanted)
            .flat_map(|request| request.models.clone())
            .collect();
        for worker in self.workers.values().filter(|worker| worker.kind == wanted) {
            names.extend(
                worker
                    .stored
                    .get("models")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .map(str::to_owned),
            );
        }
        names.sort();
        names.dedup();
        let one = |name: &String| {
            let jobs: u32 = self
                .requests
                .iter()
                .filter(|request| request.kind == wanted && request.models.contains(name))
                .map(|request| request.n_waiting)
                .sum();
            let serves = |stored: &serde_json::Map<String, Value>| {
                stored
                    .get("models")
                    .and_then(Value::as_array)
                    .is_some_and(|models| models.contains(&json!(name)))
            };
            let count = self
                .workers
                .values()
                .filter(|worker| worker.kind == wanted && serves(&worker.stored))
                .count();
            json!({ "name": name, "count": count, "performance": 1.0, "queued": f64::from(jobs), "jobs": f64::from(jobs), "eta": 0, "type": kind })
        };
        Value::Array(
            names
                .iter()
                .filter(|name| only.is_none_or(|only| only == *name))
                .map(one)
                .collect(),
        )
    }
}

fn totals(things: &str, work: &str) -> Value {
    let none = json!({ things: 0, work: 0 });
    json!({ "minute": none, "hour": none, "day": none, "month": none, "total": none })
}

fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

fn percent_decoded(text: &str) -> String {
    let pairs = url::form_urlencoded::parse(text.as_bytes()).next();
    // `+` in a path is a plus, so it is hidden from the form decoder.
    match pairs {
        Some(_) => url::form_urlencoded::parse(text.replace('+', "%2B").as_bytes())
            .map(|(name, _)| name.into_owned())
            .next()
            .unwrap_or_default(),
        None => String::new(),
    }
}
