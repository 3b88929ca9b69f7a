//! Weights of three ONNX networks as tensors under the names of the original networks.
//!
//! Only what is needed of the format (onnx.proto3 of the ONNX project, IR version 6 and up): the nodes in their order, and
//! the numbers they name. The exports have their batch norms folded into the convolutions.

mod names;

use std::collections::HashMap;

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
    constants: HashMap<String, Numbers>,
}

/// Reads `bytes` and names the tensors of `network` as its authors did, everything as f32.
pub fn read(bytes: &[u8], network: Network) -> Result<Vec<Tensor>, Refusal> {
    let model = Model::decode(bytes).map_err(|error| Refusal::Malformed(format!("not an ONNX file: {error}")))?;
    let graph = model
        .graph
        .ok_or_else(|| Refusal::Malformed("the ONNX file has no graph".into()))?;
    let mut constants: HashMap<String, Numbers> = graph
        .initializers
        .into_iter()
        .map(|numbers| (numbers.name.clone(), numbers))
        .collect();
    for node in &graph.nodes {
        let Some(output) = node.outputs.first() else { continue };
        let value = match node.kind.as_str() {
            "Constant" => node.attributes.first().and_then(|attribute| attribute.tensor.clone()),
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
}
