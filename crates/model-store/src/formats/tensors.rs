//! Tensors in memory and their way into a safetensors file.

use std::borrow::Cow;
use std::io;
use std::path::Path;

use safetensors::tensor::View;

use super::Refusal;

/// Element types that conversions produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// 16-bit integer.
    I16,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 1,
            Dtype::I16 | Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::I32 | Dtype::F32 => 4,
            Dtype::I64 | Dtype::F64 => 8,
        }
    }

    /// Its name in a safetensors head.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "BOOL",
            Dtype::U8 => "U8",
            Dtype::I8 => "I8",
            Dtype::I16 => "I16",
            Dtype::I32 => "I32",
            Dtype::I64 => "I64",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::F32 => "F32",
            Dtype::F64 => "F64",
        }
    }

    fn wire(self) -> safetensors::Dtype {
        match self {
            Dtype::Bool => safetensors::Dtype::BOOL,
            Dtype::U8 => safetensors::Dtype::U8,
            Dtype::I8 => safetensors::Dtype::I8,
            Dtype::I16 => safetensors::Dtype::I16,
            Dtype::I32 => safetensors::Dtype::I32,
            Dtype::I64 => safetensors::Dtype::I64,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F64 => safetensors::Dtype::F64,
        }
    }
}

/// A named tensor: contiguous, row-major, little-endian.
#[derive(Clone, Debug)]
pub struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    /// Checks that `bytes` fill the shape exactly.
    pub fn new(name: String, dtype: Dtype, shape: Vec<u64>, bytes: Vec<u8>) -> Result<Self, Refusal> {
        let size = shape.iter().try_fold(dtype.bytes(), |size, dim| size.checked_mul(*dim));
        let shape: Result<Vec<usize>, _> = shape.into_iter().map(usize::try_from).collect();
        match (size, shape) {
            (Some(size), Ok(shape)) if size == bytes.len() as u64 => Ok(Self {
                name,
                dtype,
                shape,
                bytes,
            }),
            _ => Err(Refusal::Malformed(format!("tensor `{name}` does not fill its shape"))),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl View for &Tensor {
    fn dtype(&self) -> safetensors::Dtype {
        self.dtype.wire()
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes tensors as safetensors. The order in the file depends on names and types only, so equal tensors make equal files.
pub fn write_safetensors(path: &Path, tensors: &[Tensor]) -> io::Result<()> {
    let views = tensors.iter().map(|tensor| (tensor.name.clone(), tensor));
    // The mark that PyTorch's own files carry; some readers refuse files without it.
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(io::Error::other)
}
