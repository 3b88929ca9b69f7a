//! Weights of three ONNX networks as tensors under the names of the original networks.
//!
//! Only what is needed of the format (onnx.proto3 of the ONNX project, IR version 6 and up): the nodes in their order, and
//! the numbers they name. The exports have their batch norms folded into the convolutions.

mod names;

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use prost::Message;

use super::Refusal;
use super::tensors::{Dtype, Tensor};

/// Which network an ONNX file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// U²-Net p: 112 convolutions in the order of its stages.
    U2netP,
    /// Yahoo's open_nsfw.
    OpenNsfw,
    /// RetinaFace on MobileNet 0.25.
    RetinaFace,
}

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializers: Vec<Numbers>,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    outputs: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    kind: String,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(message, optional, tag = "5")]
    tensor: Option<Numbers>,
}

/// A `TensorProto`.
#[derive(Clone, PartialEq, Message)]
struct Numbers {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(float, repeated, tag = "4")]
    floats: Vec<f32>,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw: Vec<u8>,
}

/// `TensorProto.DataType.FLOAT`.
const FLOAT: i32 = 1;

/// A graph with its constants by name.
struct Read {
    nodes: Vec<Node>,
    constants: HashMap<String, Rc<Numbers>>,
    /// Bytes that tensors may still take: together no more than the file, however often it names the same numbers.
    left: Cell<usize>,
}

/// Reads `bytes` and names the tensors of `network` as its authors did, everything as f32.
pub fn read(bytes: &[u8], network: Network) -> Result<Vec<Tensor>, Refusal> {
    let model = Model::decode(bytes).map_err(|error| Refusal::Malformed(format!("not an ONNX file: {error}")))?;
    let graph = model
        .graph
        .ok_or_else(|| Refusal::Malformed("the ONNX file has no graph".into()))?;
    let mut constants: HashMap<String, Rc<Numbers>> = graph
        .initializers
        .into_iter()
        .map(|numbers| (numbers.name.clone(), Rc::new(numbers)))
        .collect();
    for node in &graph.nodes {
        let Some(output) = node.outputs.first() else { continue };
        let value = match node.kind.as_str() {
            "Constant" => {
                let tensor = node.attributes.first().and_then(|attribute| attribute.tensor.clone());
                tensor.map(Rc::new)
            }
            "Identity" => node.inputs.first().and_then(|input| constants.get(input).cloned()),
            _ => None,
        };
        if let Some(value) = value {
            constants.insert(output.clone(), value);
        }
    }
    let read = Read {
        nodes: graph.nodes,
        constants,
        left: Cell::new(bytes.len()),
    };
    let mut tensors = match network {
        Network::U2netP => names::u2netp(&read)?,
        Network::OpenNsfw => names::open_nsfw(&read)?,
        Network::RetinaFace => names::retinaface(&read)?,
    };
    tensors.sort_by(|a, b| a.name().cmp(b.name()));
    Ok(tensors)
}

impl Read {
    /// Nodes of one kind, in the order of the graph.
    fn of_kind(&self, kind: &str) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| node.kind == kind)
    }

    /// Weight and bias of a convolution.
    fn convolution(&self, node: &Node, name: &str) -> Result<[Tensor; 2], Refusal> {
        let [_, weight, bias] = &node.inputs[..] else {
            return Err(Refusal::Malformed(format!("`{name}` has not three inputs")));
        };
        Ok([
            self.tensor(weight, format!("{name}.weight"))?,
            self.tensor(bias, format!("{name}.bias"))?,
        ])
    }

    /// The constant `of`, under a new name.
    fn tensor(&self, of: &str, name: String) -> Result<Tensor, Refusal> {
        let (shape, bytes) = self.numbers(of)?;
        Tensor::new(name, Dtype::F32, shape, bytes)
    }

    /// Shape and little-endian f32 of a constant.
    fn numbers(&self, of: &str) -> Result<(Vec<u64>, Vec<u8>), Refusal> {
        let found = self.constants.get(of);
        let numbers = found.ok_or_else(|| Refusal::Malformed(format!("there are no numbers `{of}`")))?;
        if numbers.data_type != FLOAT {
            return Err(Refusal::Malformed(format!(
                "`{of}` has numbers of type {}, {FLOAT} is needed",
                numbers.data_type
            )));
        }
        let shape: Result<Vec<u64>, _> = numbers.dims.iter().map(|dim| u64::try_from(*dim)).collect();
        let shape = shape.map_err(|_| Refusal::Malformed(format!("`{of}` has a negative axis")))?;
        let len = numbers.raw.len().max(4 * numbers.floats.len());
        let left = self.left.get().checked_sub(len).ok_or_else(|| {
            Refusal::Malformed(format!("its tensors are larger than the file; `{of}` is one too many"))
        })?;
        self.left.set(left);
        let bytes = if numbers.raw.is_empty() {
            numbers.floats.iter().flat_map(|value| value.to_le_bytes()).collect()
        } else {
            numbers.raw.clone()
        };
        Ok((shape, bytes))
    }
}

