//! How the convolutions of an export are called in the network it was made of.

use super::{Read, Refusal};
use crate::formats::tensors::{Dtype, Tensor};

/// Weight and bias of each of its 56 convolutions.
const RETINAFACE_TENSORS: usize = 112;
/// Weight and bias of 53 convolutions and of the last layer.
const OPEN_NSFW_TENSORS: usize = 108;

/// Stages of U²-Net p with the convolutions inside their U, down and up again; the export keeps the order of the code.
pub(super) fn u2netp(read: &Read) -> Result<Vec<Tensor>, Refusal> {
    let encoders = ["1", "2", "3", "4", "5", "6"].map(|n| format!("stage{n}"));
    let decoders = ["5", "4", "3", "2", "1"].map(|n| format!("stage{n}d"));
    let depths = [7, 6, 5, 4, 4, 4].into_iter().chain([4, 4, 5, 6, 7]);
    let mut names = Vec::new();
    for (stage, depth) in encoders.into_iter().chain(decoders).zip(depths) {
        names.push(format!("{stage}.rebnconvin.conv_s1"));
        names.extend((1..=depth).map(|n| format!("{stage}.rebnconv{n}.conv_s1")));
        names.extend((1..depth).rev().map(|n| format!("{stage}.rebnconv{n}d.conv_s1")));
    }
    names.extend((1..=6).map(|n| format!("side{n}")));
    names.push("outconv".into());
    let convolutions: Vec<_> = read.of_kind("Conv").collect();
    if convolutions.len() != names.len() {
        return Err(count("convolutions", convolutions.len(), names.len()));
    }
    let mut tensors = Vec::new();
    for (node, name) in convolutions.into_iter().zip(names) {
        tensors.extend(read.convolution(node, &name)?);
    }
    Ok(tensors)
}

/// open_nsfw names its nodes after Caffe's layers; what a batch norm was folded into bears the norm's name.
pub(super) fn open_nsfw(read: &Read) -> Result<Vec<Tensor>, Refusal> {
    let mut tensors = Vec::new();
    for node in read.of_kind("Conv") {
        let output = node.outputs.first().map_or("", String::as_str);
        let layer = output.split('/').next().unwrap_or_default();
        let name = match layer.strip_prefix("bn_") {
            Some(rest) => format!("conv_{rest}"),
            None => layer.to_owned(),
        };
        tensors.extend(read.convolution(node, &name)?);
    }
    let (shape, bytes) = read.numbers("fc_nsfw/MatMul/ReadVariableOp:0")?; // (in, out)
    let (shape, bytes) = transposed(&shape, &bytes)?;
    tensors.push(Tensor::new("fc_nsfw.weight".into(), Dtype::F32, shape, bytes)?);
    tensors.push(read.tensor("fc_nsfw/BiasAdd/ReadVariableOp:0", "fc_nsfw.bias".into())?);
    if tensors.len() != OPEN_NSFW_TENSORS {
        return Err(count("tensors", tensors.len(), OPEN_NSFW_TENSORS));
    }
    Ok(tensors)
}

/// RetinaFace's nodes are called by the path of their module, `/fx/stage1/stage1.1/stage1.1.0/Conv`.
pub(super) fn retinaface(read: &Read) -> Result<Vec<Tensor>, Refusal> {
    let mut tensors = Vec::new();
    for node in read.of_kind("Conv") {
        // The export repeats one convolution of each context module.
        if node.name.ends_with("_1/Conv") {
            continue;
        }
        let path: Vec<&str> = node.name.trim_matches('/').split('/').collect();
        let name = retinaface_name(&path)
            .ok_or_else(|| Refusal::Malformed(format!("`{}` is no convolution of RetinaFace", node.name)))?;
        tensors.extend(read.convolution(node, &name)?);
    }
    if tensors.len() != RETINAFACE_TENSORS {
        return Err(count("tensors", tensors.len(), RETINAFACE_TENSORS));
    }
    Ok(tensors)
}

fn retinaface_name(path: &[&str]) -> Option<String> {
    let (_, module) = path.split_last()?;
    let (first, last) = (module.first()?, module.last()?);
    let number = |text: &str, at: usize| text.split('.').nth(at).map(str::to_owned);
    if *first == "fx" {
        // stageA.B.C is unit B, half C; the first unit of the body is a plain convolution.
        let (stage, unit) = (module.get(1)?, number(module.get(2)?, 1)?);
        let half = if module.len() > 3 { number(last, 2)? } else { "0".into() };
        let half = if half == "0" { "0" } else { "3" };
        return Some(format!("body.{stage}.{unit}.{half}"));
    }
    if first.contains("head") {
        let head = match first.split('_').next()? {
            "class" => "ClassHead",
            "bbox" => "BboxHead",
            "landmark" => "LandmarkHead",
            _ => return None,
        };
        return Some(format!("{head}.{}.conv1x1", last.rsplit('.').next()?));
    }
    Some(format!("{first}.{last}"))
}

/// A matrix of f32 the other way round.
fn transposed(shape: &[u64], bytes: &[u8]) -> Result<(Vec<u64>, Vec<u8>), Refusal> {
    let malformed = || Refusal::Malformed("the last layer is no matrix".into());
    let &[rows, columns] = shape else {
        return Err(malformed());
    };
    let (n_rows, n_columns) = (rows as usize, columns as usize);
    if n_rows.checked_mul(n_columns).and_then(|n| n.checked_mul(4)) != Some(bytes.len()) {
        return Err(malformed());
    }
    let mut turned = Vec::with_capacity(bytes.len());
    for column in 0..n_columns {
        for row in 0..n_rows {
            let at = 4 * (row * n_columns + column);
            turned.extend_from_slice(bytes.get(at..at + 4).ok_or_else(malformed)?);
        }
    }
    Ok((vec![columns, rows], turned))
}

fn count(what: &str, found: usize, wanted: usize) -> Refusal {
    Refusal::Malformed(format!("the ONNX file has {found} {what}, this network has {wanted}"))
}
