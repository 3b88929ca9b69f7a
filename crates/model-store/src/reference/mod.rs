//! Which models exist: every reference's own shape is read into one [`Catalogue`].

pub mod baseline;
pub mod load;
pub mod local;
pub mod preview;
pub mod record;
pub mod refresh;
pub mod select;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

pub use baseline::Baseline;

use crate::digest::Sha256Sum;
use crate::fetch::Source;
use crate::formats::convert::Conversion;
use crate::names::SafePath;

/// All models that are known, by kind and name.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Catalogue {
    models: BTreeMap<(Kind, String), Model>,
}

/// What a model is for. Decides the folder its files stand in (the layout that reGen's cache has).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Text to image.
    Image,
    /// Language model.
    Text,
    /// Picture and word towers: interrogation, safety.
    Clip,
    /// Captions.
    Blip,
    /// Upscalers.
    Esrgan,
    /// GFPGAN and the detectors it needs.
    Gfpgan,
    /// CodeFormer.
    Codeformer,
    /// ControlNet.
    Controlnet,
    /// What turns a picture into a control map.
    ControlnetAnnotator,
    /// NSFW detection.
    SafetyChecker,
    /// LayerDiffuse and what else has no folder of its own.
    Miscellaneous,
    /// Background removal.
    Background,
    /// Whether a picture is safe for work, for the form of that name.
    Nsfw,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 13] = [
        Kind::Image,
        Kind::Text,
        Kind::Clip,
        Kind::Blip,
        Kind::Esrgan,
        Kind::Gfpgan,
        Kind::Codeformer,
        Kind::Controlnet,
        Kind::ControlnetAnnotator,
        Kind::SafetyChecker,
        Kind::Miscellaneous,
        Kind::Background,
        Kind::Nsfw,
    ];

    /// Folder below the models directory.
    pub fn folder(self) -> &'static str {
        match self {
            Kind::Image => "compvis",
            Kind::Text => "text",
            Kind::Clip => "clip",
            Kind::Blip => "blip",
            Kind::Esrgan => "esrgan",
            Kind::Gfpgan => "gfpgan",
            Kind::Codeformer => "codeformer",
            Kind::Controlnet => "controlnet",
            Kind::ControlnetAnnotator => "controlnet/annotators",
            Kind::SafetyChecker => "safety_checker",
            Kind::Miscellaneous => "miscellaneous",
            Kind::Background => "rembg",
            Kind::Nsfw => "nsfw",
        }
    }
}

/// One model.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// Name as the Horde uses it.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Architecture family, where the reference names one.
    pub baseline: Option<Baseline>,
    /// Files it needs; empty where the reference names none (text models).
    pub files: Vec<ModelFile>,
    /// Size of all files in bytes, where known.
    pub size_bytes: Option<u64>,
    /// Flagged by the reference; not a guarantee.
    pub nsfw: bool,
    /// Takes a mask and five more channels.
    pub inpainting: bool,
    /// Limits the maker asks for.
    pub requirements: Option<Requirements>,
    /// Words that wake its style; never injected by themselves.
    pub triggers: Vec<String>,
    /// Parameter count of text models.
    pub parameters: Option<u64>,
    /// `hires_fix`, `controlnet`, …
    pub features_not_supported: Vec<String>,
    /// One sentence for people.
    pub description: String,
    /// Version as the maker writes it.
    pub version: String,
    /// anime, realistic, generalist, …
    pub style: String,
    /// Licence, where the reference names one.
    pub licence: Option<String>,
    /// Who says that it exists.
    pub origin: Origin,
}

/// Who says that a model exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The Horde's reference.
    Reference,
    /// The owner's `models.toml`.
    Local,
    /// This program: models for demos and forms that the reference does not hold.
    Builtin,
}

