//! Alchemy: each form of a request is handed out, closed and paid by itself.

use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::answer::{Answer, Outcome, invalid, refuse};
use crate::kudos;
use crate::model::{Generation, Kind, Phase, Request};
use crate::schema::Body;
use crate::state::State;

const TTL: Duration = Duration::from_secs(180);
const WORDS: [&str; 7] = [
    "caption",
    "interrogation",
    "nsfw",
    "vectorize",
    "palette",
    "describe",
    "aesthetic",
];
const POST_PROCESSORS: [&str; 16] = [
    "GFPGAN",
    "RealESRGAN_x4plus",
    "RealESRGAN_x2plus",
    "RealESRGAN_x4plus_anime_6B",
    "NMKD_Siax",
    "4x_AnimeSharp",
    "CodeFormers",
    "strip_background",
    "4xNomos8kSC",
    "4xLSDIRplus",
    "4xNomosWebPhoto_RealPLKSR",
    "4xNomos2_realplksr_dysample",
    "4xNomos2_hq_dat2",
    "2xModernSpanimationV1",
    "GFPGANv1.3",
    "RestoreFormer",
];

fn is_form(name: &str) -> bool {
    WORDS.contains(&name) || POST_PROCESSORS.contains(&name)
}

fn tiles(size: Option<(u32, u32)>) -> u64 {
    let (width, height) = size.unwrap_or((512, 512));
    u64::from(width.div_ceil(512)) * u64::from(height.div_ceil(512))
}

impl State {
    /// `POST /v2/interrogate/async`: one waiting request per form, under one id for the client.
    pub(crate) fn file_alchemy(&mut self, key: Option<&str>, body: Body) -> Outcome {
        let (key, _) = self.user(key)?;
        let forms = body
            .0
            .get("forms")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        if forms.is_empty() {
            return Err(invalid("forms", "'forms' is a required property"));
        }
        let (source, source_size) = self.store_source(&body, "source_image")?;
        let source = source.ok_or_else(|| refuse(400, "SourceImageMissing", "A source image is needed"))?;
        let id = self.new_id();
        for (index, form) in forms.iter().enumerate() {
            let name = form.get("name").and_then(Value::as_str).unwrap_or_default();
            if !is_form(name) {
                return Err(invalid(
                    &format!("forms.{index}.name"),
                    &format!("'{name}' is not a known form"),
                ));
            }
            let mut params = form
                .get("payload")
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default();
            params.insert("form".to_owned(), json!(name));
            self.requests.push(Request {
                body: body
                    .0
                    .iter()
                    .filter(|(name, _)| *name != "source_image")
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect(),
                params,
                source: Some(source.clone()),
                source_size,
                ..Request::filed(&id, Kind::Alchemy, &key)
            });
        }
        Ok(Answer::json(202, &json!({ "id": id })))
    }

    /// `POST /v2/interrogate/pop`.
    pub(crate) fn pop_alchemy(&mut self, key: Option<&str>, body: &Body) -> Outcome {
        self.sweep_if_due();
        let forms = body.texts("forms")?;
        if let Some((index, form)) = forms.iter().enumerate().find(|(_, form)| !is_form(form)) {
            return Err(invalid(
                &format!("forms.{index}"),
                &format!("'{form}' is not one of the known forms"),
            ));
        }
        let amount = body.integer("amount", 1..=100)?.unwrap_or(1);
        let max_tiles = body.integer("max_tiles", 1..=256)?.unwrap_or(80);
        let popper = self.check_in(Kind::Alchemy, key, body)?;
        let mut given = Vec::new();
        for index in self.queue_for(Kind::Alchemy, &popper, body) {
            if given.len() >= usize::try_from(amount).unwrap_or(1) {
                break;
            }
            let request = &self.requests[index];
            let name = request
                .params
                .get("form")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned();
            let n_tiles = tiles(request.source_size);
            if !forms.contains(&name)
                || i64::try_from(n_tiles).unwrap_or(i64::MAX) > max_tiles
                || !self.may_work(request, &popper.name)
            {
                continue;
            }
            given.push(self.give_form(index, &name, n_tiles, &popper.name));
        }
        if given.is_empty() {
            self.refuse_in_maintenance(&popper.name)?;
            return Ok(Answer::ok(&json!({ "forms": null, "skipped": {} })));
        }
        Ok(Answer::ok(&json!({ "forms": given, "skipped": {} })))
    }

