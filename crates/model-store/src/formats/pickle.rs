//! Reads the pickles of PyTorch checkpoints as data: tensors, plain containers, numbers and texts. Nothing is ever
//! called or imported; a global that is not on the list refuses the file.
//!
//! Opcodes after CPython's `pickletools`; how tensors are written after `torch/_utils.py` (`_rebuild_tensor_v2`) and
//! `torch/serialization.py`. Values live in one arena and refer to each other by index, so a memo that refers to
//! itself a billion times costs nothing, and the graph is walked with every container visited once.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::Refusal;
use super::tensors::Dtype;

/// Most values in one pickle; the largest checkpoints have about 100 000.
const MAX_VALUES: usize = 2_000_000;
/// Longest text.
const MAX_TEXT_BYTES: usize = 1 << 20;
/// Deepest nesting of containers that is followed.
const MAX_DEPTH: usize = 32;
/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

/// A tensor as the pickle describes it: a view into a storage that stands elsewhere in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorView {
    pub dtype: Dtype,
    /// Key of the storage.
    pub storage: Rc<str>,
    /// Elements of the whole storage.
    pub storage_elements: u64,
    /// First element.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// Steps in elements, one per dimension.
    pub strides: Vec<u64>,
}

/// Tensors with their dotted names.
pub(crate) type NamedViews = Vec<(String, Rc<TensorView>)>;

type Id = usize;