/// One file of a model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelFile {
    /// Below the kind's folder.
    pub path: SafePath,
    /// Sum, where the reference has one.
    pub sha256: Option<Sha256Sum>,
    /// Size in bytes, where known.
    pub size_bytes: Option<u64>,
    /// Where it may come from, best first. Empty when it is converted from other files or only stands on disk.
    pub sources: Vec<Source>,
    /// What it is within a split model.
    pub purpose: Purpose,
    /// How it is made of other files, where it is not fetched as it is.
    pub conversion: Option<Conversion>,
    /// A place on the owner's disk, instead of a download.
    pub local_path: Option<PathBuf>,
}

/// Part of a split model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The whole model in one file.
    #[default]
    Whole,
    /// Denoiser.
    Unet,
    /// Picture coder.
    Vae,
    /// Text encoder or encoders.
    TextEncoders,
    /// Settings, not weights.
    Config,
    /// Anything else, as the reference writes it.
    #[serde(untagged)]
    Other(String),
}

impl Purpose {
    /// By the reference's word.
    pub fn parse(text: &str) -> Self {
        match text.trim().to_ascii_lowercase().as_str() {
            "" | "ckpt" | "model" | "checkpoint" => Purpose::Whole,
            "unet" | "diffusion_model" | "transformer" => Purpose::Unet,
            "vae" => Purpose::Vae,
            "text_encoder" | "text_encoders" | "clip" => Purpose::TextEncoders,
            "config" | "yaml" => Purpose::Config,
            other => Purpose::Other(other.to_owned()),
        }
    }
}

/// What a model's maker asks for; 29 of the reference's models have some.
#[derive(Clone, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Requirements {
    /// Layers of the text encoder to leave out.
    pub clip_skip: Option<i64>,
    /// Samplers it works with.
    pub samplers: Vec<String>,
    /// Schedules it works with.
    pub schedulers: Vec<String>,
    /// Fewest steps.
    pub min_steps: Option<i64>,
    /// Most steps.
    pub max_steps: Option<i64>,
    /// Exact guidance scale.
    pub cfg_scale: Option<f64>,
    /// Lowest guidance scale.
    pub min_cfg_scale: Option<f64>,
    /// Highest guidance scale.
    pub max_cfg_scale: Option<f64>,
}

impl Catalogue {
    /// Adds a model; one that is there under the same kind and name is replaced, so the owner's file comes last.
    pub fn insert(&mut self, model: Model) {
        self.models.insert((model.kind, model.name.clone()), model);
    }

    /// Takes over all models of `other`.
    pub fn merge(&mut self, other: Catalogue) {
        self.models.extend(other.models);
    }

    /// All models, by kind and name.
    pub fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
    }

    /// All models of one kind, by name.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = &Model> {
        self.models.values().filter(move |model| model.kind == kind)
    }

    /// One model by kind and name.
    pub fn get(&self, kind: Kind, name: &str) -> Option<&Model> {
        self.models.get(&(kind, name.to_owned()))
    }

    /// One model by name alone, upper and lower case alike.
    pub fn find(&self, name: &str) -> Option<&Model> {
        let exact = self.models.values().find(|model| model.name == name);
        exact.or_else(|| self.models.values().find(|model| model.name.eq_ignore_ascii_case(name)))
    }

    /// Known names that look like `name`, best first, at most three.
    pub fn similar(&self, name: &str) -> Vec<&str> {
        let lower = name.to_lowercase();
        let mut scored: Vec<(f64, &str)> = self
            .models
            .values()
            .map(|model| {
                (
                    strsim::jaro_winkler(&lower, &model.name.to_lowercase()),
                    model.name.as_str(),
                )
            })
            .filter(|(score, _)| *score > 0.8)
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().take(3).map(|(_, name)| name).collect()
    }

    /// Number of models.
    pub fn len(&self) -> usize {
        self.models.len()
    }

    /// True without any model.
    pub fn is_empty(&self) -> bool {
        self.models.is_empty()
    }
}
