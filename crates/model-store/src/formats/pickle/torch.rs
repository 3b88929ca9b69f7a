//! What the names in a checkpoint stand for: the few globals that are known, and the tensors they make.

use std::rc::Rc;

use super::machine::Machine;
use super::{Global, Id, TensorView, Value, malformed};
use crate::formats::Refusal;
use crate::formats::tensors::Dtype;

/// Most dimensions of a tensor.
const MAX_DIMENSIONS: usize = 8;

impl Machine<'_, '_> {
    pub(super) fn global(&mut self, module: &str, name: &str) -> Result<(), Refusal> {
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

    pub(super) fn reduce(&mut self, callable: Id, arguments: Id) -> Result<(), Refusal> {
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
    pub(super) fn persistent(&mut self) -> Result<(), Refusal> {
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
