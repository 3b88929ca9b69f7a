//! Tensors of a checkpoint by key: read from a memory-mapped safetensors file when asked for, always as f32.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::error::{Result, VisionError};

/// A checkpoint, or the part of it below a prefix. Cheap to clone.
#[derive(Clone)]
pub struct Weights {
    store: Arc<Store>,
    prefix: String,
    device: Device,
}

enum Store {
    Mapped {
        file: MmapedSafetensors,
        keys: BTreeSet<String>,
    },
    Loaded(BTreeMap<String, Tensor>),
}

/// Longest header that is believed: the networks of this room have at most some thousand tensors of a hundred bytes each.
const MAX_HEADER_BYTES: u64 = 1 << 20;

impl Weights {
    /// Maps a safetensors file. Nothing but the header is read until a tensor is asked for.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        let unreadable = |reason: String| VisionError::Unreadable {
            path: path.display().to_string(),
            reason,
        };
        check_header(path).map_err(unreadable)?;
        // SAFETY: the file belongs to the model store, which replaces files by renaming and never writes into one.
        let file = unsafe { MmapedSafetensors::new(path) }.map_err(|e| unreadable(e.to_string()))?;
        let keys = file.tensors().into_iter().map(|(key, _)| key).collect();
        Ok(Self {
            store: Arc::new(Store::Mapped { file, keys }),
            prefix: String::new(),
            device: device.clone(),
        })
    }

    /// Tensors that are in memory already.
    pub fn from_tensors(tensors: BTreeMap<String, Tensor>, device: &Device) -> Self {
        Self {
            store: Arc::new(Store::Loaded(tensors)),
            prefix: String::new(),
            device: device.clone(),
        }
    }

    /// The part below `prefix` and a dot. An empty prefix is the whole.
    pub fn at(&self, prefix: impl AsRef<str>) -> Self {
        let mut below = self.clone();
        if !prefix.as_ref().is_empty() {
            below.prefix = self.full(prefix.as_ref()) + ".";
        }
        below
    }

    /// The part below the first of `wrappers` that has any key, else the whole: training scripts wrap their networks.
    pub fn unwrapped(&self, wrappers: &[&str]) -> Self {
        wrappers
            .iter()
            .map(|w| self.at(w))
            .find(|w| w.keys().next().is_some())
            .unwrap_or_else(|| self.clone())
    }

    /// Where tensors are put.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Keys below the prefix, without it, in alphabetical order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let all: Box<dyn Iterator<Item = &str>> = match &*self.store {
            Store::Mapped { keys, .. } => Box::new(keys.iter().map(String::as_str)),
            Store::Loaded(tensors) => Box::new(tensors.keys().map(String::as_str)),
        };
        all.filter_map(|key| key.strip_prefix(&self.prefix))
    }

    /// Whether a tensor exists.
    pub fn has(&self, key: &str) -> bool {
        let key = self.full(key);
        match &*self.store {
            Store::Mapped { keys, .. } => keys.contains(&key),
            Store::Loaded(tensors) => tensors.contains_key(&key),
        }
    }

    /// The shape of a tensor, without reading it.
    pub fn shape(&self, key: &str) -> Result<Vec<usize>> {
        let key = self.full(key);
        match &*self.store {
            Store::Mapped { file, .. } => file.get(&key).ok().map(|view| view.shape().to_vec()),
            Store::Loaded(tensors) => tensors.get(&key).map(|t| t.dims().to_vec()),
        }
        .ok_or(VisionError::Missing { key })
    }

    /// The shape of a tensor that must have `N` axes.
    pub fn dims<const N: usize>(&self, key: &str) -> Result<[usize; N]> {
        let shape = self.shape(key)?;
        <[usize; N]>::try_from(shape.as_slice()).map_err(|_| self.misshapen(key, shape, format!("{N} axes are needed")))
    }

    /// A tensor as f32 on the device.
    ///
    /// # Errors
    /// It is missing or empty, or its file has it in another type than floats or with infinities or no numbers in it.
    pub fn get(&self, key: &str) -> Result<Tensor> {
        let full = self.full(key);
        let shape = self.shape(key)?;
        if shape.contains(&0) {
            return Err(self.misshapen(key, shape, "no axis of a weight is empty"));
        }
        let tensor = match &*self.store {
            Store::Mapped { file, .. } => {
                if let Some(what) = wrong_values(&file.get(&full)?) {
                    return Err(VisionError::Values { key: full, what });
                }
                file.load(&full, &self.device)?
            }
            Store::Loaded(tensors) => tensors
                .get(&full)
                .ok_or(VisionError::Missing { key: full })?
                .to_device(&self.device)?,
        };
        Ok(tensor.to_dtype(DType::F32)?)
    }

    /// A tensor as f32 on the device, of exactly this shape.
    pub fn get_shaped(&self, key: &str, expected: &[usize]) -> Result<Tensor> {
        let shape = self.shape(key)?;
        if shape != expected {
            return Err(self.misshapen(key, shape, format!("{expected:?} is needed")));
        }
        self.get(key)
    }

    /// How many consecutive numbers from 0 begin a key below `prefix` (`layers.0.…`, `layers.1.…` gives 2).
    pub fn count(&self, prefix: &str) -> usize {
        let below = self.at(prefix);
        let numbers: BTreeSet<usize> = below
            .keys()
            .filter_map(|key| key.split('.').next()?.parse().ok())
            .collect();
        (0..).take_while(|n| numbers.contains(n)).count()
    }

    /// The error for keys that fit no architecture.
    pub fn unknown(&self, kind: &'static str) -> VisionError {
        let first_key = self.keys().next().unwrap_or("").to_owned();
        VisionError::UnknownArchitecture { kind, first_key }
    }

    pub(crate) fn misshapen(&self, key: &str, shape: Vec<usize>, expected: impl Into<String>) -> VisionError {
        VisionError::Shape {
            key: self.full(key),
            shape,
            expected: expected.into(),
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

/// What a tensor of a file holds that no weight can be.
fn wrong_values(view: &TensorView<'_>) -> Option<String> {
    // All bits of the exponent: an infinity or no number.
    let is_wrong = match view.dtype() {
        Dtype::F32 => any_of(view.data(), |bytes| {
            u32::from_le_bytes(bytes) & 0x7f80_0000 == 0x7f80_0000
        }),
        Dtype::F16 => any_of(view.data(), |bytes| u16::from_le_bytes(bytes) & 0x7c00 == 0x7c00),
        Dtype::BF16 => any_of(view.data(), |bytes| u16::from_le_bytes(bytes) & 0x7f80 == 0x7f80),
        // One beyond f32 becomes an infinity.
        Dtype::F64 => any_of(view.data(), |bytes| !(f64::from_le_bytes(bytes) as f32).is_finite()),
        other => return Some(format!("values of type {other:?}")),
    };
    is_wrong.then(|| "infinities or values that are no numbers".to_owned())
}

/// Whether any value is wrong. Looks at all, so that it goes at the memory's speed.
fn any_of<const N: usize>(data: &[u8], is_wrong: impl Fn([u8; N]) -> bool) -> bool {
    data.as_chunks()
        .0
        .iter()
        .fold(false, |any, bytes| any | is_wrong(*bytes))
}

/// A hostile header costs twenty times its size when parsed, so its length is looked at first.
fn check_header(path: &Path) -> std::result::Result<(), String> {
    use std::io::Read;
    let mut file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    let mut head = [0; 8];
    file.read_exact(&mut head)
        .map_err(|_| "it is shorter than a header".to_owned())?;
    let header = u64::from_le_bytes(head);
    if header > MAX_HEADER_BYTES || header > len.saturating_sub(8) {
        return Err(format!("a header of {header} bytes in a file of {len}"));
    }
    Ok(())
}
