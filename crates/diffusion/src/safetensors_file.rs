//! One memory-mapped safetensors file, its header checked before anything is believed.

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use memmap2::Mmap;

use crate::{
    Error, Result,
    header::{self, Header},
};

/// A mapped file and the places of its tensors.
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    entries: HashMap<String, Entry>,
    metadata: HashMap<String, String>,
}

#[derive(Clone, Debug)]
struct Entry {
    format: Format,
    shape: Vec<usize>,
    start: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Candle(DType),
    /// Eight bits: sign, 4 exponent, 3 mantissa, no infinities.
    F8E4M3,
    /// Eight bits: sign, 5 exponent, 2 mantissa.
    F8E5M2,
}

impl Format {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::Candle(DType::F64),
            "F32" => Self::Candle(DType::F32),
            "F16" => Self::Candle(DType::F16),
            "BF16" => Self::Candle(DType::BF16),
            "I64" => Self::Candle(DType::I64),
            "I32" => Self::Candle(DType::I32),
            "I16" => Self::Candle(DType::I16),
            "U8" => Self::Candle(DType::U8),
            "F8_E4M3" => Self::F8E4M3,
            "F8_E5M2" => Self::F8E5M2,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Self::Candle(dtype) => dtype.size_in_bytes(),
            Self::F8E4M3 | Self::F8E5M2 => 1,
        }
    }
}

impl SafetensorsFile {
    /// Maps a file and checks that every tensor lies within it and is as long as its shape says.
    pub fn open(path: &Path) -> Result<Self> {
        let unreadable = |source| Error::Open {
            path: path.to_owned(),
            source,
        };
        let damaged = |reason: String| Error::Damaged {
            path: path.to_owned(),
            reason,
        };
        let file = File::open(path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        if length < 8 {
            return Err(damaged(format!("{length} bytes are too few")));
        }
        // SAFETY: model files are written under another name and renamed when complete; nothing of ours changes a file
        // in place, and an owner who truncates one under a running worker ends the engine child alone.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        let header_bytes = map[..8].try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
        if header_bytes > header::MAX_BYTES || header_bytes > length - 8 {
            if is_pickle(&map) {
                return Err(Error::Pickle { path: path.to_owned() });
            }
            return Err(damaged(format!(
                "a header of {header_bytes} bytes in a file of {length}"
            )));
        }
        let data_start = 8 + header_bytes as usize;
        let header = Header::parse(&map[8..data_start]).map_err(|error| damaged(format!("its header: {error}")))?;
        let data_bytes = map.len() - data_start;
        let mut entries = HashMap::with_capacity(header.tensors.len());
        let mut promised = 0usize;
        for (name, tensor) in header.tensors {
            let Some(format) = Format::from_name(&tensor.dtype) else {
                continue;
            };
            let [start, end] = tensor.data_offsets;
            let bytes = tensor
                .shape
                .iter()
                .try_fold(format.bytes(), |product, dim| product.checked_mul(*dim));
            let fits = start <= end && end <= data_bytes;
            if !fits || bytes != Some(end - start) {
                return Err(damaged(format!("tensor `{name}` does not lie within the file")));
            }
            // Tensors that share their bytes could ask for a thousand times the file's size of memory.
            promised = promised.saturating_add(end - start);
            if promised > data_bytes {
                return Err(damaged("its tensors lie upon each other".to_owned()));
            }
            let entry = Entry {
                format,
                shape: tensor.shape,
                start,
                end,
            };
            entries.insert(name, entry);
        }
        let metadata = header.metadata;
        Ok(Self {
            path: path.to_owned(),
            map,
            data_start,
            entries,
            metadata,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors, in no order. Tensors of unknown formats are left out.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The free text of its header.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Whether every value of a tensor is a number and none is infinite; whole numbers always are.
    pub fn is_finite(&self, name: &str) -> bool {
        let Some(entry) = self.entries.get(name) else {
            return true;
        };
        let bytes = &self.map[self.data_start + entry.start..self.data_start + entry.end];
        // Sums without branches, which compilers turn into wide instructions. All bits of the exponent set mean no number.
        let halves = |mask: u16| {
            let (pairs, _) = bytes.as_chunks::<2>();
            pairs.iter().fold(0u32, |bad, pair| {
                bad | u32::from(u16::from_le_bytes(*pair) & mask == mask)
            }) == 0
        };
        match entry.format {
            Format::Candle(DType::F32) => {
                let (fours, _) = bytes.as_chunks::<4>();
                const MASK: u32 = 0x7f80_0000;
                fours.iter().fold(0u32, |bad, four| {
                    bad | u32::from(u32::from_le_bytes(*four) & MASK == MASK)
                }) == 0
            }
            Format::Candle(DType::F64) => {
                let (eights, _) = bytes.as_chunks::<8>();
                eights.iter().all(|eight| f64::from_le_bytes(*eight).is_finite())
            }
            Format::Candle(DType::F16) => halves(0x7c00),
            Format::Candle(DType::BF16) => halves(0x7f80),
            Format::Candle(_) => true,
            format => bytes.iter().all(|byte| widen(*byte, format).is_finite()),
        }
    }

    /// A tensor as `dtype` on `device`; eight-bit floats are widened on the way.
    pub fn tensor(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let entry = self
            .entries
            .get(name)
            .ok_or_else(|| Error::Weights(format!("`{name}` is not in `{}`", self.path.display())))?;
        let bytes = &self.map[self.data_start + entry.start..self.data_start + entry.end];
        let tensor = match entry.format {
            Format::Candle(format @ (DType::F16 | DType::BF16)) if dtype == DType::F32 => {
                widened(bytes, format, &entry.shape)?
            }
            Format::Candle(format) => Tensor::from_raw_buffer(bytes, format, &entry.shape, &Device::Cpu)?,
            format => {
                let table: Vec<f32> = (0..=255).map(|byte| widen(byte, format)).collect();
                let values: Vec<f32> = bytes.iter().map(|byte| table[usize::from(*byte)]).collect();
                Tensor::from_vec(values, entry.shape.as_slice(), &Device::Cpu)?
            }
        };
        let tensor = tensor.to_dtype(dtype)?.to_device(device)?;
        self.let_go(entry);
        Ok(tensor)
    }

    /// What was copied need not stay in this process's memory; the system keeps it for a next reading.
    fn let_go(&self, entry: &Entry) {
        #[cfg(unix)]
        // SAFETY: the mapping is of a file and read-only, so pages that are dropped come back as they were. A refusal
        // only leaves them where they are.
        let _ = unsafe {
            self.map.unchecked_advise_range(
                memmap2::UncheckedAdvice::DontNeed,
                self.data_start + entry.start,
                entry.end - entry.start,
            )
        };
        #[cfg(not(unix))]
        let _ = entry;
    }
}

/// A zip archive as `torch.save` writes it, or the pickle that older versions wrote.
fn is_pickle(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 2..=5, ..])
}

/// Half-precision values as f32, a piece at a time: a whole copy beside the result would stay in the process as a hole of its
/// size.
fn widened(bytes: &[u8], format: DType, shape: &[usize]) -> Result<Tensor> {
    const PIECE: usize = 2 << 20;
    let mut values: Vec<f32> = Vec::with_capacity(bytes.len() / 2);
    for piece in bytes.chunks(PIECE) {
        let piece = Tensor::from_raw_buffer(piece, format, &[piece.len() / 2], &Device::Cpu)?;
        values.extend(piece.to_dtype(DType::F32)?.to_vec1::<f32>()?);
    }
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

fn widen(byte: u8, format: Format) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (mantissa_bits, bias) = if format == Format::F8E4M3 { (3, 7) } else { (2, 15) };
    let magnitude = byte & 0x7f;
    if format == Format::F8E4M3 && magnitude == 0x7f {
        return f32::NAN;
    }
    if format == Format::F8E5M2 && magnitude >= 0x7c {
        return if magnitude == 0x7c {
            sign * f32::INFINITY
        } else {
            f32::NAN
        };
    }
    let exponent = i32::from(magnitude >> mantissa_bits);
    let fraction = f32::from(magnitude & ((1 << mantissa_bits) - 1)) / f32::from(1u8 << mantissa_bits);
    let value = if exponent == 0 {
        fraction * 2f32.powi(1 - bias)
    } else {
        (1.0 + fraction) * 2f32.powi(exponent - bias)
    };
    sign * value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(bytes: &[u8]) -> Result<SafetensorsFile> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("x.safetensors");
        std::fs::write(&path, bytes).expect("a temporary file");
        SafetensorsFile::open(&path)
    }

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    }

