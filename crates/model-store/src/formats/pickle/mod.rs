//! Reads the pickles of PyTorch checkpoints as data: tensors, plain containers, numbers and texts. Nothing is ever
//! called or imported; a global that is not on the list refuses the file.
//!
//! Opcodes after CPython's `pickletools`; how tensors are written after `torch/_utils.py` (`_rebuild_tensor_v2`) and
//! `torch/serialization.py`. Values live in one arena and refer to each other by index, so a memo that refers to
//! itself a billion times costs nothing, and the graph is walked with every container visited once.

mod machine;
mod torch;

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use self::machine::Machine;
use super::Refusal;
use super::tensors::Dtype;

/// Deepest nesting of containers that is followed.
const MAX_DEPTH: usize = 32;

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
    let (values, root) = Machine::new(input).run()?;
    Ok(Pickle { values, root })
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

    /// Element types of all storages, also of those that none of [`Pickle::tensors`] uses.
    pub(crate) fn storage_dtypes(&self) -> HashMap<Rc<str>, Dtype> {
        let storages = self.values.iter().filter_map(|value| match value {
            Value::Storage { dtype, key, .. } => Some((key.clone(), *dtype)),
            _ => None,
        });
        storages.collect()
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

fn malformed(text: impl Into<String>) -> Refusal {
    Refusal::Malformed(text.into())
}
