//! Images: filing, popping, submitting, reading.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::agents::Agent;
use crate::answer::{Answer, Outcome, invalid, refuse};
use crate::kudos::{self, ImageWork};
use crate::schema::{self, Body};
use crate::state::{Kind, Request, State};
use crate::text::{generation, merge};

const SAMPLERS: [&str; 16] = [
    "k_lms",
    "k_heun",
    "k_euler",
    "k_euler_a",
    "k_dpm_2",
    "k_dpm_2_a",
    "k_dpm_fast",
    "k_dpm_adaptive",
    "k_dpmpp_2s_a",
    "k_dpmpp_2m",
    "k_dpmpp_sde",
    "dpmsolver",
    "lcm",
    "DDIM",
    "uni_pc",
    "uni_pc_bh2",
];
const TWICE_PER_STEP: [&str; 5] = ["k_heun", "k_dpm_2", "k_dpm_2_a", "k_dpmpp_2s_a", "k_dpmpp_sde"];
const NEW_POST_PROCESSORS: [&str; 8] = [
    "4xNomos8kSC",
    "4xLSDIRplus",
    "4xNomosWebPhoto_RealPLKSR",
    "4xNomos2_realplksr_dysample",
    "4xNomos2_hq_dat2",
    "2xModernSpanimationV1",
    "GFPGANv1.3",
    "RestoreFormer",
];

/// The baseline's words in a model's name; the real server looks into its reference.
fn baseline(model: &str) -> (&'static str, f64) {
    let lower = model.to_lowercase();
    if lower.contains("flux") {
        ("flux", 8.0)
    } else if lower.contains("cascade") {
        ("cascade", 4.0)
    } else if lower.contains("xl") {
        ("sdxl", 2.0)
    } else {
        ("sd", 1.0)
    }
}

fn number(params: &Map<String, Value>, name: &str, default: f64) -> f64 {
    params.get(name).and_then(Value::as_f64).unwrap_or(default)
}

fn truthy(params: &Map<String, Value>, name: &str) -> bool {
    params.get(name) == Some(&json!(true))
}

fn list<'a>(params: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    params.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Address of a source and its size in pixels, where they are known.
pub(crate) type StoredSource = (Option<String>, Option<(u32, u32)>);

/// Lease of a request, before its tripling for slow workers.
fn lease(request: &Request) -> Duration {
    let params = &request.params;
    let sampler = params
        .get("sampler_name")
        .and_then(Value::as_str)
        .unwrap_or("k_euler_a");
    let steps = match sampler {
        "k_dpm_adaptive" => 40.0,
        name if TWICE_PER_STEP.contains(&name) => 2.0 * number(params, "steps", 30.0),
        _ => number(params, "steps", 30.0),
    };
    let pixels = number(params, "width", 512.0) * number(params, "height", 512.0);
    let mut seconds = 30.0 + steps * 2.0 * pixels / 262_144.0;
    if params.contains_key("control_type") {
        seconds *= 2.0;
    }
    if request.models.iter().any(|model| baseline(model).0 == "flux") {
        seconds *= 3.0;
    }
    Duration::from_secs_f64(seconds.max(150.0).floor())
}

impl State {
    /// `POST /v2/generate/async`.
    pub(crate) fn file_image(&mut self, key: Option<&str>, body: Body) -> Outcome {
        let (key, _) = self.user(key)?;
        if body.required_text("prompt")?.trim().is_empty() {
            return Err(refuse(400, "MissingPrompt", "You cannot specify an empty prompt."));
        }
        let mut params = body.object("params")?;
        let checked = Body(params.clone());
        let control = params.contains_key("control_type");
        let n = u32::try_from(checked.integer("n", 1..=20)?.unwrap_or(1)).unwrap_or(1);
        let mut steps = checked
            .integer("steps", 1..=500)?
            .unwrap_or(if control { 20 } else { 30 });
        if control {
            steps = steps.min(40);
        }
        for side in ["width", "height"] {
            let value = checked.integer(side, 64..=3072)?.unwrap_or(512);
            if value % 64 != 0 {
                return Err(invalid(
                    &format!("params.{side}"),
                    &format!("{value} is not a multiple of 64"),
                ));
            }
            params.insert(side.to_owned(), json!(value));
        }
        let sampler = checked.text("sampler_name")?.unwrap_or_else(|| "k_euler_a".to_owned());
        if !SAMPLERS.contains(&sampler.as_str()) {
            return Err(invalid(
                "params.sampler_name",
                &format!("'{sampler}' is not a known sampler"),
            ));
        }
        if list(&params, "loras").len() > 5 || list(&params, "tis").len() > 20 {
            return Err(refuse(400, "TooManyLoras", "Too many LoRAs or textual inversions"));
        }
        let seed = match params.get("seed") {
            Some(Value::String(text)) if !text.is_empty() => seed_of(text),
            Some(Value::Number(number)) => seed_of(&number.to_string()),
            _ => u64::from(self.rng.random::<u32>()),
        };
        params.insert("steps".to_owned(), json!(steps));
        params.insert("seed".to_owned(), json!(seed.to_string()));
        params.entry("sampler_name").or_insert(json!(sampler));
        params.entry("cfg_scale").or_insert(json!(5.0));
        params.entry("karras").or_insert(json!(true));
        let (source, source_size) = self.store_source(&body, "source_image")?;
        let (mask, _) = self.store_source(&body, "source_mask")?;
        if control && source.is_none() {
            return Err(refuse(
                400,
                "ControlNetSourceMissing",
                "ControlNet needs a source image",
            ));
        }
        let id = self.new_id();
        self.requests.push(Request {
            id: id.clone(),
            kind: Kind::Image,
            owner: key,
            models: body.texts("models")?,
            body: body.0,
            params,
            n_waiting: n,
            n_asked: n,
            generations: Vec::new(),
            filed: Instant::now(),
            n_failures: 0,
            faulted: false,
            cancelled: false,
            source,
            mask,
            source_size,
        });
        Ok(Answer::json(202, &json!({ "id": id, "kudos": 0.0 })))
    }

