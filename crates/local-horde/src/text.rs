//! Text: filing, popping, submitting, reading.

use std::time::Duration;

use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::answer::{Answer, Outcome, refuse};
use crate::chat;
use crate::chat_needs::Declared;
use crate::kudos;
use crate::model::{Generation, Kind, Phase, Request};
use crate::schema::{self, Body};
use crate::state::State;

const TTL: Duration = Duration::from_secs(150);
const MOST_LENGTH: i64 = 1_048_576;
const MOST_CONTEXT: i64 = 16_777_216;
/// Parameters that travel to the worker; the rest of what a client sent is dropped.
const FORWARDED: [&str; 25] = [
    "max_length",
    "max_context_length",
    "temperature",
    "top_k",
    "top_p",
    "top_a",
    "typical",
    "tfs",
    "min_p",
    "rep_pen",
    "rep_pen_range",
    "rep_pen_slope",
    "sampler_order",
    "stop_sequence",
    "smoothing_factor",
    "dynatemp_range",
    "dynatemp_exponent",
    "singleline",
    "frmttriminc",
    "frmtrmblln",
    "frmtrmspch",
    "frmtadsnsp",
    "use_default_badwordsids",
    "special",
    "softprompt",
];

/// Tokens a second below which requests that want fast workers pass by, by the first model of the worker's list.
fn least_speed(model: &str) -> f64 {
    match kudos::billions_in_name(model) {
        Some(billions) if billions >= 20.0 => 3.0,
        Some(billions) if billions >= 13.0 => 4.0,
        _ => 5.0,
    }
}

impl State {
    /// `POST /v2/generate/text/async`.
    pub(crate) fn file_text(&mut self, key: Option<&str>, body: Body) -> Outcome {
        let (key, _) = self.user(key)?;
        let prompt = body.required_text("prompt")?;
        if prompt.is_empty() {
            return Err(refuse(400, "MissingPrompt", "You cannot specify an empty prompt."));
        }
        let mut params = body.object("params")?;
        let checked = Body(params.clone());
        let length = checked.integer("max_length", 16..=16_384)?.unwrap_or(80);
        let context = checked.integer("max_context_length", 80..=1_048_576)?.unwrap_or(2048);
        checked.integer("top_k", 0..=200)?;
        let n = u32::try_from(checked.integer("n", 1..=20)?.unwrap_or(1)).unwrap_or(1);
        if length > context {
            return Err(refuse(
                400,
                "InvalidTextSettings",
                "max_length cannot be bigger than max_context_length",
            ));
        }
        let defaults = json!({ "max_length": length, "max_context_length": context, "min_p": 0.0, "smoothing_factor": 0.0, "dynatemp_range": 0.0, "dynatemp_exponent": 1.0 });
        for (name, value) in defaults.as_object().into_iter().flatten() {
            params.entry(name.clone()).or_insert_with(|| value.clone());
        }
        let id = self.new_id();
        self.requests.push(Request {
            models: body.texts("models")?,
            body: body.0,
            params,
            n_waiting: n,
            n_asked: n,
            ..Request::filed(&id, Kind::Text, &key)
        });
        Ok(Answer::json(202, &json!({ "id": id, "kudos": 0.0 })))
    }

