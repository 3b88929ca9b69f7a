//! Workers: made by their first pop, refreshed by later ones, read and changed by their owner.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::agents::Agent;
use crate::answer::{Answer, Outcome, refuse};
use crate::model::{Kind, Worker};
use crate::schema::Body;
use crate::state::{ANONYMOUS_KEY, State};

/// Workers an account may hold.
const MOST_UNTRUSTED: usize = 3;
const MOST_TRUSTED: usize = 20;
/// A worker is online this long after its last pop.
const ONLINE: Duration = Duration::from_secs(300);

/// Who pops, after all checks that come before the match.
pub(crate) struct Popper {
    /// Worker's name.
    pub name: String,
    /// Owner's key.
    pub key: String,
    /// Owner's `alias#id`.
    pub alias: String,
    /// Whether the owner is trusted.
    pub trusted: bool,
}

impl State {
    /// The start of every pop: account, name, creation, check-in.
    pub(crate) fn check_in(&mut self, kind: Kind, key: Option<&str>, body: &Body) -> Result<Popper, Box<Answer>> {
        let name = body.required_text("name")?;
        body.integer("threads", 1..=if kind == Kind::Alchemy { 100 } else { 50 })?;
        for user in body.texts("priority_usernames")? {
            if !user.contains('#') {
                return Err(refuse(
                    400,
                    "InvalidPriorityUsername",
                    "priority_usernames must be in the form of Name#Number",
                ));
            }
        }
        let (key, user) = self.user(key)?;
        if key == ANONYMOUS_KEY {
            return Err(refuse(
                403,
                "AnonForbiddenWorker",
                "Anonymous users are forbidden from running workers",
            ));
        }
        if name.chars().count() > 100 {
            return Err(Box::new(Answer::json(
                500,
                &json!({ "message": "Internal Server Error" }),
            )));
        }
        let now = Instant::now();
        let agent_text = body
            .text("bridge_agent")?
            .unwrap_or_else(|| "unknown:0:unknown".to_owned());
        let owned = self.workers.values().filter(|worker| worker.owner == key).count();
        match self.workers.get_mut(&name) {
            Some(worker) if worker.owner != key => {
                return Err(refuse(
                    403,
                    "WrongCredentials",
                    &format!("Wrong credentials to submit as {name}"),
                ));
            }
            Some(worker) if worker.kind != kind => {
                return Err(refuse(
                    400,
                    "PolymorphicNameConflict",
                    &format!("Worker name '{name}' is already used by a worker of another type"),
                ));
            }
            Some(worker) => {
                let young = now.duration_since(worker.created) < self.settings.check_in_every;
                if young || now.duration_since(worker.stored_at) >= self.settings.check_in_every {
                    worker.stored_at = now;
                    worker.stored = body.0.clone();
                    worker.agent = Agent::parse(&agent_text);
                    worker.agent_text = agent_text;
                }
                worker.seen = now;
                if worker.flagged {
                    return Err(refuse(
                        403,
                        "WorkerFlaggedMaintenance",
                        "Your worker has been flagged by moderators",
                    ));
                }
            }
            None => {
                let lower = name.to_lowercase();
                if ["colab", "tpu", "google"].iter().any(|word| lower.contains(word)) {
                    return Err(refuse(
                        400,
                        "BadRequest",
                        "To be able to add a worker to the horde, its name must be acceptable",
                    ));
                }
                if owned > if user.trusted { MOST_TRUSTED } else { MOST_UNTRUSTED } {
                    let rc = if user.trusted {
                        "TooManyWorkersTrusted"
                    } else {
                        "TooManyWorkers"
                    };
                    return Err(refuse(403, rc, "This user has too many workers"));
                }
                let worker = Worker {
                    id: self.new_id(),
                    name: name.clone(),
                    owner: key.clone(),
                    kind,
                    created: now,
                    seen: now,
                    stored_at: now,
                    stored: body.0.clone(),
                    agent: Agent::parse(&agent_text),
                    agent_text,
                    maintenance: None,
                    flagged: false,
                    paused: false,
                    drops: VecDeque::new(),
                    suspicion: 0,
                    kudos: 0.0,
                    fulfilled: 0,
                    uncompleted: 0,
                    speeds: VecDeque::new(),
                    info: None,
                };
                self.workers.insert(name.clone(), worker);
            }
        }
        Ok(Popper {
            name,
            key,
            alias: user.alias,
            trusted: user.trusted,
        })
    }