    /// Stores a base64 source as the server's own WebP; an address is passed through.
    pub(crate) fn store_source(&mut self, body: &Body, field: &str) -> Result<StoredSource, Box<Answer>> {
        let Some(text) = body.text(field)? else {
            return Ok((None, None));
        };
        if text.starts_with("http://") || text.starts_with("https://") {
            return Ok((Some(text), None));
        }
        let convert_error = || {
            refuse(
                400,
                "ImageValidationFailed",
                "Image validation failed: it is not a picture",
            )
        };
        let text = text.split_once("base64,").map_or(text.as_str(), |(_, data)| data);
        let bytes = STANDARD.decode(text.trim()).map_err(|_| convert_error())?;
        let picture = image::load_from_memory(&bytes).map_err(|_| convert_error())?;
        let size = (picture.width(), picture.height());
        if size.0 > 3072 || size.1 > 3072 {
            return Err(refuse(
                400,
                "SourceImageResolutionExceeded",
                "Image size exceeds 3072 pixels",
            ));
        }
        let mut webp = std::io::Cursor::new(Vec::new());
        let picture = if picture.color().has_alpha() {
            image::DynamicImage::ImageRgba8(picture.to_rgba8())
        } else {
            image::DynamicImage::ImageRgb8(picture.to_rgb8())
        };
        picture
            .write_to(&mut webp, image::ImageFormat::WebP)
            .map_err(|_| convert_error())?;
        let key = format!("source-{}.webp", self.new_id());
        self.objects.put_own(&key, webp.into_inner());
        Ok((Some(self.objects.sign("GET", &key)), Some(size)))
    }