    /// `POST /v2/generate/text/pop`.
    pub(crate) fn pop_text(&mut self, key: Option<&str>, body: &Body) -> Outcome {
        self.sweep_if_due();
        let models = body.texts("models")?;
        body.integer("max_length", 1..=MOST_LENGTH)?;
        body.integer("max_context_length", 1..=MOST_CONTEXT)?;
        body.flag("nsfw", true)?;
        let declared = Declared::of(body, &models)?;
        let popper = self.check_in(Kind::Text, key, body)?;
        if let Some(answer) = self.next_scripted(Kind::Text, &popper.name) {
            return Ok(answer);
        }
        for model in &models {
            if let Some((_, owner)) = model.split_once("::")
                && owner != popper.alias
            {
                return Err(refuse(400, "BadRequest", "This model name belongs to somebody else"));
            }
        }
        if models.is_empty() {
            return Err(refuse(
                400,
                "BadRequest",
                "Unfortunately we cannot accept workers serving unrecognised models at this time",
            ));
        }
        let (stored, agent, paused) = match self.workers.get(&popper.name) {
            Some(worker) => (Body(worker.stored.clone()), worker.agent.clone(), worker.paused),
            None => return Err(refuse(404, "WorkerNotFound", "Worker not found")),
        };
        let nsfw = stored.flag("nsfw", true).unwrap_or(true);
        let limit = |name: &str, most, default| stored.integer(name, 1..=most).ok().flatten().unwrap_or(default);
        let max_length = limit("max_length", MOST_LENGTH, 512);
        let max_context = limit("max_context_length", MOST_CONTEXT, 2048);
        let too_slow = self
            .workers
            .get(&popper.name)
            .is_some_and(|worker| worker.speed() < least_speed(&models[0]) && !worker.speeds.is_empty());
        if paused {
            return Ok(self.decoy(&popper.name, Kind::Text, &models[0]));
        }
        let found = self.queue_for(Kind::Text, &popper, body).into_iter().find(|index| {
            let request = &self.requests[*index];
            let number = |name: &str| request.params.get(name).and_then(Value::as_i64).unwrap_or(0);
            let filed = Body(request.body.clone());
            let served = match (&request.chat, &declared.chat) {
                (Some(needs), Some(worker)) => chat::suits(worker, needs, request),
                (Some(_), None) => false,
                (None, _) => {
                    let any = request.models.is_empty();
                    let model = any || request.models.iter().any(|model| models.contains(model));
                    let fits = number("max_length") <= max_length && number("max_context_length") <= max_context;
                    declared.prompts && model && fits
                }
            };
            let nsfw = nsfw || !filed.flag("nsfw", false).unwrap_or(false);
            let trusted = popper.trusted || !filed.flag("trusted_workers", false).unwrap_or(false);
            let validated = agent.validated_text() || !filed.flag("validated_backends", false).unwrap_or(false);
            let speed = !too_slow || filed.flag("slow_workers", true).unwrap_or(true);
            served && nsfw && trusted && validated && speed && self.may_work(request, &popper.name)
        });
        let Some(index) = found else {
            self.refuse_in_maintenance(&popper.name)?;
            return Ok(Answer::ok(&json!({
                "payload": { "n": 1, "max_context_length": 2048, "max_length": 80 }, "id": null, "ids": [], "messages": self.messages, "ttl": null,
                "extra_source_images": null, "skipped": {}, "softprompt": null, "model": null,
            })));
        };
        let id = self.new_id();
        let request = &mut self.requests[index];
        request.n_waiting -= 1;
        request.touched = Instant::now();
        request.generations.push(id.clone());
        let model = request
            .models
            .iter()
            .find(|model| models.contains(model))
            .or_else(|| models.choose(&mut self.rng))
            .unwrap_or(&models[0])
            .clone();
        let chat = declared.chat.filter(|_| request.chat.is_some());
        let model = chat.as_ref().map_or(model, |worker| worker.model.clone());
        let payload = match &chat {
            Some(worker) => chat::handed_out(worker, request),
            None => handed_out(request),
        };
        let request_id = request.id.clone();
        let ttl = TTL.mul_f64(self.settings.ttl_factor);
        self.hand_out(
            Generation::handed_out(&id, &request_id, &popper.name, &model, ttl),
            Kind::Text,
        );
        let mut answer = json!({
            "payload": payload, "id": id, "ids": [id], "messages": self.messages, "ttl": ttl.as_secs(), "extra_source_images": null, "skipped": {},
            "softprompt": null, "model": model,
        });
        if chat.is_some() {
            answer["chat"] = json!(true);
        }
        Ok(Answer::ok(&answer))
    }

    /// `POST /v2/generate/text/submit`.
    pub(crate) fn submit_text(&mut self, key: Option<&str>, body: &Body) -> Outcome {
        let id = body.required_text("id")?;
        if let Some(request) = self.chat_of(&id) {
            return self.submit_chat(&id, key, body, &request);
        }
        let text = body.required_text("generation")?;
        let state = body.text("state")?.unwrap_or_else(|| "ok".to_owned());
        if !["ok", "censored", "faulted", "csam"].contains(&state.as_str()) {
            return Err(crate::answer::invalid("state", "is not one of the known states"));
        }
        let seed = body.integer("seed", i64::MIN..=i64::MAX)?.unwrap_or(0);
        let mut metadata = schema::metadata(body)?;
        if state == "csam" {
            metadata.push(json!({ "type": "censorship", "value": "csam" }));
        }
        self.price_text(&id, &text);
        let reward = self.close(&id, key, state == "faulted", |horde| {
            if let Some(one) = horde.generations.get_mut(&id) {
                one.result = Some(Value::String(text.clone()));
                one.seed = Some(seed);
                one.state.clone_from(&state);
                one.metadata = metadata;
            }
        })?;
        Ok(Answer::ok(&json!({ "reward": reward })))
    }

    pub(crate) fn price_text(&mut self, id: &str, text: &str) {
        let Some(one) = self.generations.get(id) else { return };
        let validated = self
            .workers
            .get(&one.worker)
            .is_some_and(|worker| worker.agent.validated_text());
        let request = self.requests.iter().find(|request| request.id == one.request);
        let max_length = request
            .and_then(|request| request.params.get("max_length"))
            .and_then(Value::as_u64)
            .unwrap_or(80);
        let prompt_chars = request
            .and_then(|request| request.body.get("prompt"))
            .and_then(Value::as_str)
            .map_or(0, |prompt| prompt.chars().count());
        let n_chars = text.chars().count();
        let reward = kudos::text(
            n_chars,
            prompt_chars,
            max_length,
            kudos::billions_in_name(&one.model),
            validated,
        );
        if let Some(one) = self.generations.get_mut(id)
            && one.phase == Phase::Live
        {
            one.reward = reward;
            one.units = (n_chars as f64 / 4.0).max(20.0_f64.min(max_length as f64));
        }
    }