    /// Request indices in the order a pop looks at them: the worker's own account and its priority users first.
    pub(crate) fn queue_for(&self, kind: Kind, popper: &Popper, body: &Body) -> Vec<usize> {
        let favoured = body.texts("priority_usernames").unwrap_or_default();
        let own_only = self
            .workers
            .get(&popper.name)
            .is_some_and(|worker| worker.maintenance.is_some());
        let mut queue: Vec<(bool, usize)> = self
            .requests
            .iter()
            .enumerate()
            .filter(|(_, request)| {
                request.kind == kind && request.n_waiting > 0 && !request.cancelled && !request.faulted
            })
            .filter(|(_, request)| !own_only || request.owner == popper.key)
            .map(|(index, request)| {
                let first = request.owner == popper.key
                    || self
                        .users
                        .get(&request.owner)
                        .is_some_and(|user| favoured.contains(&user.alias));
                (!first, index)
            })
            .collect();
        queue.sort();
        queue.into_iter().map(|(_, index)| index).collect()
    }

    /// The refusal of a worker in maintenance that got nothing.
    pub(crate) fn refuse_in_maintenance(&self, name: &str) -> Result<(), Box<Answer>> {
        match self.workers.get(name).and_then(|worker| worker.maintenance.as_ref()) {
            Some(text) => Err(refuse(403, "WorkerMaintenance", text)),
            None => Ok(()),
        }
    }

    pub(crate) fn worker_details(&self, worker: &Worker) -> Value {
        let speed = worker.speed();
        let unit = if worker.kind == Kind::Text {
            "tokens"
        } else {
            "megapixelsteps"
        };
        let stored = |key: &str| worker.stored.get(key).cloned();
        let owner_trusted = self.users.get(&worker.owner).is_some_and(|user| user.trusted);
        let mut details = json!({
            "id": worker.id, "name": worker.name, "type": worker.kind.worker_type(),
            "online": worker.seen.elapsed() < ONLINE, "requests_fulfilled": worker.fulfilled, "uncompleted_jobs": worker.uncompleted,
            "kudos_rewards": worker.kudos, "kudos_details": { "generated": worker.kudos, "uptime": 0.0 },
            "performance": format!("{speed:.1} {unit} per second"), "threads": stored("threads").unwrap_or(json!(1)),
            "uptime": worker.created.elapsed().as_secs(), "maintenance_mode": worker.maintenance.is_some(),
            "nsfw": stored("nsfw").unwrap_or(json!(true)), "trusted": owner_trusted, "flagged": worker.flagged,
            "models": stored("models").unwrap_or(json!([])), "team": { "id": null, "name": null }, "bridge_agent": worker.agent_text,
        });
        if let Some(info) = &worker.info {
            details["info"] = json!(info);
        }
        let own: &[&str] = match worker.kind {
            Kind::Image => &["max_pixels"],
            Kind::Text => &["max_length", "max_context_length"],
            Kind::Alchemy => &["forms"],
        };
        for key in own {
            if let Some(value) = stored(key) {
                details[*key] = value;
            }
        }
        if worker.kind == Kind::Image {
            for (field, flag, default) in [
                ("img2img", "allow_img2img", true),
                ("painting", "allow_painting", true),
                ("post-processing", "allow_post_processing", true),
                ("lora", "allow_lora", false),
                ("controlnet", "allow_controlnet", false),
                ("sdxl_controlnet", "allow_sdxl_controlnet", false),
            ] {
                details[field] = stored(flag).unwrap_or(json!(default));
            }
        }
        details
    }