    /// `POST /v2/generate/pop`.
    pub(crate) fn pop_image(&mut self, key: Option<&str>, body: &Body) -> Outcome {
        self.sweep_if_due();
        let mut models = body.texts("models")?;
        let amount = body.integer("amount", 1..=20)?.unwrap_or(1);
        for flag in [
            "nsfw",
            "require_upfront_kudos",
            "extra_slow_worker",
            "allow_img2img",
            "allow_painting",
            "allow_unsafe_ipaddr",
            "allow_post_processing",
            "allow_controlnet",
            "allow_sdxl_controlnet",
            "allow_lora",
            "limit_max_steps",
        ] {
            body.flag(flag, true)?;
        }
        body.texts("blacklist")?;
        body.integer("max_pixels", 0..=i64::MAX)?;
        let popper = self.check_in(Kind::Image, key, body)?;
        if !self.settings.image_models.is_empty() {
            models.retain(|model| self.settings.image_models.contains(model));
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
        if paused {
            return Ok(self.decoy(&popper.name, Kind::Image, &models[0]));
        }
        let reasons = [
            "max_pixels",
            "models",
            "img2img",
            "painting",
            "unsafe_ip",
            "nsfw",
            "blacklist",
            "post-processing",
            "lora",
            "controlnet",
            "bridge_version",
            "performance",
            "untrusted",
            "worker_id",
            "step_count",
            "kudos",
        ];
        let mut skipped: BTreeMap<&str, u64> = reasons.into_iter().map(|reason| (reason, 0)).collect();
        let mut found = None;
        for index in self.queue_for(Kind::Image, &popper, body) {
            match self.why_not(&self.requests[index], &models, &stored, &agent, &popper.name) {
                None => {
                    found = Some(index);
                    break;
                }
                Some("") => {}
                Some(reason) => *skipped.entry(reason).or_default() += 1,
            }
        }
        let Some(index) = found else {
            self.refuse_in_maintenance(&popper.name)?;
            return Ok(Answer::ok(&json!({
                "payload": { "ddim_steps": 30, "n_iter": 1, "sampler_name": "k_euler_a", "cfg_scale": 7.5, "height": 512, "width": 512, "karras": false, "tiling": false, "hires_fix": false, "image_is_control": false, "return_control_map": false, "transparent": false },
                "id": null, "ids": [], "r2_upload": null, "r2_uploads": null, "skipped": skipped, "model": null, "source_image": null, "source_processing": "img2img",
                "source_mask": null, "extra_source_images": null, "messages": self.messages, "ttl": null,
            })));
        };
        Ok(self.give_image(index, &models, amount, &stored, &popper.name))
    }

    fn give_image(&mut self, index: usize, models: &[String], amount: i64, stored: &Body, worker: &str) -> Answer {
        let request = self.requests[index].clone();
        let params = &request.params;
        let model = request
            .models
            .iter()
            .find(|model| models.contains(model))
            .unwrap_or(&models[0])
            .clone();
        let pixels = number(params, "width", 512.0) * number(params, "height", 512.0);
        let n_post = list(params, "post_processing").len();
        let max_pixels = stored
            .integer("max_pixels", 0..=i64::MAX)
            .ok()
            .flatten()
            .unwrap_or(262_144) as f64;
        let safe = (max_pixels / 3.5 * amount as f64 / (pixels * (1.0 + 0.4 * n_post as f64)))
            .round()
            .max(1.0) as i64;
        let single = Body(request.body.clone())
            .flag("disable_batching", false)
            .unwrap_or(false)
            || params.contains_key("workflow");
        let n = if single {
            1
        } else {
            amount.min(safe).min(i64::from(request.n_waiting)).max(1)
        };
        let slow = stored.flag("extra_slow_worker", false).unwrap_or(false);
        let ttl = lease(&request).mul_f64(self.settings.ttl_factor * if slow { 3.0 } else { 1.0 });
        let reward = kudos::image(&ImageWork {
            pixels,
            steps: number(params, "steps", 30.0),
            n_post,
            control: params.contains_key("control_type"),
            n_loras: list(params, "loras").len(),
            textual_inversion: !list(params, "tis").is_empty(),
            baseline: baseline(&model).1,
        });
        let (mut ids, mut uploads) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let id = self.new_id();
            uploads.push(self.objects.sign("PUT", &format!("{id}.webp")));
            let mut one = generation(&id, &request.id, worker, &model, ttl);
            one.reward = reward;
            one.units = number(params, "steps", 30.0) * pixels / 1e6;
            self.hand_out(one, Kind::Image);
            ids.push(id);
        }
        let request = &mut self.requests[index];
        request.n_waiting -= u32::try_from(n).unwrap_or(1);
        request.generations.extend(ids.iter().cloned());
        let mut payload = Map::new();
        payload.insert(
            "prompt".to_owned(),
            request.body.get("prompt").cloned().unwrap_or_default(),
        );
        for (name, value) in &request.params {
            let name = if name == "steps" { "ddim_steps" } else { name };
            if name != "n" {
                payload.insert(name.to_owned(), value.clone());
            }
        }
        payload.insert("n_iter".to_owned(), json!(n));
        for name in [
            "tiling",
            "hires_fix",
            "transparent",
            "image_is_control",
            "return_control_map",
        ] {
            payload.entry(name).or_insert(json!(false));
        }
        let filed = Body(request.body.clone());
        let flag = |name: &str, default| filed.flag(name, default).unwrap_or(default);
        if !flag("nsfw", true) && flag("censor_nsfw", false) {
            payload.insert("use_nsfw_censor".to_owned(), json!(true));
        }
        let processing = request
            .body
            .get("source_processing")
            .cloned()
            .unwrap_or(json!("img2img"));
        Answer::ok(&json!({
            "payload": payload, "id": ids[0], "ids": ids, "r2_upload": uploads[0], "r2_uploads": uploads, "skipped": {}, "model": model,
            "source_image": request.source, "source_processing": processing, "source_mask": request.mask,
            "extra_source_images": request.body.get("extra_source_images"), "messages": self.messages, "ttl": ttl.as_secs(),
        }))
    }

