//! The stack machine: opcodes, memo and stack, with every count bounded.

use std::collections::HashMap;
use std::rc::Rc;

use super::{Id, Value, malformed};
use crate::formats::Refusal;

/// Most values in one pickle; the largest checkpoints have about 100 000.
const MAX_VALUES: usize = 2_000_000;
/// Longest text.
const MAX_TEXT_BYTES: usize = 1 << 20;

pub(super) struct Machine<'a, 'b> {
    input: &'a mut &'b [u8],
    pub(super) values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a, 'b> Machine<'a, 'b> {
    pub(super) fn new(input: &'a mut &'b [u8]) -> Self {
        Self {
            input,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// Runs to the end: all values, and which of them is the result.
    pub(super) fn run(mut self) -> Result<(Vec<Value>, Id), Refusal> {
        loop {
            match self.byte()? {
                b'.' => return self.pop().map(|root| (self.values, root)),
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

    pub(super) fn push(&mut self, value: Value) -> Result<(), Refusal> {
        if self.values.len() >= MAX_VALUES {
            return Err(too_many());
        }
        self.stack.push(self.values.len());
        self.values.push(value);
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Result<Id, Refusal> {
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

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Refusal> {
    let (pairs, []) = items.as_chunks::<2>() else {
        return Err(malformed("a map with a key and no value"));
    };
    Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
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