    /// `GET /v2/workers`. An empty type means all of them; names are matched without case.
    pub(crate) fn list_workers(&self, kind: Option<&str>, name: Option<&str>) -> Answer {
        let listed = self.workers.values().filter(|worker| {
            let of_kind = kind.is_none_or(|kind| kind.is_empty() || worker.kind.worker_type() == kind);
            of_kind && name.is_none_or(|name| worker.name.to_lowercase() == name.to_lowercase())
        });
        Answer::ok(&Value::Array(
            listed.map(|worker| self.worker_details(worker)).collect(),
        ))
    }

    /// `GET /v2/workers/{id}` and `GET /v2/workers/name/{name}`.
    pub(crate) fn one_worker(&self, found: impl Fn(&Worker) -> bool) -> Outcome {
        let worker = self.workers.values().find(|worker| found(worker));
        let worker = worker.ok_or_else(|| refuse(404, "WorkerNotFound", "Worker not found"))?;
        Ok(Answer::ok(&self.worker_details(worker)))
    }

    /// `PUT /v2/workers/{id}`: maintenance, its text, info and name.
    pub(crate) fn change_worker(&mut self, id: &str, key: Option<&str>, body: &Body) -> Outcome {
        let (key, _) = self.user(key)?;
        let name = self
            .workers
            .values()
            .find(|worker| worker.id == id)
            .map(|worker| worker.name.clone());
        let name = name.ok_or_else(|| refuse(404, "WorkerNotFound", "Worker not found"))?;
        let maintenance = body
            .0
            .contains_key("maintenance")
            .then(|| body.flag("maintenance", false))
            .transpose()?;
        let (message, info, new_name) = (body.text("maintenance_msg")?, body.text("info")?, body.text("name")?);
        if body.0.contains_key("paused") {
            return Err(refuse(403, "NotModerator", "Only moderators can do this"));
        }
        if new_name
            .as_ref()
            .is_some_and(|new| !(5..=100).contains(&new.chars().count()))
        {
            return Err(crate::answer::invalid("name", "must have 5 to 100 characters"));
        }
        if new_name.as_ref().is_some_and(|new| self.workers.contains_key(new)) {
            return Err(refuse(400, "NameAlreadyExists", "The name is taken"));
        }
        let Some(worker) = self.workers.get_mut(&name) else {
            return Err(refuse(404, "WorkerNotFound", "Worker not found"));
        };
        if worker.owner != key {
            return Err(refuse(403, "NotOwner", "You are not the owner of this worker"));
        }
        let mut changed = Map::new();
        if let Some(on) = maintenance {
            let text =
                message.unwrap_or_else(|| "This worker has been put into maintenance mode by its owner".to_owned());
            worker.maintenance = on.then_some(text);
            changed.insert("maintenance".to_owned(), json!(on));
        }
        if let Some(info) = info {
            worker.info = Some(info.clone());
            changed.insert("info".to_owned(), json!(info));
        }
        if let Some(new) = new_name {
            changed.insert("name".to_owned(), json!(new));
            if let Some(mut worker) = self.workers.remove(&name) {
                worker.name.clone_from(&new);
                self.workers.insert(new, worker);
            }
        }
        if changed.is_empty() {
            return Err(refuse(
                400,
                "NoWorkerModSelected",
                "Please select at least one modification",
            ));
        }
        Ok(Answer::ok(&Value::Object(changed)))
    }

    /// `DELETE /v2/workers/{id}`.
    pub(crate) fn delete_worker(&mut self, id: &str, key: Option<&str>) -> Outcome {
        let (key, _) = self.user(key)?;
        let worker = self.workers.values().find(|worker| worker.id == id).cloned();
        let worker = worker.ok_or_else(|| refuse(404, "WorkerNotFound", "Worker not found"))?;
        if worker.owner != key {
            return Err(refuse(403, "NotOwner", "You are not the owner of this worker"));
        }
        if self.generations.values().any(|one| one.worker == worker.name) {
            return Err(Box::new(Answer::json(
                423,
                &json!({ "message": "Jobs still refer to this worker", "rc": "Locked" }),
            )));
        }
        self.workers.remove(&worker.name);
        Ok(Answer::ok(&json!({ "deleted_id": id, "deleted_name": worker.name })))
    }
}