    /// Why a request is not for this worker: a reason of `skipped`, `""` for a silent one, `None` if it is.
    fn why_not(
        &self,
        request: &Request,
        models: &[String],
        stored: &Body,
        agent: &Agent,
        worker: &str,
    ) -> Option<&'static str> {
        let params = &request.params;
        let filed = Body(request.body.clone());
        let asks = |name: &str, default| filed.flag(name, default).unwrap_or(default);
        let allows = |name: &str, default| stored.flag(name, default).unwrap_or(default);
        let has_source = request.source.is_some();
        let processing = request
            .body
            .get("source_processing")
            .and_then(Value::as_str)
            .unwrap_or("img2img");
        let painting = has_source && processing != "img2img" && processing != "remix";
        let pixels = number(params, "width", 512.0) * number(params, "height", 512.0);
        let sampler = params.get("sampler_name").and_then(Value::as_str).unwrap_or_default();
        let (post, control) = (list(params, "post_processing"), params.contains_key("control_type"));
        let trusted = self
            .workers
            .get(worker)
            .and_then(|worker| self.users.get(&worker.owner))
            .is_some_and(|user| user.trusted);
        if !agent.has("flux") && models.iter().any(|model| baseline(model).0 == "flux") {
            return Some("");
        }
        if !request.models.is_empty() && !request.models.iter().any(|model| models.contains(model)) {
            return Some("models");
        }
        if pixels
            > stored
                .integer("max_pixels", 0..=i64::MAX)
                .ok()
                .flatten()
                .unwrap_or(262_144) as f64
        {
            return Some("max_pixels");
        }
        if asks("r2", true) && !agent.has("r2") {
            return Some("");
        }
        if has_source && !painting && !allows("allow_img2img", true) {
            return Some("img2img");
        }
        if painting && !allows("allow_painting", true) {
            return Some("painting");
        }
        if asks("nsfw", false) && !allows("nsfw", true) {
            return Some("nsfw");
        }
        let prompt = request
            .body
            .get("prompt")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_lowercase();
        if stored
            .texts("blacklist")
            .unwrap_or_default()
            .iter()
            .any(|word| !word.is_empty() && prompt.contains(&word.to_lowercase()))
        {
            return Some("blacklist");
        }
        if !post.is_empty() && !allows("allow_post_processing", true) {
            return Some("");
        }
        let new_post = post
            .iter()
            .filter_map(Value::as_str)
            .any(|name| NEW_POST_PROCESSORS.contains(&name));
        if (!post.is_empty() && !agent.has("post_processing")) || (new_post && !agent.has("new_post_processor")) {
            return Some("bridge_version");
        }
        if !list(params, "loras").is_empty() {
            if !allows("allow_lora", false) {
                return Some("lora");
            }
            let by_version = list(params, "loras")
                .iter()
                .any(|lora| lora.get("is_version") == Some(&json!(true)));
            if !agent.has("lora") || (by_version && !agent.has("lora_version")) {
                return Some("bridge_version");
            }
        }
        if !list(params, "tis").is_empty() && !agent.has("textual_inversion") {
            return Some("bridge_version");
        }
        if control && !allows("allow_controlnet", false) {
            return Some("controlnet");
        }
        if truthy(params, "transparent") && !allows("allow_sdxl_controlnet", false) {
            return Some("");
        }
        let clip_skip = number(params, "clip_skip", 1.0) > 1.0;
        let needs = [
            (has_source && !painting, "img2img"),
            (painting, "inpainting"),
            (control, "controlnet"),
            (truthy(params, "hires_fix"), "hires_fix"),
            (truthy(params, "tiling"), "tiling"),
            (clip_skip, "clip_skip"),
            (truthy(params, "transparent"), "transparent"),
            (params.contains_key("workflow"), "qr_code"),
            (request.body.contains_key("extra_source_images"), "extra_source_images"),
            (sampler == "lcm", "lcm"),
        ];
        if needs.into_iter().any(|(needed, feature)| needed && !agent.has(feature)) {
            return Some("bridge_version");
        }
        if asks("trusted_workers", false) && !trusted {
            return Some("untrusted");
        }
        if !self.may_work(request, worker) {
            return Some("worker_id");
        }
        let slow = allows("extra_slow_worker", false);
        if slow && !asks("extra_slow_workers", false) {
            return Some("performance");
        }
        None
    }

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
            let results: Vec<Value> = self
                .delivered(&request)
                .map(|one| {
                    json!({
                        "img": self.objects.sign("GET", &format!("{}.webp", one.id)), "seed": one.seed.map(|seed| seed.to_string()), "id": one.id,
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

/// A client's seed as a u32: digits that fit as they are, everything else by its bytes.
fn seed_of(text: &str) -> u64 {
    const LIMIT: u64 = 1 << 32;
    if let Ok(number) = text.parse::<u64>()
        && number < LIMIT
        && text.bytes().all(|byte| byte.is_ascii_digit())
    {
        return number;
    }
    let mut number = 0_u128;
    for (index, byte) in text.bytes().take(15).enumerate() {
        number |= u128::from(byte) << (8 * index);
    }
    while number >= u128::from(LIMIT) {
        number >>= 8;
    }
    u64::try_from(number).unwrap_or(0)
}