    /// `GET /v2/generate/text/status/{id}`.
    pub(crate) fn text_status(&mut self, id: &str) -> Outcome {
        self.sweep_if_due();
        let request = self.find_request(id, Kind::Text)?.clone();
        let (counts, done) = self.counts(&request);
        let generations: Vec<Value> = self
            .delivered(&request)
            .map(|one| {
                json!({
                    "text": one.result, "seed": one.seed, "gen_metadata": one.metadata, "worker_id": self.worker_id(&one.worker), "worker_name": one.worker,
                    "model": one.model, "state": one.state,
                })
            })
            .collect();
        let mut status = json!({ "done": done, "faulted": request.faulted, "wait_time": 0, "queue_position": 0, "kudos": self.spent(&request), "is_possible": true, "generations": generations });
        merge(&mut status, counts);
        Ok(Answer::ok(&status))
    }

    pub(crate) fn find_request(&self, id: &str, kind: Kind) -> Result<&Request, Box<Answer>> {
        let found = self
            .requests
            .iter()
            .find(|request| request.id == id && request.kind == kind);
        found.ok_or_else(|| refuse(404, "RequestNotFound", &format!("Request with ID '{id}' not found.")))
    }

    /// Whether a request's own list of workers lets this one have it.
    pub(crate) fn may_work(&self, request: &Request, worker: &str) -> bool {
        let id = self.worker_id(worker);
        let filed = Body(request.body.clone());
        let named = filed.texts("workers").unwrap_or_default();
        let blacklist = filed.flag("worker_blacklist", false).unwrap_or(false);
        named.is_empty() || (named.contains(&id) != blacklist)
    }

    pub(crate) fn worker_id(&self, name: &str) -> String {
        self.workers
            .get(name)
            .map(|worker| worker.id.clone())
            .unwrap_or_default()
    }

    pub(crate) fn delivered<'a>(&'a self, request: &'a Request) -> impl Iterator<Item = &'a Generation> {
        request
            .generations
            .iter()
            .filter_map(|id| self.generations.get(id))
            .filter(|one| one.phase == Phase::Done)
    }

    pub(crate) fn spent(&self, request: &Request) -> f64 {
        self.delivered(request)
            .map(|one| one.reward)
            .fold(0.0, |sum, reward| sum + reward)
    }

    /// `finished`, `processing`, `waiting`, `restarted`, and whether nothing more will come.
    pub(crate) fn counts(&self, request: &Request) -> (Value, bool) {
        let phase = |phase: Phase| {
            request
                .generations
                .iter()
                .filter_map(|id| self.generations.get(id))
                .filter(|one| one.phase == phase)
                .count()
        };
        let (finished, processing) = (phase(Phase::Done), phase(Phase::Live));
        let restarted = phase(Phase::Aborted) + phase(Phase::Faulted);
        let done = request.faulted || request.cancelled || (request.n_waiting == 0 && processing == 0);
        (
            json!({ "finished": finished, "processing": processing, "waiting": request.n_waiting, "restarted": restarted }),
            done,
        )
    }

    /// What a silently paused worker gets: a job that looks real and is worth nothing.
    pub(crate) fn decoy(&mut self, worker: &str, kind: Kind, model: &str) -> Answer {
        let id = self.new_id();
        self.hand_out(Generation::handed_out(&id, "", worker, model, TTL), kind);
        let upload = self.objects.sign("PUT", &format!("{id}.webp"));
        Answer::ok(&match kind {
            Kind::Text => json!({
                "payload": { "prompt": "Once upon a time", "n": 1, "max_length": 80, "max_context_length": 2048 }, "id": id, "ids": [id], "messages": [],
                "ttl": 150, "skipped": {}, "model": model,
            }),
            Kind::Image => json!({
                "payload": { "prompt": "a hill", "ddim_steps": 20, "n_iter": 1, "seed": "1", "sampler_name": "k_euler_a", "cfg_scale": 5.0, "width": 512, "height": 512, "karras": true },
                "id": id, "ids": [id], "r2_upload": upload, "r2_uploads": [upload], "messages": [], "ttl": 150, "skipped": {}, "model": model,
                "source_processing": "img2img",
            }),
            Kind::Alchemy => json!({ "forms": null, "skipped": {} }),
        })
    }
}

/// What a worker is handed of a request to continue a prompt.
fn handed_out(request: &Request) -> Map<String, Value> {
    let mut payload = Map::new();
    payload.insert(
        "prompt".to_owned(),
        request.body.get("prompt").cloned().unwrap_or_default(),
    );
    payload.insert("n".to_owned(), json!(1));
    payload.extend(
        request
            .params
            .iter()
            .filter(|(name, _)| FORWARDED.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone())),
    );
    payload
}

/// Puts the fields of one object into another.
pub(crate) fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}