#[derive(Clone, Debug)]
enum Value {
    None,
    Bool,
    Int(i64),
    Text(Rc<str>),
    /// Numbers and bytes that no tensor needs, and leftovers of training that are not looked into.
    Inert,
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// An object of a scripted module: only its state is of interest.
    Object(Option<Id>),
    Global(Global),
    Storage {
        dtype: Dtype,
        key: Rc<str>,
        elements: u64,
    },
    Tensor(Rc<TensorView>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
    ScriptClass,
    Leftover,
}

/// One pickle read to its end.
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

/// Reads one pickle from the front of `input` and moves `input` behind it.
pub(crate) fn read(input: &mut &[u8]) -> Result<Pickle, Refusal> {
    let mut machine = Machine {
        input,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    let root = machine.run()?;
    Ok(Pickle {
        values: machine.values,
        root,
    })
}

impl Pickle {
    /// All tensors with their dotted names, of the weights proper where the file holds more than one set.
    pub(crate) fn tensors(&self) -> Result<NamedViews, Refusal> {
        let mut found = Vec::new();
        self.walk(
            self.weights(self.root),
            &mut Vec::new(),
            &mut HashSet::new(),
            &mut found,
        )?;
        let mut names = HashSet::new();
        if let Some((name, _)) = found.iter().find(|(name, _)| !names.insert(name.clone())) {
            return Err(malformed(format!("tensor `{name}` stands there twice")));
        }
        Ok(found)
    }

    /// A list of texts, such as the storage keys of the legacy format.
    pub(crate) fn texts(&self) -> Option<Vec<Rc<str>>> {
        let Value::List(items) = &self.values[self.root] else {
            return None;
        };
        items
            .iter()
            .map(|id| {
                if let Value::Text(text) = &self.values[*id] {
                    Some(text.clone())
                } else {
                    None
                }
            })
            .collect()
    }

    /// An integer, such as the legacy format's version.
    pub(crate) fn int(&self) -> Option<i64> {
        match self.values[self.root] {
            Value::Int(int) => Some(int),
            _ => None,
        }
    }

    /// Trainers wrap the weights in a map with one of these keys; averaged weights are the ones that are meant.
    fn weights(&self, root: Id) -> Id {
        for key in ["state_dict", "params_ema", "params", "model"] {
            let inner = self.entry(root, key);
            if let Some(inner) = inner.filter(|id| matches!(self.values[*id], Value::Dict(_))) {
                return inner;
            }
        }
        root
    }

    fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = &self.values[dict] else {
            return None;
        };
        entries
            .iter()
            .find(|(k, _)| matches!(&self.values[*k], Value::Text(text) if &**text == key))
            .map(|(_, value)| *value)
    }

    fn walk(
        &self,
        at: Id,
        path: &mut Vec<String>,
        seen: &mut HashSet<Id>,
        found: &mut NamedViews,
    ) -> Result<(), Refusal> {
        match &self.values[at] {
            Value::Tensor(view) => found.push((path.join("."), view.clone())),
            Value::Dict(entries) if seen.insert(at) => {
                if path.len() >= MAX_DEPTH {
                    return Err(malformed("containers are nested too deeply"));
                }
                for (key, value) in entries {
                    let Value::Text(text) = &self.values[*key] else {
                        continue;
                    };
                    path.push(text.to_string());
                    self.walk(*value, path, seen, found)?;
                    path.pop();
                }
            }
            Value::Object(Some(state)) if seen.insert(at) => self.walk(*state, path, seen, found)?,
            _ => {}
        }
        Ok(())
    }
}

struct Machine<'a, 'b> {
    input: &'a mut &'b [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine<'_, '_> {
    fn run(&mut self) -> Result<Id, Refusal> {
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                0x80 => match self.byte()? {
                    0..=5 => {}
                    version => return Err(malformed(format!("pickle protocol {version}"))),
                },
                0x95 => drop(self.bytes(8)?),
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b']' | 0x8f => self.push(Value::List(Vec::new()))?,
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b'(' => self.marks.push(self.stack.len()),
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool)?,
                0x89 => self.push(Value::Bool)?,
                b'K' => {
                    let value = self.byte()?;
                    self.push(Value::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                0x8a => self.long()?,
                b'G' => {
                    self.bytes(8)?;
                    self.push(Value::Inert)?;
                }
                b'X' | b'T' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.text(length as usize)?;
                }
                0x8c | b'U' => {
                    let length = self.byte()?;
                    self.text(length.into())?;
                }
                0x8d => {
                    let length = u64::from_le_bytes(self.array()?);
                    self.text(usize::try_from(length).unwrap_or(usize::MAX))?;
                }
                b'B' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.bytes(length as usize)?;
                    self.push(Value::Inert)?;
                }
                b'C' => {
                    let length = self.byte()?;
                    self.bytes(length.into())?;
                    self.push(Value::Inert)?;
                }
                b'q' => {
                    let slot = self.byte()?;
                    self.store(slot.into())?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.store(slot)?;
                }
                0x94 => self.store(u32::try_from(self.memo.len()).unwrap_or(u32::MAX))?,
                b'h' => {
                    let slot = self.byte()?;
                    self.load(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.load(slot)?;
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items))?;
                }
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::List(items))?;
                }
                b'd' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Dict(pairs(&items)?))?;
                }
                count @ 0x85..=0x87 => {
                    let from = self
                        .stack
                        .len()
                        .checked_sub(usize::from(count - 0x84))
                        .ok_or_else(underflow)?;
                    let items = self.stack.split_off(from);
                    self.push(Value::Tuple(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' | 0x90 => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set(vec![(key, value)])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set(pairs(&items)?)?;
                }
                b'0' => drop(self.pop()?),
                b'1' => drop(self.pop_to_mark()?),
                b'2' => {
                    let top = *self.stack.last().ok_or_else(underflow)?;
                    self.stack.push(top);
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (self.values[module].clone(), self.values[name].clone()) {
                        (Value::Text(module), Value::Text(name)) => self.global(&module, &name)?,
                        _ => return Err(malformed("a global without a name")),
                    }
                }
                b'Q' => self.persistent()?,
                b'R' | 0x81 => {
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    self.reduce(callable, arguments)?;
                }
                b'b' => {
                    let (state, object) = (self.pop()?, *self.stack.last().ok_or_else(underflow)?);
                    if let Value::Object(inner) = &mut self.values[object] {
                        *inner = Some(state);
                    }
                }
                other => {
                    return Err(malformed(format!(
                        "pickle opcode {other:#04x} is not one that checkpoints need"
                    )));
                }
            }
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Refusal> {
        let global = match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", name) if storage_dtype(name).is_some() => {
                Global::Storage(storage_dtype(name).unwrap_or(Dtype::F32))
            }
            (module, _) if module.starts_with("__torch__") => Global::ScriptClass,
            // What trainers leave beside the weights. Never looked into.
            (module, _) if module.starts_with("pytorch_lightning.") || module.starts_with("lightning.") => {
                Global::Leftover
            }
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar")
            | ("numpy", "dtype")
            | ("_codecs", "encode")
            | ("torch", "device" | "Size") => Global::Leftover,
            _ => {
                let shown: String = format!("{module}.{name}").chars().take(120).collect();
                return Err(malformed(format!(
                    "it wants to use `{}`, which no checkpoint needs",
                    shown.escape_debug()
                )));
            }
        };
        self.push(Value::Global(global))
    }

    fn reduce(&mut self, callable: Id, arguments: Id) -> Result<(), Refusal> {
        let Value::Global(global) = self.values[callable] else {
            return Err(malformed("it calls what is no known name"));
        };
        let Value::Tuple(arguments) = self.values[arguments].clone() else {
            return Err(malformed("a call without arguments"));
        };
        let value = match global {
            Global::OrderedDict => Value::Dict(Vec::new()),
            Global::ScriptClass => Value::Object(None),
            Global::Leftover => Value::Inert,
            Global::RebuildTensor => self.tensor(&arguments)?,
            Global::RebuildParameter => match arguments.first().map(|id| &self.values[*id]) {
                Some(Value::Tensor(view)) => Value::Tensor(view.clone()),
                _ => return Err(malformed("a parameter without a tensor")),
            },
            Global::Storage(_) => return Err(malformed("a storage inside the pickle")),
        };
        self.push(value)
    }

    fn tensor(&self, arguments: &[Id]) -> Result<Value, Refusal> {
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err(malformed("a tensor with too few arguments"));
        };
        let Value::Storage { dtype, key, elements } = &self.values[*storage] else {
            return Err(malformed("a tensor without a storage"));
        };
        let sizes = |id: Id| -> Option<Vec<u64>> {
            let Value::Tuple(items) = &self.values[id] else {
                return None;
            };
            let all = items.iter().map(|id| {
                if let Value::Int(int) = self.values[*id] {
                    u64::try_from(int).ok()
                } else {
                    None
                }
            });
            all.collect()
        };
        let offset = if let Value::Int(int) = self.values[*offset] {
            u64::try_from(int).ok()
        } else {
            None
        };
        let (Some(offset), Some(shape), Some(strides)) = (offset, sizes(*shape), sizes(*strides)) else {
            return Err(malformed("a tensor with impossible sizes"));
        };
        if shape.len() > MAX_DIMENSIONS || shape.len() != strides.len() {
            return Err(malformed("a tensor with impossible dimensions"));
        }
        let count = shape.iter().try_fold(1u64, |product, size| product.checked_mul(*size));
        // Highest element that is touched; a view may be smaller than its storage, never larger.
        let last = shape.iter().zip(&strides).try_fold(offset, |at, (size, stride)| {
            at.checked_add(size.checked_sub(1)?.checked_mul(*stride)?)
        });
        let fits = match (count, last) {
            (Some(0), _) => true,
            (Some(count), Some(last)) => count <= *elements && last < *elements,
            _ => false,
        };
        if !fits {
            return Err(malformed("a tensor larger than its storage"));
        }
        Ok(Value::Tensor(Rc::new(TensorView {
            dtype: *dtype,
            storage: key.clone(),
            storage_elements: *elements,
            offset,
            shape,
            strides,
        })))
    }

    /// `("storage", class, key, place, elements)`.
    fn persistent(&mut self) -> Result<(), Refusal> {
        let id = self.pop()?;
        let Value::Tuple(items) = &self.values[id] else {
            return Err(malformed("a persistent id that is no tuple"));
        };
        let [_, class, key, _, elements, ..] = items.as_slice() else {
            return Err(malformed("a storage with too few parts"));
        };
        let value = match (&self.values[*class], &self.values[*key], &self.values[*elements]) {
            (Value::Global(Global::Storage(dtype)), Value::Text(key), Value::Int(elements)) => Value::Storage {
                dtype: *dtype,
                key: key.clone(),
                elements: u64::try_from(*elements).map_err(|_| malformed("a storage of negative size"))?,
            },
            _ => return Err(malformed("a storage of unknown kind")),
        };
        self.push(value)
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Refusal> {
        let list = *self.stack.last().ok_or_else(underflow)?;
        match &mut self.values[list] {
            Value::List(list) => list.extend(items),
            Value::Inert => {}
            _ => return Err(malformed("it appends to what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, entries: Vec<(Id, Id)>) -> Result<(), Refusal> {
        let dict = *self.stack.last().ok_or_else(underflow)?;
        match &mut self.values[dict] {
            Value::Dict(dict) => dict.extend(entries),
            Value::Inert => {}
            _ => return Err(malformed("it sets an entry of what is no map")),
        }
        Ok(())
    }

    fn long(&mut self) -> Result<(), Refusal> {
        let length = usize::from(self.byte()?);
        let bytes = self.bytes(length)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut full = if negative { [0xff; 8] } else { [0; 8] };
        // Longer ones occur as magic numbers only; nobody computes with them.
        let value = match full.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(full))
            }
            None => Value::Inert,
        };
        self.push(value)
    }

    fn text(&mut self, length: usize) -> Result<(), Refusal> {
        if length > MAX_TEXT_BYTES {
            return Err(Refusal::TooMuch {
                what: "the length of a text",
                found: length as u64,
                limit: MAX_TEXT_BYTES as u64,
            });
        }
        let text: Rc<str> = String::from_utf8_lossy(self.bytes(length)?).into();
        self.push(Value::Text(text))
    }

    fn line(&mut self) -> Result<String, Refusal> {
        let end = self
            .input
            .iter()
            .take(1000)
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| malformed("a name without end"))?;
        let line = String::from_utf8_lossy(self.bytes(end)?).into_owned();
        self.bytes(1)?;
        Ok(line)
    }

    fn store(&mut self, slot: u32) -> Result<(), Refusal> {
        let top = *self.stack.last().ok_or_else(underflow)?;
        if self.memo.len() >= MAX_VALUES {
            return Err(too_many());
        }
        self.memo.insert(slot, top);
        Ok(())
    }

    fn load(&mut self, slot: u32) -> Result<(), Refusal> {
        let id = *self
            .memo
            .get(&slot)
            .ok_or_else(|| malformed("it recalls what it never remembered"))?;
        if self.stack.len() >= MAX_VALUES {
            return Err(too_many());
        }
        self.stack.push(id);
        Ok(())
    }

    fn push(&mut self, value: Value) -> Result<(), Refusal> {
        if self.values.len() >= MAX_VALUES {
            return Err(too_many());
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, Refusal> {
        if self.marks.last().is_some_and(|mark| *mark >= self.stack.len()) {
            return Err(underflow());
        }
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Refusal> {
        let mark = self
            .marks
            .pop()
            .filter(|mark| *mark <= self.stack.len())
            .ok_or_else(underflow)?;
        Ok(self.stack.split_off(mark))
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        self.bytes(1).map(|bytes| bytes[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn bytes(&mut self, count: usize) -> Result<&[u8], Refusal> {
        let (taken, rest) = self
            .input
            .split_at_checked(count)
            .ok_or_else(|| Refusal::Truncated("the pickle is cut off".into()))?;
        *self.input = rest;
        Ok(taken)
    }
}

fn storage_dtype(class: &str) -> Option<Dtype> {
    Some(match class {
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::Bf16,
        "DoubleStorage" => Dtype::F64,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::Bool,
        _ => return None,
    })
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Refusal> {
    let (pairs, []) = items.as_chunks::<2>() else {
        return Err(malformed("a map with a key and no value"));
    };
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
}

fn malformed(text: impl Into<String>) -> Refusal {
    Refusal::Malformed(text.into())
}

fn underflow() -> Refusal {
    malformed("it takes from an empty stack")
}

fn too_many() -> Refusal {
    Refusal::TooMuch {
        what: "the number of values",
        found: MAX_VALUES as u64 + 1,
        limit: MAX_VALUES as u64,
    }
}