    fn give_form(&mut self, index: usize, name: &str, n_tiles: u64, worker: &str) -> Value {
        let id = self.new_id();
        let ttl = TTL.mul_f64(self.settings.ttl_factor);
        let request = &mut self.requests[index];
        request.n_waiting = 0;
        request.touched = Instant::now();
        request.generations.push(id.clone());
        let mut form = json!({ "id": id, "form": name, "source_image": request.source });
        let options: Map<String, Value> = request
            .params
            .iter()
            .filter(|(key, _)| *key != "form")
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !options.is_empty() {
            form["payload"] = Value::Object(options);
        }
        let mut one = Generation::handed_out(&id, &request.id, worker, name, ttl);
        one.reward = kudos::form(name, n_tiles);
        if POST_PROCESSORS.contains(&name) {
            form["r2_upload"] = json!(self.objects.sign("PUT", &format!("{id}.webp")));
        }
        // Requests of one client id share it; the generation finds its own by the list above.
        self.hand_out(one, Kind::Alchemy);
        form
    }

    /// `POST /v2/interrogate/submit`. The id is looked up before the key.
    pub(crate) fn submit_alchemy(&mut self, key: Option<&str>, body: &Body) -> Outcome {
        let id = body.required_text("id")?;
        let result = match body.0.get("result") {
            Some(Value::Object(map)) => Value::Object(map.clone()),
            Some(other) => return Err(invalid("result", &format!("{other} is not of type 'object'"))),
            None => return Err(invalid("result", "'result' is a required property")),
        };
        let faulted = body.text("state")?.is_some_and(|state| state == "faulted");
        let cancelled = self
            .requests
            .iter()
            .any(|request| request.cancelled && request.generations.contains(&id));
        if cancelled && !faulted {
            if let Some(entry) = self.ledger.generations.get_mut(&id) {
                entry.too_late += 1;
            }
            return Err(refuse(
                400,
                "DuplicateGen",
                &format!("Form with ID {id} was cancelled or already submitted"),
            ));
        }
        let reward = self.close(&id, key, faulted, |horde| {
            if let Some(one) = horde.generations.get_mut(&id) {
                one.result = Some(result);
            }
        })?;
        Ok(Answer::ok(&json!({ "reward": reward })))
    }

    /// `GET /v2/interrogate/status/{id}`.
    pub(crate) fn alchemy_status(&mut self, id: &str) -> Outcome {
        self.sweep_if_due();
        let requests: Vec<Request> = self
            .requests
            .iter()
            .filter(|request| request.id == id && request.kind == Kind::Alchemy)
            .cloned()
            .collect();
        if requests.is_empty() {
            return Err(refuse(
                404,
                "RequestNotFound",
                &format!("Request with ID '{id}' not found."),
            ));
        }
        let mut forms = Vec::new();
        for request in &requests {
            let name = request.params.get("form").and_then(Value::as_str).unwrap_or_default();
            let phase = |wanted: Phase| {
                request
                    .generations
                    .iter()
                    .filter_map(|id| self.generations.get(id))
                    .find(|one| one.phase == wanted)
            };
            let (state, result) = match (phase(Phase::Done), phase(Phase::Live)) {
                (Some(one), _) => {
                    let mut result = one.result.clone().unwrap_or_default();
                    for value in result.as_object_mut().into_iter().flat_map(Map::values_mut) {
                        if *value == json!("R2") {
                            *value = json!(self.objects.sign("GET", &format!("{}.webp", one.id)));
                        }
                    }
                    ("done", Some(result))
                }
                (None, Some(_)) => ("processing", None),
                _ if request.cancelled => ("cancelled", None),
                _ if request.faulted || request.n_failures >= 3 => ("faulted", None),
                _ => ("waiting", None),
            };
            let mut form = json!({ "form": name, "state": state });
            if let Some(result) = result {
                form["result"] = result;
            }
            forms.push(form);
        }
        let all = |wanted: &str| forms.iter().all(|form| form["state"] == wanted);
        let any = |wanted: &str| forms.iter().any(|form| form["state"] == wanted);
        let state = match () {
            () if all("done") => "done",
            () if any("waiting") || any("processing") => {
                if any("processing") {
                    "processing"
                } else {
                    "waiting"
                }
            }
            () if any("done") => "partial",
            () if all("cancelled") => "cancelled",
            () => "faulted",
        };
        Ok(Answer::ok(&json!({ "state": state, "forms": forms })))
    }
}
