//! Turns files of other formats into safetensors, once; the result is pinned by its own sum.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sandbox::Converter;
use super::{Refusal, ncnn, tensors};
use crate::digest::Sha256Sum;
use crate::fetch::Source;
use crate::names::SafePath;

/// How a file is made of others.
#[derive(Clone, Debug, Serialize)]
pub struct Conversion {
    /// The way.
    pub kind: ConversionKind,
    /// What it is made of, in the order the way wants.
    pub inputs: Vec<Input>,
}

/// A file that is only needed for a conversion.
#[derive(Clone, Debug, Serialize)]
pub struct Input {
    /// Name in the directory of inputs.
    pub path: SafePath,
    /// Its sum, where known.
    pub sha256: Option<Sha256Sum>,
    /// Its size in bytes, where known.
    pub size_bytes: Option<u64>,
    /// Where it may come from.
    pub sources: Vec<Source>,
}

/// The known ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConversionKind {
    /// `.param` and `.bin` of an upscaler, in this order → f16 tensors.
    NcnnUpscaler,
    /// A PyTorch checkpoint (`.ckpt`, `.pth`, `.pt`, `.bin`), read in a sandboxed child → its tensors as they are.
    Pickle,
}

/// Largest `.param` that is read into memory.
const MAX_PARAM_BYTES: u64 = 4 << 20;
/// Largest `.bin` that is read into memory.
const MAX_BIN_BYTES: u64 = 512 << 20;

impl ConversionKind {
    /// Makes `output` of `inputs`. `output` is written in place: the caller names a temporary file.
    pub fn run(self, inputs: &[PathBuf], output: &Path, converter: &Converter) -> Result<(), Refusal> {
        match (self, inputs) {
            (ConversionKind::NcnnUpscaler, [param, bin]) => {
                let param = String::from_utf8(read_capped(param, MAX_PARAM_BYTES)?)
                    .map_err(|_| Refusal::Malformed("the .param is not a text".into()))?;
                let bin = read_capped(bin, MAX_BIN_BYTES)?;
                let tensors = ncnn::read_upscaler(&param, &bin, ncnn::Precision::Half)?;
                tensors::write_safetensors(output, &tensors).map_err(Refusal::Io)
            }
            (ConversionKind::Pickle, [checkpoint]) => converter.run(checkpoint, output),
            (kind, inputs) => Err(Refusal::Malformed(format!(
                "{kind:?} is not made of {} files",
                inputs.len()
            ))),
        }
    }
}

fn read_capped(path: &Path, limit: u64) -> Result<Vec<u8>, Refusal> {
    let found = std::fs::metadata(path)?.len();
    if found > limit {
        return Err(Refusal::TooMuch {
            what: "the length of the file",
            found,
            limit,
        });
    }
    Ok(std::fs::read(path)?)
}
