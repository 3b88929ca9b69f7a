//! Image jobs on the wire (`/v2/generate/pop`, `/v2/generate/submit`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ids::GenerationId;
use crate::kind::{HandBack, JobKind, Popped, PoppedJob};
use crate::metadata::{MOST_ENTRIES, Metadata, State};
use crate::notices::{self, WireMessage};
use crate::tolerant::{lenient, lenient_list, nearest, or_default, real, seed, whole, words};

/// Marks the image kind.
pub enum Image {}

/// Body of an image pop. `None` and empty lists are left out: the server refuses `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PopRequest {
    /// Worker name, at most 100 characters.
    pub name: String,
    /// Models it serves; names the reference knows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
    /// `Name:version:contact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge_agent: Option<String>,
    /// Users served first, as `alias#id`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub priority_usernames: Vec<String>,
    /// Take requests flagged nsfw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nsfw: Option<bool>,
    /// 1..=50, for statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Skip users who cannot pay now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require_upfront_kudos: Option<bool>,
    /// 1..=20 images in one batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<u32>,
    /// Only requests that accept slow workers; leases triple.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_slow_worker: Option<bool>,
    /// Most width × height.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
    /// At most 200 words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blacklist: Vec<String>,
    /// Take img2img.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_img2img: Option<bool>,
    /// Take inpainting and outpainting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_painting: Option<bool>,
    /// Take img2img from VPN addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_unsafe_ipaddr: Option<bool>,
    /// Take post-processing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_post_processing: Option<bool>,
    /// Take ControlNet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_controlnet: Option<bool>,
    /// Gates qr_code on SDXL and `transparent` on any baseline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_sdxl_controlnet: Option<bool>,
    /// Newer control types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_extended_controlnet: Option<bool>,
    /// Take LoRAs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_lora: Option<bool>,
    /// Skip requests beyond the model's average steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit_max_steps: Option<bool>,
    /// Newer: which sampler contract is kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler_execution_contract_version: Option<String>,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

words! {
    /// What a source image is for. Meaningless without one.
    SourceProcessing {
        Img2Img = "img2img",
        Inpainting = "inpainting",
        Outpainting = "outpainting",
        Remix = "remix",
    }
}

/// Answer of an image pop.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PopResponse {
    #[serde(deserialize_with = "lenient")]
    id: Option<String>,
    #[serde(deserialize_with = "lenient_list")]
    ids: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    payload: Value,
    #[serde(deserialize_with = "lenient")]
    r2_upload: Option<String>,
    #[serde(deserialize_with = "lenient_list")]
    r2_uploads: Vec<String>,
    #[serde(deserialize_with = "lenient")]
    model: Option<String>,
    #[serde(deserialize_with = "lenient")]
    source_image: Option<String>,
    #[serde(deserialize_with = "lenient")]
    source_processing: Option<SourceProcessing>,
    #[serde(deserialize_with = "lenient")]
    source_mask: Option<String>,
    #[serde(deserialize_with = "lenient_list")]
    extra_source_images: Vec<ExtraSource>,
    #[serde(deserialize_with = "whole")]
    ttl: Option<u64>,
    #[serde(deserialize_with = "lenient_list")]
    messages: Vec<WireMessage>,
    #[serde(deserialize_with = "lenient")]
    skipped: Option<BTreeMap<String, Value>>,
}

/// What an image job asks for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Payload {
    /// The parameters.
    pub params: Params,
    /// Address or base64 of the source; decides alone whether there is one.
    pub source_image: Option<String>,
    /// What the source is for.
    pub source_processing: Option<SourceProcessing>,
    /// Address or base64 of the mask.
    pub source_mask: Option<String>,
    /// Further sources (remix).
    pub extra_source_images: Vec<ExtraSource>,
}

/// A further source image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExtraSource {
    /// Address or base64.
    pub image: String,
    /// Weight, default 1.
    #[serde(deserialize_with = "real")]
    pub strength: Option<f64>,
}

