//! Which image request is for which worker: flags, limits, and what the agent's name and version unlock.

use serde_json::{Value, json};

use crate::agents::Agent;
use crate::image_work::{Baseline, list, number, pixels, truthy};
use crate::model::Request;
use crate::schema::Body;
use crate::state::{ANONYMOUS_KEY, State};

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

/// Most pixels of a picture that a worker's stored settings allow.
pub(crate) fn max_pixels(stored: &Body) -> f64 {
    stored
        .integer("max_pixels", 0..=i64::MAX)
        .ok()
        .flatten()
        .unwrap_or(262_144) as f64
}

impl State {
    /// Why a request is not for this worker: a reason of `skipped`, `""` for a silent one, `None` if it is.
    pub(crate) fn why_not(
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
        let sampler = params.get("sampler_name").and_then(Value::as_str).unwrap_or_default();
        let (post, control) = (list(params, "post_processing"), params.contains_key("control_type"));
        let known = self.workers.get(worker);
        let trusted = known
            .and_then(|worker| self.users.get(&worker.owner))
            .is_some_and(|user| user.trusted);
        // Two gates look at the worker's models, not at the request's.
        let serves = |wanted: Baseline| models.iter().any(|model| Baseline::of(model) == wanted);
        if !agent.has("flux") && serves(Baseline::Flux) {
            return Some("");
        }
        if truthy(params, "hires_fix") && !agent.has("cascade_hires") && serves(Baseline::Cascade) {
            return Some("bridge_version");
        }
        if !request.models.is_empty() && !request.models.iter().any(|model| models.contains(model)) {
            return Some("models");
        }
        if pixels(params) > max_pixels(stored) {
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
            (sampler == "DDIM" && truthy(params, "karras"), "ddim_karras"),
            (true, "samplers"),
            (processing == "remix" && has_source, "extra_source_images"),
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
        if !asks("slow_workers", true) && (slow || known.is_some_and(|worker| worker.speed() < 0.5)) {
            return Some("performance");
        }
        let poor = self
            .users
            .get(&request.owner)
            .is_none_or(|user| user.kudos <= 0.0 || request.owner == ANONYMOUS_KEY);
        if allows("require_upfront_kudos", false) && poor {
            return Some("kudos");
        }
        None
    }
}
