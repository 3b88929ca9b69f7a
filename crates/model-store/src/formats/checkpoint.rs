//! PyTorch checkpoints (zip and the older stream of pickles) → safetensors, streamed: memory holds the names, never
//! the weights. Runs in the sandbox only, see [`super::sandbox`].

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use super::Refusal;
use super::pickle::{self, NamedViews, TensorView};
use super::safetensors::{MAX_HEAD_BYTES, MAX_TENSORS};
use crate::archive::Archive;

/// Largest pickle inside a checkpoint: names and sizes, no weights.
const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// `10.to_bytes` of PyTorch's legacy magic number, as the long that opens the stream.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Largest view with steps of its own that is put in order in memory.
const MAX_GATHER_BYTES: u64 = 512 << 20;

/// Where a storage's bytes stand in the file.
type Storages = HashMap<Rc<str>, (u64, u64)>;

/// Converts the checkpoint in `input` and writes safetensors to `output`.
pub(crate) fn convert(input: File, output: File) -> Result<(), Refusal> {
    let mut start = [0u8; 4];
    input.read_exact_at(&mut start, 0)?;
    let (tensors, storages) = if start.starts_with(b"PK\x03\x04") {
        read_zip(input.try_clone()?)?
    } else {
        read_legacy(&input)?
    };
    if tensors.is_empty() {
        return Err(Refusal::Malformed("there is no tensor in it".into()));
    }
    write(&input, tensors, &storages, output)
}

fn read_zip(input: File) -> Result<(NamedViews, Storages), Refusal> {
    let archive = Archive::read(input)?;
    let pickle = archive
        .members()
        .iter()
        .find(|member| member.name.ends_with("/data.pkl") || member.name == "data.pkl");
    let pickle = pickle
        .ok_or_else(|| Refusal::Malformed("the archive holds no `data.pkl`".into()))?
        .clone();
    if pickle.size > MAX_PICKLE_BYTES {
        return Err(Refusal::TooMuch {
            what: "the length of the pickle",
            found: pickle.size,
            limit: MAX_PICKLE_BYTES,
        });
    }
    let root = pickle.name.strip_suffix("data.pkl").unwrap_or_default();
    if let Some(order) = archive.find(&format!("{root}byteorder")) {
        let mut text = String::new();
        archive.unpack(&order)?.take(16).read_to_string(&mut text)?;
        if text.trim() != "little" {
            return Err(Refusal::Malformed("its numbers are big-endian".into()));
        }
    }
    let mut bytes = Vec::new();
    archive.unpack(&pickle)?.read_to_end(&mut bytes)?;
    let tensors = pickle::read(&mut bytes.as_slice())?.tensors()?;
    let mut storages = Storages::new();
    for (_, view) in &tensors {
        if !storages.contains_key(&view.storage) {
            let name = format!("{root}data/{}", view.storage);
            let member = archive
                .find(&name)
                .ok_or_else(|| Refusal::Truncated(format!("the archive holds no `{name}`")))?;
            storages.insert(view.storage.clone(), archive.stored_range(&member)?);
        }
    }
    Ok((tensors, storages))
}

/// Magic, protocol, system, object, list of keys: five pickles; then for every key a count and the bytes.
fn read_legacy(input: &File) -> Result<(NamedViews, Storages), Refusal> {
    let length = input.metadata()?.len();
    let mut head = vec![0u8; usize::try_from(length.min(MAX_PICKLE_BYTES)).unwrap_or(0)];
    input.read_exact_at(&mut head, 0)?;
    if head.get(2..14) != Some(&[&[0x8a, 0x0a], LEGACY_MAGIC.as_slice()].concat()) {
        return Err(Refusal::Malformed("it is no PyTorch checkpoint".into()));
    }
    let mut rest = head.as_slice();
    pickle::read(&mut rest)?;
    if pickle::read(&mut rest)?.int() != Some(1001) {
        return Err(Refusal::Malformed("an unknown version of the legacy format".into()));
    }
    pickle::read(&mut rest)?;
    let weights = pickle::read(&mut rest)?;
    let (tensors, dtypes) = (weights.tensors()?, weights.storage_dtypes());
    let keys = pickle::read(&mut rest)?
        .texts()
        .ok_or_else(|| Refusal::Malformed("its storages have no names".into()))?;
    let mut at = (head.len() - rest.len()) as u64;
    let mut storages = Storages::new();
    for key in keys {
        let mut count = [0u8; 8];
        input.read_exact_at(&mut count, at)?;
        let dtype = dtypes
            .get(&key)
            .ok_or_else(|| Refusal::Malformed("a storage that no tensor uses".into()))?;
        let end = u64::from_le_bytes(count)
            .checked_mul(dtype.bytes())
            .and_then(|bytes| bytes.checked_add(at + 8));
        let end = end
            .filter(|end| *end <= length)
            .ok_or_else(|| Refusal::Truncated("a storage ends behind the file".into()))?;
        storages.insert(key, (at + 8, end));
        at = end;
    }
    Ok((tensors, storages))
}