/// `payload` of an image job. Every field is optional on the wire; ranges are those of the server's schema.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Params {
    /// Prompt, negative part after `###`.
    #[serde(deserialize_with = "lenient")]
    pub prompt: Option<String>,
    /// Steps, 1..=500.
    #[serde(deserialize_with = "nearest")]
    pub ddim_steps: Option<u32>,
    /// Images, 1..=20.
    #[serde(deserialize_with = "whole")]
    pub n_iter: Option<u32>,
    /// A u32 in text.
    #[serde(deserialize_with = "seed")]
    pub seed: Option<u64>,
    /// `k_euler_a` and its siblings.
    #[serde(deserialize_with = "lenient")]
    pub sampler_name: Option<String>,
    /// Newer: wins over `karras`.
    #[serde(deserialize_with = "lenient")]
    pub scheduler: Option<String>,
    /// Guidance scale, 0..=100.
    #[serde(deserialize_with = "real")]
    pub cfg_scale: Option<f64>,
    /// Pixels, 64..=3072, a multiple of 64.
    #[serde(deserialize_with = "nearest")]
    pub width: Option<u32>,
    /// Pixels, 64..=3072, a multiple of 64.
    #[serde(deserialize_with = "nearest")]
    pub height: Option<u32>,
    /// img2img strength, 0.01..=1.
    #[serde(deserialize_with = "real")]
    pub denoising_strength: Option<f64>,
    /// Second-pass strength, 0.01..=1.
    #[serde(deserialize_with = "real")]
    pub hires_fix_denoising_strength: Option<f64>,
    /// Karras schedule instead of normal.
    #[serde(deserialize_with = "lenient")]
    pub karras: Option<bool>,
    /// Seamless texture.
    #[serde(deserialize_with = "lenient")]
    pub tiling: Option<bool>,
    /// Two passes.
    #[serde(deserialize_with = "lenient")]
    pub hires_fix: Option<bool>,
    /// LayerDiffuse.
    #[serde(deserialize_with = "lenient")]
    pub transparent: Option<bool>,
    /// The source is a control map.
    #[serde(deserialize_with = "lenient")]
    pub image_is_control: Option<bool>,
    /// Return the map instead of a picture.
    #[serde(deserialize_with = "lenient")]
    pub return_control_map: Option<bool>,
    /// 1..=12, layers from the end.
    #[serde(deserialize_with = "nearest")]
    pub clip_skip: Option<u32>,
    /// ControlNet type.
    #[serde(deserialize_with = "lenient")]
    pub control_type: Option<String>,
    /// Newer: ControlNet strength.
    #[serde(deserialize_with = "real")]
    pub control_strength: Option<f64>,
    /// Post-processors by name.
    #[serde(deserialize_with = "lenient_list")]
    pub post_processing: Vec<String>,
    /// Face fixer strength, 0..=1.
    #[serde(deserialize_with = "real")]
    pub facefixer_strength: Option<f64>,
    /// At most five.
    #[serde(deserialize_with = "lenient_list")]
    pub loras: Vec<Lora>,
    /// At most twenty.
    #[serde(deserialize_with = "lenient_list")]
    pub tis: Vec<TextualInversion>,
    /// `qr_code`.
    #[serde(deserialize_with = "lenient")]
    pub workflow: Option<String>,
    /// Texts of a workflow.
    #[serde(deserialize_with = "lenient_list")]
    pub extra_texts: Vec<ExtraText>,
    /// The requester wants NSFW results replaced.
    #[serde(deserialize_with = "lenient")]
    pub use_nsfw_censor: Option<bool>,
    /// Free form for special users.
    pub special: Option<Value>,
}

/// A LoRA of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lora {
    /// Model id, version id (with `is_version`) or plain name.
    pub name: String,
    /// Strength on the U-Net, -5..=5, default 1.
    #[serde(deserialize_with = "real")]
    pub model: Option<f64>,
    /// Strength on the text encoder, -5..=5, default 1.
    #[serde(deserialize_with = "real")]
    pub clip: Option<f64>,
    /// Trigger word to add: `any`, `all` or a word.
    #[serde(deserialize_with = "lenient")]
    pub inject_trigger: Option<String>,
    /// `name` is a version id.
    #[serde(deserialize_with = "lenient")]
    pub is_version: Option<bool>,
}

/// A textual inversion of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TextualInversion {
    /// Id or name.
    pub name: String,
    /// `prompt` or `negprompt`.
    #[serde(deserialize_with = "lenient")]
    pub inject_ti: Option<String>,
    /// -5..=5, default 1.
    #[serde(deserialize_with = "real")]
    pub strength: Option<f64>,
}

/// A text of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExtraText {
    /// The text.
    pub text: String,
    /// What it is for.
    pub reference: String,
}

/// An image submission that is not a fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// `R2` after the upload, else the picture in base64.
    pub generation: String,
    /// `ok`, `censored` or `csam`; what marks a result censored is the metadata alone.
    pub state: State,
    /// Seed used.
    pub seed: i64,
    /// At most 50 entries; more are cut when the body is built.
    pub gen_metadata: Vec<Metadata>,
}

impl JobKind for Image {
    type PopRequest = PopRequest;
    type PopResponse = PopResponse;
    type Payload = Payload;
    type Submission = Submission;

    const POP_PATH: &'static str = "/v2/generate/pop";
    const SUBMIT_PATH: &'static str = "/v2/generate/submit";
    const DEFAULT_TTL: Duration = Duration::from_secs(150);
    const NAME: &'static str = "image";

    fn split(response: PopResponse) -> Popped<Payload> {
        let ids = notices::ids(response.ids, response.id);
        let uploads = if response.r2_uploads.is_empty() {
            response.r2_upload.into_iter().collect()
        } else {
            response.r2_uploads
        };
        let payload =
            serde_json::from_value(response.payload).map_err(|error| format!("payload: {:?} error", error.classify()));
        let payload = payload.map(|params| Payload {
            params,
            source_image: response.source_image,
            source_processing: response.source_processing,
            source_mask: response.source_mask,
            extra_source_images: response.extra_source_images,
        });
        let job = PoppedJob {
            generations: notices::generations(ids, uploads),
            model: response.model,
            fault_model: None,
            ttl: response.ttl.map(notices::lease),
            payload,
        };
        let jobs = if job.generations.is_empty() {
            Vec::new()
        } else {
            vec![job]
        };
        Popped {
            jobs,
            skipped: notices::counts(response.skipped.unwrap_or_default()),
            messages: notices::messages(response.messages),
        }
    }

    fn submit_body(id: GenerationId, submission: &Submission) -> Value {
        let mut body = json!({ "id": id, "generation": submission.generation, "state": submission.state, "seed": submission.seed });
        if !submission.gen_metadata.is_empty() {
            body["gen_metadata"] = json!(submission.gen_metadata.iter().take(MOST_ENTRIES).collect::<Vec<_>>());
        }
        body
    }

    fn fault_body(id: GenerationId, _: HandBack<'_>) -> Value {
        json!({ "id": id, "generation": "faulted", "state": "faulted", "seed": 0 })
    }
}
