//! Alchemy forms on the wire (`/v2/interrogate/pop`, `/v2/interrogate/submit`). Each form is a job of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ids::GenerationId;
use crate::kind::{HandBack, JobKind, Popped, PoppedJob};
use crate::notices;
use crate::tolerant::{lenient, or_default, words};

/// Marks the alchemy kind.
pub enum Alchemy {}

/// Body of an alchemy pop. One form the server does not know fails the whole pop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PopRequest {
    /// Worker name, at most 100 characters.
    pub name: String,
    /// Forms it serves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub forms: Vec<Form>,
    /// Forms in one pop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub amount: Option<u32>,
    /// 1..=100, for statistics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Largest source, in tiles of 512×512: 1..=256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tiles: Option<u32>,
    /// `Name:version:contact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bridge_agent: Option<String>,
    /// Users served first, as `alias#id`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub priority_usernames: Vec<String>,
    /// Newer: annotators, with the form `annotation`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub annotation_types: Vec<String>,
    /// Keys this version does not know.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

words! {
    /// A form of alchemy, or a post-processor of an image job.
    Form {
        Caption = "caption",
        Interrogation = "interrogation",
        Nsfw = "nsfw",
        Vectorize = "vectorize",
        Palette = "palette",
        Describe = "describe",
        Aesthetic = "aesthetic",
        Annotation = "annotation",
        RealEsrganX4Plus = "RealESRGAN_x4plus",
        RealEsrganX2Plus = "RealESRGAN_x2plus",
        RealEsrganX4PlusAnime6B = "RealESRGAN_x4plus_anime_6B",
        NmkdSiax = "NMKD_Siax",
        AnimeSharp4x = "4x_AnimeSharp",
        Nomos8kSc4x = "4xNomos8kSC",
        LsdirPlus4x = "4xLSDIRplus",
        NomosWebPhotoRealPlksr4x = "4xNomosWebPhoto_RealPLKSR",
        Nomos2RealPlksrDysample4x = "4xNomos2_realplksr_dysample",
        Nomos2HqDat24x = "4xNomos2_hq_dat2",
        ModernSpanimationV12x = "2xModernSpanimationV1",
        Gfpgan = "GFPGAN",
        GfpganV13 = "GFPGANv1.3",
        CodeFormers = "CodeFormers",
        RestoreFormer = "RestoreFormer",
        StripBackground = "strip_background",
    }
}

/// Answer of an alchemy pop.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PopResponse {
    #[serde(deserialize_with = "or_default")]
    forms: Vec<Value>,
    #[serde(deserialize_with = "lenient")]
    skipped: Option<BTreeMap<String, Value>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireForm {
    #[serde(deserialize_with = "lenient")]
    id: Option<String>,
    form: Value,
    #[serde(deserialize_with = "lenient")]
    source_image: Option<String>,
    #[serde(deserialize_with = "lenient")]
    r2_upload: Option<String>,
    payload: Value,
}

/// What one form asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload {
    /// Which form.
    pub form: Form,
    /// Address or base64 of the source; an address may be one that a stranger chose.
    pub source_image: Option<String>,
    /// Options of the form, as received.
    pub options: Value,
}

/// A form's result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// `{FORM: VALUE}`; the value is `R2` after an upload.
    pub result: Value,
}

impl JobKind for Alchemy {
    type PopRequest = PopRequest;
    type PopResponse = PopResponse;
    type Payload = Payload;
    type Submission = Submission;

    const POP_PATH: &'static str = "/v2/interrogate/pop";
    const SUBMIT_PATH: &'static str = "/v2/interrogate/submit";
    const DEFAULT_TTL: Duration = Duration::from_secs(180);
    const NAME: &'static str = "alchemy";

    fn split(response: PopResponse) -> Popped<Payload> {
        let mut jobs: Vec<PoppedJob<Payload>> = Vec::new();
        for value in response.forms {
            let form: WireForm = serde_json::from_value(value).unwrap_or_default();
            let generations =
                notices::generations(notices::ids(Vec::new(), form.id), form.r2_upload.into_iter().collect());
            let known = jobs.iter().any(|job| {
                job.generations
                    .iter()
                    .any(|one| generations.iter().any(|new| new.id == one.id))
            });
            if generations.is_empty() || known {
                continue;
            }
            let payload = match form.form.as_str() {
                Some(name) => Ok(Payload {
                    form: Form::from(name),
                    source_image: form.source_image,
                    options: form.payload,
                }),
                None => Err("the form has no name".to_owned()),
            };
            jobs.push(PoppedJob {
                generations,
                // What it does stands for the model in displays.
                model: form.form.as_str().map(str::to_owned),
                fault_model: None,
                ttl: None,
                payload,
            });
        }
        Popped {
            jobs,
            skipped: notices::counts(response.skipped.unwrap_or_default()),
            messages: Vec::new(),
        }
    }

    fn submit_body(id: GenerationId, submission: &Submission) -> Value {
        json!({ "id": id, "result": submission.result, "state": "ok" })
    }

    fn fault_body(id: GenerationId, _: HandBack<'_>) -> Value {
        json!({ "id": id, "result": {}, "state": "faulted" })
    }
}
