//! Which files the content check needs, and the gate they make.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vision::Device;
use worker_app::Stop;

use crate::checked::Gate;

/// What the checker is read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckerFiles {
    /// CLIP ViT-L/14.
    pub clip: PathBuf,
    /// Where places of its phrases are kept.
    pub cache: PathBuf,
}

const HINT: &str = "it comes with a later version; until then a Horde on this machine can be served with `dreamer.unchecked_on_loopback = true`";

impl CheckerFiles {
    /// Looks below the models directory.
    ///
    /// # Errors
    /// It is not there: then no picture may leave this machine.
    pub fn find(_models_dir: &Path, _cache: &Path) -> Result<Self, Stop> {
        Err(
            Stop::no_model("the content check is not in this build, and no picture leaves this machine unchecked")
                .hint(HINT),
        )
    }
}

/// The gate of an engine.
///
/// # Errors
/// The checker cannot be read, and nobody said that pictures may go unchecked.
pub fn gate(files: Option<&CheckerFiles>, unchecked: bool, _device: &Device) -> Result<Gate, Stop> {
    match (files, unchecked) {
        (None, true) => Ok(Gate::UncheckedOnLoopback),
        _ => Err(Stop::no_model("the content check is not in this build").hint(HINT)),
    }
}
