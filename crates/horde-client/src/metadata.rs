//! `gen_metadata`: what a submission says about itself. The server takes only words it knows.

use serde::{Deserialize, Serialize};

use crate::tolerant::words;

/// Most entries the server takes; one more consumes the job and pays nothing.
pub const MOST_ENTRIES: usize = 50;
/// Longest `ref`, in characters.
pub const LONGEST_REF: usize = 255;

words! {
    /// What an entry is about.
    MetadataType {
        Lora = "lora",
        Ti = "ti",
        Censorship = "censorship",
        SourceImage = "source_image",
        SourceMask = "source_mask",
        ExtraSourceImages = "extra_source_images",
        BatchIndex = "batch_index",
        Information = "information",
    }
}

words! {
    /// What an entry says.
    MetadataValue {
        DownloadFailed = "download_failed",
        ParseFailed = "parse_failed",
        BaselineMismatch = "baseline_mismatch",
        Csam = "csam",
        Nsfw = "nsfw",
        SeeRef = "see_ref",
    }
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// What it is about.
    #[serde(rename = "type")]
    pub kind: MetadataType,
    /// What it says.
    pub value: MetadataValue,
    /// Name or number it refers to, at most 255 characters.
    #[serde(rename = "ref", default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl Metadata {
    /// An entry; a reference longer than the server takes is cut, and so are control characters: it refuses a NUL.
    pub fn new(kind: MetadataType, value: MetadataValue, reference: Option<&str>) -> Self {
        Self {
            kind,
            value,
            reference: reference.map(|text| text.chars().filter(|c| !c.is_control()).take(LONGEST_REF).collect()),
        }
    }
}

words! {
    /// State of a submission.
    State {
        Ok = "ok",
        Censored = "censored",
        Faulted = "faulted",
        Csam = "csam",
    }
}
