//! The section `[dreamer]` of the configuration.

use serde::{Deserialize, Serialize};
use worker_app::{Common, Stop};

use crate::room::Offer;

/// What the owner decides about pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Models to serve, by the names of the Horde's reference or of `models.toml`, or by words: `ALL SDXL`, `TOP 5`.
    pub models: Vec<String>,
    /// Models left out of what the words say.
    pub skip: Vec<String>,
    /// Largest picture, as reGen counts it: this times 8 × 64 × 64 pixels. 8 is 512 × 512, 32 is 1024 × 1024.
    pub max_power: u32,
    /// Most pictures in one job, 1 to 20.
    pub max_batch: u32,
    /// Models kept in memory at once, 1 to 8.
    pub models_in_memory: usize,
    /// Most memory to take on each device, in MB, the content check included; 0 for all that is free.
    pub memory_mb: u64,
    /// Take jobs that start from a picture.
    pub allow_img2img: bool,
    /// Take inpainting and outpainting.
    pub allow_painting: bool,
    /// Take pictures from requesters behind VPNs.
    pub allow_unsafe_ipaddr: bool,
    /// Fetch the LoRAs that jobs name.
    pub allow_lora: bool,
    /// Upscale, repair faces and cut out where jobs ask for it.
    pub allow_post_processing: bool,
    /// Gigabytes of LoRAs and textual inversions kept on disk.
    pub lora_cache_gb: u32,
    /// A file with a CivitAI key; some LoRAs want one. Empty for none.
    pub civitai_key_file: String,
    /// CivitAI's API or a mirror of it.
    pub civitai_url: String,
    /// The Horde's converter of textual inversions or a mirror of it.
    pub embeddings_url: String,
    /// Serve only who can pay at once.
    pub require_upfront_kudos: bool,
    /// Take only requests that accept slow workers.
    pub extra_slow_worker: bool,
    /// Skip requests with more steps than is usual for their model.
    pub limit_max_steps: bool,
    /// Words that no prompt may hold; the Horde withholds such requests.
    pub blacklist: Vec<String>,
    /// Words whose pictures are replaced, as a picture not safe for work is for who asked for that.
    pub censorlist: Vec<String>,
    /// Hand very fast pictures in late enough that the Horde does not take them for faked.
    pub hold_back: bool,
    /// Keep the content check off the card.
    pub check_on_cpu: bool,
    /// Run without the content check. Taken only for a Horde on this machine.
    pub unchecked_on_loopback: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            skip: Vec::new(),
            max_power: 8,
            max_batch: 1,
            models_in_memory: 1,
            memory_mb: 0,
            allow_img2img: true,
            allow_painting: true,
            allow_unsafe_ipaddr: true,
            allow_lora: false,
            allow_post_processing: false,
            lora_cache_gb: 10,
            civitai_key_file: String::new(),
            civitai_url: "https://civitai.com/api/v1/".into(),
            embeddings_url: "https://hordeling.aihorde.net/api/v1/".into(),
            require_upfront_kudos: false,
            extra_slow_worker: false,
            limit_max_steps: false,
            blacklist: Vec::new(),
            censorlist: Vec::new(),
            hold_back: true,
            check_on_cpu: false,
            unchecked_on_loopback: false,
        }
    }
}

impl Config {
    /// Largest picture in pixels.
    pub fn max_pixels(&self) -> u64 {
        u64::from(self.max_power) * 8 * 64 * 64
    }

    /// What the owner offers, memory apart.
    pub fn ceiling(&self) -> Offer {
        Offer {
            pixels: self.max_pixels(),
            batch: self.max_batch,
        }
    }

    /// Refuses values out of range, naming their key.
    pub fn check(&self, common: &Common) -> Result<(), Stop> {
        let refuse = |key: &str, value: String, hint: &str| {
            Err(Stop::config(format!("`dreamer.{key}` is `{value}`")).hint(hint.to_owned()))
        };
        if !(1..=288).contains(&self.max_power) {
            let hint = "use 1 to 288: 8 is 512x512 pixels, 18 is 768x768, 32 is 1024x1024, 288 is 3072x3072";
            return refuse("max_power", self.max_power.to_string(), hint);
        }
        if !(1..=20).contains(&self.max_batch) {
            return refuse("max_batch", self.max_batch.to_string(), "use 1 to 20");
        }
        if !(1..=8).contains(&self.models_in_memory) {
            return refuse("models_in_memory", self.models_in_memory.to_string(), "use 1 to 8");
        }
        if self.memory_mb != 0 && !(256..=1 << 24).contains(&self.memory_mb) {
            return refuse(
                "memory_mb",
                self.memory_mb.to_string(),
                "use 256 to 16777216, or 0 for all that is free",
            );
        }
        if !(1..=10_000).contains(&self.lora_cache_gb) {
            return refuse("lora_cache_gb", self.lora_cache_gb.to_string(), "use 1 to 10000");
        }
        for (key, words) in [("blacklist", &self.blacklist), ("censorlist", &self.censorlist)] {
            if words.len() > 200 {
                return refuse(key, format!("{} words", words.len()), "the Horde takes 200 words");
            }
            if let Some(bad) = words.iter().find(|word| word.trim().is_empty()) {
                return refuse(key, bad.clone(), "an empty word is in every prompt; remove it");
            }
        }
        if let Some(long) = self.blacklist.iter().find(|word| word.chars().count() > 15) {
            let hint = "the Horde cuts words at 15 characters; shorten it";
            return refuse("blacklist", long.clone(), hint);
        }
        for (key, text) in [
            ("civitai_url", &self.civitai_url),
            ("embeddings_url", &self.embeddings_url),
        ] {
            if url::Url::parse(text).is_err_and(|_| true) || !text.starts_with("http") {
                return refuse(key, text.clone(), "use an address such as https://example.org/api/v1/");
            }
        }
        if self.unchecked_on_loopback && !common.is_on_loopback() {
            return refuse(
                "unchecked_on_loopback",
                "true".into(),
                "pictures for other people are always checked; this is for a Horde on this machine only",
            );
        }
        Ok(())
    }
}
