//! Images: requests filed by clients and popped by workers.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use rand::seq::IndexedRandom;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::{Answer, Outcome, invalid, refuse};
use crate::image_gates::max_pixels;
use crate::image_work::{SAMPLERS, lease, list, payload, pixels, seed_of, worth};
use crate::model::{Generation, Kind, Request};
use crate::schema::Body;
use crate::state::State;

/// Address of a source and its size in pixels, where they are known.
pub(crate) type StoredSource = (Option<String>, Option<(u32, u32)>);

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
            models: body.texts("models")?,
            body: body.0,
            params,
            n_waiting: n,
            n_asked: n,
            source,
            mask,
            source_size,
            ..Request::filed(&id, Kind::Image, &key)
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
        let reader = || image::ImageReader::new(std::io::Cursor::new(&bytes)).with_guessed_format();
        let size = reader()
            .map_err(|_| convert_error())?
            .into_dimensions()
            .map_err(|_| convert_error())?;
        if size.0 > 3072 || size.1 > 3072 {
            return Err(refuse(
                400,
                "SourceImageResolutionExceeded",
                "Image size exceeds 3072 pixels",
            ));
        }
        let picture = reader()
            .map_err(|_| convert_error())?
            .decode()
            .map_err(|_| convert_error())?;
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
        if let Some(answer) = self.next_scripted(Kind::Image, &popper.name) {
            return Ok(answer);
        }
        // Names with an owner are for special users; the rest of a long list is not looked at.
        models.retain(|model| !model.contains("::"));
        models.truncate(300);
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
            .or_else(|| models.choose(&mut self.rng))
            .unwrap_or(&models[0])
            .clone();
        let n_post = list(params, "post_processing").len();
        let max_pixels = max_pixels(stored);
        let safe = (max_pixels / 3.5 * amount as f64 / (pixels(params) * (1.0 + 0.4 * n_post as f64)))
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
        let (reward, units) = worth(&request, &model);
        let (mut ids, mut uploads) = (Vec::new(), Vec::new());
        for _ in 0..n {
            let id = self.new_id();
            uploads.push(self.objects.sign("PUT", &format!("{id}.webp")));
            let mut one = Generation::handed_out(&id, &request.id, worker, &model, ttl);
            one.reward = reward;
            one.units = units;
            self.hand_out(one, Kind::Image);
            ids.push(id);
        }
        let request = &mut self.requests[index];
        request.n_waiting -= u32::try_from(n).unwrap_or(1);
        request.touched = Instant::now();
        request.generations.extend(ids.iter().cloned());
        let mut payload = payload(request, n, request.n_waiting);
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
}
