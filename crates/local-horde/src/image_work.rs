//! What an image request means before anybody runs it: baseline, lease, seed, and the payload as workers see it.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::kudos::{self, ImageWork};
use crate::model::Request;

pub(crate) const SAMPLERS: [&str; 16] = [
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
/// Parameters that travel to the worker under their own name; the rest of what a client sent is dropped.
const FORWARDED: [&str; 23] = [
    "seed",
    "sampler_name",
    "cfg_scale",
    "denoising_strength",
    "hires_fix_denoising_strength",
    "width",
    "height",
    "karras",
    "tiling",
    "hires_fix",
    "clip_skip",
    "post_processing",
    "facefixer_strength",
    "loras",
    "tis",
    "control_type",
    "image_is_control",
    "return_control_map",
    "workflow",
    "extra_texts",
    "transparent",
    "special",
    "control_strength",
];

/// Families of models that the rules tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Baseline {
    Sd,
    Sdxl,
    Cascade,
    Flux,
    Qwen,
    ZImage,
}

impl Baseline {
    /// The baseline's words in a model's name; the real server looks into its reference.
    pub(crate) fn of(model: &str) -> Self {
        let lower = model.to_lowercase();
        let has = |word: &str| lower.contains(word);
        match () {
            () if has("flux") => Self::Flux,
            () if has("qwen") => Self::Qwen,
            () if has("z-image") || has("zimage") || has("z_image") || has("zmodel") => Self::ZImage,
            () if has("cascade") => Self::Cascade,
            () if has("xl") => Self::Sdxl,
            () => Self::Sd,
        }
    }

    fn pay(self, params: &Map<String, Value>) -> f64 {
        match self {
            Self::Sd => 1.0,
            Self::Sdxl if params.contains_key("workflow") => 4.0,
            Self::Sdxl => 2.0,
            Self::Cascade if truthy(params, "hires_fix") => 7.0,
            Self::Cascade => 4.0,
            Self::Flux | Self::ZImage => 8.0,
            Self::Qwen => 12.0,
        }
    }
}

pub(crate) fn number(params: &Map<String, Value>, name: &str, default: f64) -> f64 {
    params.get(name).and_then(Value::as_f64).unwrap_or(default)
}

pub(crate) fn truthy(params: &Map<String, Value>, name: &str) -> bool {
    params.get(name) == Some(&json!(true))
}

pub(crate) fn list<'a>(params: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    params.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Pixels of one picture.
pub(crate) fn pixels(params: &Map<String, Value>) -> f64 {
    number(params, "width", 512.0) * number(params, "height", 512.0)
}

/// Lease of a request, before its tripling for slow workers. A batch does not lengthen it.
pub(crate) fn lease(request: &Request) -> Duration {
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
    let mut seconds = 30.0 + steps * 2.0 * pixels(params) / 262_144.0;
    if params.contains_key("control_type") {
        seconds *= 2.0;
    }
    let heavy = |model: &String| matches!(Baseline::of(model), Baseline::Flux | Baseline::Qwen | Baseline::ZImage);
    if request.models.iter().any(heavy) {
        seconds *= 3.0;
    }
    Duration::from_secs_f64(seconds.max(150.0).floor())
}

/// Pay of one picture, and its size in megapixelsteps.
pub(crate) fn worth(request: &Request, model: &str) -> (f64, f64) {
    let params = &request.params;
    let (pixels, steps) = (pixels(params), number(params, "steps", 30.0));
    let reward = kudos::image(&ImageWork {
        pixels,
        steps,
        n_post: list(params, "post_processing").len(),
        control: params.contains_key("control_type"),
        n_loras: list(params, "loras").len(),
        textual_inversion: !list(params, "tis").is_empty(),
        baseline: Baseline::of(model).pay(params),
    });
    (reward, steps * pixels / 1e6)
}

/// The payload of a job with `n` pictures while `n_left` stay in the queue.
pub(crate) fn payload(request: &Request, n: i64, n_left: u32) -> Map<String, Value> {
    let params = &request.params;
    let mut payload: Map<String, Value> = FORWARDED
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), params.get(*name)?.clone())))
        .collect();
    payload.insert(
        "prompt".to_owned(),
        request.body.get("prompt").cloned().unwrap_or_default(),
    );
    payload.insert(
        "ddim_steps".to_owned(),
        params.get("steps").cloned().unwrap_or(json!(30)),
    );
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
    let defaults = [
        ("loras", "is_version", json!(false)),
        ("loras", "model", json!(1.0)),
        ("loras", "clip", json!(1.0)),
        ("tis", "strength", json!(1.0)),
    ];
    for (field, name, default) in defaults {
        let entries = payload.get_mut(field).and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
            entry.entry(name).or_insert(default.clone());
        }
    }
    let variation = params.get("seed_variation").and_then(Value::as_u64);
    let seed = params
        .get("seed")
        .and_then(Value::as_str)
        .and_then(|text| text.parse::<u64>().ok());
    if let (Some(variation), Some(seed)) = (variation, seed) {
        let varied = seed.wrapping_add(variation.wrapping_mul(u64::from(n_left))) % (1 << 32);
        payload.insert("seed".to_owned(), json!(varied.to_string()));
    }
    payload
}

/// A client's seed as a u32: digits that fit as they are, everything else by its bytes.
pub(crate) fn seed_of(text: &str) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_become_what_the_real_server_makes_of_them() {
        for (text, seed) in [("0", 0), ("17", 17), ("-5", 13_613), (" 7 ", 2_111_264)] {
            assert_eq!(seed_of(text), seed, "`{text}`");
        }
        assert!(seed_of("4294967296") < 1 << 32);
    }

    #[test]
    fn baselines_are_read_from_names() {
        for (name, baseline) in [
            ("Flux.1-Schnell fp8 (Compact)", Baseline::Flux),
            ("Qwen-Image", Baseline::Qwen),
            ("Z-Image-Turbo", Baseline::ZImage),
            ("Stable Cascade 1.0", Baseline::Cascade),
            ("AlbedoBase XL (SDXL)", Baseline::Sdxl),
            ("Deliberate", Baseline::Sd),
        ] {
            assert_eq!(Baseline::of(name), baseline, "{name}");
        }
    }
}
