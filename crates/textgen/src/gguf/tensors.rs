//! The list of tensors, each of which must lie inside the file.

use std::collections::HashSet;
use std::io::Read;

use super::GgufError;
use super::reader::Reader;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, at most 63 bytes.
    pub name: String,
    /// Sizes, the fastest-moving first; 1 to 4 of them.
    pub shape: Vec<u64>,
    /// ggml's number of its type.
    pub kind: u32,
    /// First byte, counted from the start of the tensor data.
    pub offset: u64,
    /// Bytes it takes.
    pub bytes: u64,
}

/// ggml's types: number, numbers per block, bytes per block (ggml-common.h of the llama.cpp that is linked).
const TYPES: &[(u32, u64, u64)] = &[
    (0, 1, 4),      // F32
    (1, 1, 2),      // F16
    (2, 32, 18),    // Q4_0
    (3, 32, 20),    // Q4_1
    (6, 32, 22),    // Q5_0
    (7, 32, 24),    // Q5_1
    (8, 32, 34),    // Q8_0
    (9, 32, 36),    // Q8_1
    (10, 256, 84),  // Q2_K
    (11, 256, 110), // Q3_K
    (12, 256, 144), // Q4_K
    (13, 256, 176), // Q5_K
    (14, 256, 210), // Q6_K
    (15, 256, 292), // Q8_K
    (16, 256, 66),  // IQ2_XXS
    (17, 256, 74),  // IQ2_XS
    (18, 256, 98),  // IQ3_XXS
    (19, 256, 50),  // IQ1_S
    (20, 32, 18),   // IQ4_NL
    (21, 256, 110), // IQ3_S
    (22, 256, 82),  // IQ2_S
    (23, 256, 136), // IQ4_XS
    (24, 1, 1),     // I8
    (25, 1, 2),     // I16
    (26, 1, 4),     // I32
    (27, 1, 8),     // I64
    (28, 1, 8),     // F64
    (29, 256, 56),  // IQ1_M
    (30, 1, 2),     // BF16
    (34, 256, 54),  // TQ1_0
    (35, 256, 66),  // TQ2_0
    (39, 32, 17),   // MXFP4
    (40, 64, 36),   // NVFP4
    (41, 128, 18),  // Q1_0
    (42, 64, 18),   // Q2_0
];

pub(super) fn read<R: Read>(reader: &mut Reader<R>, count: u64, alignment: u64) -> Result<Vec<Tensor>, GgufError> {
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let tensor = one(reader, alignment)?;
        if !names.insert(tensor.name.clone()) {
            return Err(GgufError::Invalid(format!("tensor `{}` stands twice", tensor.name)));
        }
        tensors.push(tensor);
    }
    let data_start = reader.position().next_multiple_of(alignment);
    let data_bytes = reader.file_bytes().saturating_sub(data_start);
    for tensor in &tensors {
        let end = tensor.offset.checked_add(tensor.bytes);
        if end.is_none_or(|end| end > data_bytes) {
            return Err(GgufError::Invalid(format!(
                "tensor `{}` lies outside the file: the file is incomplete",
                tensor.name
            )));
        }
    }
    Ok(tensors)
}

fn one<R: Read>(reader: &mut Reader<R>, alignment: u64) -> Result<Tensor, GgufError> {
    let name = reader.text("the name of a tensor", 63)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(GgufError::Invalid(
            "a tensor has no name or control characters in it".into(),
        ));
    }
    let invalid = |message: &str| GgufError::Invalid(format!("tensor `{name}` {message}"));
    let n_dims = reader.u32("the shape of a tensor")?;
    if !(1..=4).contains(&n_dims) {
        return Err(invalid("has not 1 to 4 dimensions"));
    }
    let mut shape = Vec::with_capacity(4);
    for _ in 0..n_dims {
        shape.push(reader.u64("the shape of a tensor")?);
    }
    // Signed 64-bit is what ggml computes in.
    let numbers = shape
        .iter()
        .try_fold(1i64, |product, size| product.checked_mul(i64::try_from(*size).ok()?))
        .filter(|product| *product > 0)
        .ok_or_else(|| invalid("has an impossible shape"))? as u64;
    let kind = reader.u32("the type of a tensor")?;
    let (_, block, block_bytes) = TYPES
        .iter()
        .find(|(number, _, _)| *number == kind)
        .ok_or_else(|| invalid("has an unknown type"))?;
    if shape[0] % block != 0 {
        return Err(invalid("has rows that are no whole blocks of its type"));
    }
    let bytes = (numbers / block)
        .checked_mul(*block_bytes)
        .ok_or_else(|| invalid("has an impossible size"))?;
    let offset = reader.u64("the place of a tensor")?;
    if offset % alignment != 0 {
        return Err(invalid("is not aligned"));
    }
    Ok(Tensor {
        name,
        shape,
        kind,
        offset,
        bytes,
    })
}