    #[test]
    fn eight_bit_floats_are_widened() {
        let header = r#"{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]},
            "b":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[4,6]}}"#;
        let file = open(&file(header, &[0x38, 0xc0, 0x01, 0x7e, 0x3c, 0x01])).expect("a good file");
        let values = |name| {
            let tensor = file.tensor(name, DType::F32, &Device::Cpu).expect("a tensor");
            tensor.to_vec1::<f32>().expect("values")
        };
        assert_eq!(values("a"), [1.0, -2.0, 2f32.powi(-9), 448.0]);
        assert_eq!(values("b"), [1.0, 2f32.powi(-16)]);
    }

    #[test]
    fn truncated_and_lying_files_are_refused() {
        let header = r#"{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
        assert!(open(&file(header, &[0; 16])).is_ok());
        assert!(open(&file(header, &[0; 15])).is_err());
        assert!(open(&[0; 4]).is_err());
        assert!(open(&u64::MAX.to_le_bytes()).is_err());
        let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}}"#;
        assert!(open(&file(huge, &[0; 16])).is_err());
        assert!(open(&file("{", &[])).is_err());
    }

    #[test]
    fn tensors_upon_each_other_are_refused() {
        let entry = |name: &str| format!(r#""{name}":{{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#);
        let header = format!("{{{},{}}}", entry("a"), entry("b"));
        let error = open(&file(&header, &[0; 16])).err().expect("an error").to_string();
        assert!(error.contains("upon each other"), "{error}");
    }

    #[test]
    fn every_cut_of_a_file_is_refused_or_whole() {
        let header = r#"{"a":{"dtype":"F16","shape":[3],"data_offsets":[0,6]}}"#;
        let whole = file(header, &[0; 6]);
        for length in 0..whole.len() {
            assert!(open(&whole[..length]).is_err(), "{length} bytes");
        }
    }
}