/// The bytes of the first literal `b'…'` of a Python source, which is how one package carries its network.
pub fn python_bytes(source: &[u8]) -> Result<Vec<u8>, Refusal> {
    let malformed = || Refusal::Malformed("it holds no bytes literal of Python".into());
    let start = source
        .windows(2)
        .position(|pair| matches!(pair, [b'b', b'\'' | b'"']))
        .ok_or_else(malformed)?;
    let quote = source[start + 1];
    let mut rest = source[start + 2..].iter().copied();
    let mut bytes = Vec::with_capacity(rest.len() / 3);
    loop {
        match rest.next().ok_or_else(malformed)? {
            byte if byte == quote => return Ok(bytes),
            b'\\' => bytes.push(match rest.next().ok_or_else(malformed)? {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                same @ (b'\\' | b'\'' | b'"') => same,
                b'x' => {
                    let digits = [rest.next(), rest.next()].map(|digit| digit.and_then(|d| (d as char).to_digit(16)));
                    let [Some(high), Some(low)] = digits else {
                        return Err(malformed());
                    };
                    (high * 16 + low) as u8
                }
                _ => return Err(malformed()),
            }),
            byte => bytes.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bytes_literal_is_read_with_its_escapes() {
        let source = br#"W = b'a\x00\xfF\n\\\'"' # rest"#;
        assert_eq!(python_bytes(source).unwrap(), b"a\x00\xff\n\\'\"");
        for bad in [&b"W = 3"[..], b"b'open", b"b'\\q'", b"b'\\x0'", b"b'\\"] {
            assert!(python_bytes(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn constants_are_found_behind_identities_and_what_does_not_fit_is_refused() {
        let weight = Numbers {
            dims: vec![1, 1, 1, 1],
            data_type: FLOAT,
            raw: 2.5f32.to_le_bytes().to_vec(),
            name: "w".into(),
            ..Numbers::default()
        };
        let bias = Numbers {
            dims: vec![1],
            data_type: FLOAT,
            floats: vec![0.5],
            ..Numbers::default()
        };
        let node = |kind: &str, inputs: &[&str], output: &str| Node {
            inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
            outputs: vec![output.to_owned()],
            kind: kind.into(),
            ..Node::default()
        };
        let model = Model {
            graph: Some(Graph {
                nodes: vec![
                    Node {
                        attributes: vec![Attribute { tensor: Some(bias) }],
                        ..node("Constant", &[], "b")
                    },
                    node("Identity", &["b"], "b2"),
                    node("Conv", &["x", "w", "b2"], "bn_1/out:0"),
                ],
                initializers: vec![weight],
            }),
        };
        let bytes = model.encode_to_vec();
        // One convolution is far from the networks that are known: each says so instead of giving wrong names.
        for network in [Network::U2netP, Network::OpenNsfw, Network::RetinaFace] {
            assert!(
                matches!(read(&bytes, network), Err(Refusal::Malformed(_))),
                "{network:?}"
            );
        }
        for cut in 1..bytes.len() {
            assert!(read(&bytes[..cut], Network::U2netP).is_err());
        }
    }

    /// U²-Net p's, those of the sides included.
    const CONVOLUTIONS: usize = 119;

    /// As many convolutions as U²-Net p has; `weight` says whose numbers each takes.
    fn u2netp_like(weight: impl Fn(usize) -> String, numbers: usize) -> Vec<u8> {
        let values = |name: String, n: usize| Numbers {
            dims: vec![n as i64, 1, 1, 1],
            data_type: FLOAT,
            raw: 0.5f32.to_le_bytes().repeat(n),
            name,
            ..Numbers::default()
        };
        let initializers =
            (0..CONVOLUTIONS).flat_map(|n| [values(format!("w{n}"), numbers), values(format!("b{n}"), 1)]);
        let nodes = (0..CONVOLUTIONS).map(|n| Node {
            inputs: vec!["x".into(), weight(n), format!("b{n}")],
            outputs: vec![format!("y{n}")],
            kind: "Conv".into(),
            ..Node::default()
        });
        let graph = Graph {
            nodes: nodes.collect(),
            initializers: initializers.collect(),
        };
        Model { graph: Some(graph) }.encode_to_vec()
    }

    #[test]
    fn a_file_torn_anywhere_is_refused() {
        let whole = u2netp_like(|n| format!("w{n}"), 9);
        assert_eq!(read(&whole, Network::U2netP).unwrap().len(), 2 * CONVOLUTIONS);
        for part in 0..50 {
            assert!(
                read(&whole[..whole.len() * part / 50], Network::U2netP).is_err(),
                "{part}"
            );
        }
        assert!(read(&whole[..whole.len() - 1], Network::U2netP).is_err());
    }

    #[test]
    fn one_tensor_named_again_and_again_takes_no_more_than_the_file() {
        // What is shared and small is within it.
        let shared = read(&u2netp_like(|_| "w0".into(), 2), Network::U2netP).unwrap();
        assert_eq!(shared.len(), 2 * CONVOLUTIONS);
        // A hundred megabytes of a file of one.
        let values = Numbers {
            dims: vec![1 << 18],
            data_type: FLOAT,
            raw: vec![0; 1 << 20],
            name: "w".into(),
            ..Numbers::default()
        };
        let Model { graph } = Model::decode(&u2netp_like(|_| "w".into(), 1)[..]).unwrap();
        let mut graph = graph.unwrap();
        graph.initializers.push(values);
        let bytes = Model { graph: Some(graph) }.encode_to_vec();
        let refusal = read(&bytes, Network::U2netP).map(drop).unwrap_err();
        assert!(refusal.to_string().contains("larger than the file"), "{refusal}");
    }
}