fn write(input: &File, mut tensors: NamedViews, storages: &Storages, output: File) -> Result<(), Refusal> {
    if tensors.len() > MAX_TENSORS {
        return Err(Refusal::TooMuch {
            what: "the number of tensors",
            found: tensors.len() as u64,
            limit: MAX_TENSORS as u64,
        });
    }
    // Widest elements first keeps every tensor aligned; names make the order, and with it the file's sum, definite.
    tensors.sort_by(|a, b| b.1.dtype.bytes().cmp(&a.1.dtype.bytes()).then_with(|| a.0.cmp(&b.0)));
    let room = input.metadata()?.len().saturating_mul(4);
    let mut head = BTreeMap::from([("__metadata__".to_owned(), serde_json::json!({"format": "pt"}))]);
    let mut at = 0u64;
    for (name, view) in &tensors {
        let bytes = view.shape.iter().product::<u64>() * view.dtype.bytes();
        let end = at.checked_add(bytes).filter(|end| *end <= room);
        let end = end.ok_or_else(|| Refusal::Malformed("its tensors are larger than the file".into()))?;
        let entry = serde_json::json!({"dtype": view.dtype.name(), "shape": view.shape, "data_offsets": [at, end]});
        if head.insert(name.clone(), entry).is_some() {
            return Err(Refusal::Malformed(format!("tensor `{name}` stands there twice")));
        }
        at = end;
    }
    let mut head = serde_json::to_vec(&head).map_err(io::Error::other)?;
    head.resize(head.len().next_multiple_of(8), b' ');
    if head.len() as u64 > MAX_HEAD_BYTES {
        return Err(Refusal::TooMuch {
            what: "the length of all names",
            found: head.len() as u64,
            limit: MAX_HEAD_BYTES,
        });
    }
    let mut out = BufWriter::with_capacity(1 << 20, output);
    out.write_all(&(head.len() as u64).to_le_bytes())?;
    out.write_all(&head)?;
    for (name, view) in &tensors {
        let &(start, end) = storages
            .get(&view.storage)
            .ok_or_else(|| Refusal::Truncated(format!("`{name}` has no storage")))?;
        if view.storage_elements.checked_mul(view.dtype.bytes()) != Some(end - start) {
            return Err(Refusal::Truncated(format!(
                "the storage of `{name}` has another size than announced"
            )));
        }
        copy_tensor(input, start, view, &mut out)?;
    }
    out.flush()?;
    Ok(())
}

fn copy_tensor(input: &File, storage_start: u64, view: &TensorView, out: &mut impl Write) -> Result<(), Refusal> {
    let width = view.dtype.bytes();
    let count: u64 = view.shape.iter().product();
    if count == 0 {
        return Ok(());
    }
    let start = storage_start + view.offset * width;
    if is_contiguous(view) {
        let (mut at, end) = (start, start + count * width);
        let mut buffer = vec![0u8; 1 << 20];
        while at < end {
            let step = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            input.read_exact_at(&mut buffer[..step], at)?;
            out.write_all(&buffer[..step])?;
            at += step as u64;
        }
        return Ok(());
    }
    let last: u64 = view
        .shape
        .iter()
        .zip(&view.strides)
        .map(|(size, stride)| (size - 1) * stride)
        .sum();
    let span = (last + 1) * width;
    if span > MAX_GATHER_BYTES {
        return Err(Refusal::TooMuch {
            what: "the size of a transposed tensor",
            found: span,
            limit: MAX_GATHER_BYTES,
        });
    }
    let mut bytes = vec![0u8; usize::try_from(span).unwrap_or(0)];
    input.read_exact_at(&mut bytes, start)?;
    let mut index = vec![0u64; view.shape.len()];
    for _ in 0..count {
        let element: u64 = index.iter().zip(&view.strides).map(|(at, stride)| at * stride).sum();
        let from = usize::try_from(element * width).unwrap_or(usize::MAX);
        out.write_all(&bytes[from..][..usize::try_from(width).unwrap_or(0)])?;
        for (at, size) in index.iter_mut().zip(&view.shape).rev() {
            *at += 1;
            if *at < *size {
                break;
            }
            *at = 0;
        }
    }
    Ok(())
}

fn is_contiguous(view: &TensorView) -> bool {
    let mut expected = 1;
    view.shape.iter().zip(&view.strides).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == expected;
        expected *= size;
        fits
    })
}
