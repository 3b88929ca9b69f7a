//! The plain data between supervisor and engine.

use std::path::PathBuf;

use horde_client::metadata::{Metadata, State};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::order::Order;

/// One job, complete. Nothing of its prompt or sources is ever shown.
#[derive(Clone, Serialize, Deserialize)]
pub struct Work {
    /// By the Horde's name; one of the engine's models.
    pub model: String,
    /// As the encoder reads it, the negative part after `###`.
    pub prompt: String,
    /// What to make.
    pub order: Order,
    /// The source's bytes; the engine decodes them within its limits.
    pub source: Option<ByteBuf>,
    /// The mask's bytes.
    pub mask: Option<ByteBuf>,
    /// At most five, in the job's order.
    pub loras: Vec<LoraFile>,
    /// Textual inversions by the name the prompt has for them.
    pub embeddings: Vec<(String, PathBuf)>,
    /// Post-processors by the Horde's names.
    pub post: Vec<String>,
    /// How much of a repaired face is laid over the old one, 0 to 1.
    pub face_strength: f32,
    /// For whom pictures not safe for work are replaced, if at all.
    pub censors: Option<Censors>,
    /// The owner's word list has a word of the prompt: the pictures are replaced.
    pub has_censored_word: bool,
    /// What is already known about all pictures of the job.
    pub notes: Vec<Metadata>,
}

/// Who wants no pictures that are not safe for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Censors {
    /// Who asked for the pictures.
    Requester,
    /// The owner of this worker, for everybody.
    Owner,
}

/// A LoRA on disk.
#[derive(Clone, Serialize, Deserialize)]
pub struct LoraFile {
    /// As the job names it: on the Horde mostly a number.
    pub name: String,
    /// Its title and the words it was trained on, for the content check alone.
    pub words: Vec<String>,
    /// The safetensors file.
    pub path: PathBuf,
    /// Strength on the U-Net.
    pub model: f64,
    /// Strength on the text encoders.
    pub clip: f64,
}

/// One picture that may be handed in. Made only by [`Checked`](crate::checked::Checked).
#[derive(Clone, Serialize, Deserialize)]
pub struct Output {
    pub(crate) webp: ByteBuf,
    pub(crate) state: State,
    pub(crate) notes: Vec<Metadata>,
    pub(crate) made: Made,
}

/// The effort behind one picture.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Made {
    /// Seed of the job.
    pub seed: u64,
    /// Steps of the sampler.
    pub steps: f64,
    /// Of one picture of the job, as the Horde counts.
    pub megapixel_steps: f64,
    /// Seconds that the whole job has taken so far, divided by its pictures.
    pub seconds: f64,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Work")
            .field("model", &self.model)
            .field("order", &self.order)
            .field("source_bytes", &self.source.as_ref().map(|bytes| bytes.len()))
            .field("loras", &self.loras.len())
            .field("embeddings", &self.embeddings.len())
            .field("post", &self.post.len())
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output")
            .field("bytes", &self.webp.len())
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}
