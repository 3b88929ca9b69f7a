//! A copy of CivitAI's API on loopback with one LoRA and one textual inversion for the tiny model, made of its own weights:
//! what they must do to a picture is known exactly.

use std::path::Path;

use anyhow::{Context, ensure};
use hex::ToHex;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Number of the version of the LoRA: with it the prompt does not matter.
pub const VERSION: u64 = 41;
/// Number of a version of another family: of it there is only the record.
pub const OTHER_FAMILY: u64 = 42;
/// Name of the inversion: it means what the word `red` means.
pub const INVERSION: &str = "77";

/// Longest head of a request that is read, in bytes.
const MAX_REQUEST: usize = 64 * 1024;

/// Rows and columns of a matrix of f16 numbers.
fn matrix(tensor: &TensorView<'_>) -> anyhow::Result<[usize; 2]> {
    ensure!(tensor.dtype() == Dtype::F16, "the tiny model is not of f16");
    let shape = tensor.shape().try_into();
    shape.with_context(|| format!("a matrix of shape {:?}", tensor.shape()))
}

/// A LoRA that takes away all that the tiny model's picture gets from its prompt: minus the values of every cross
/// attention, written as a product with the identity. All numbers are f16, as in the checkpoint.
fn forgetful(tiny: &SafeTensors<'_>) -> anyhow::Result<Vec<u8>> {
    let mut factors: Vec<(String, [usize; 2], Vec<u8>)> = Vec::new();
    for (key, tensor) in tiny.tensors() {
        let Some(module) = key
            .strip_prefix("model.diffusion_model.")
            .and_then(|key| key.strip_suffix(".attn2.to_v.weight"))
        else {
            continue;
        };
        let [outputs, inputs] = matrix(&tensor)?;
        let numbers = tensor.data().as_chunks::<2>().0;
        let negated = numbers.iter().flat_map(|[low, high]| [*low, high ^ 0x80]);
        let identity = (0..inputs * inputs).flat_map(|i| if i % (inputs + 1) == 0 { [0, 0x3c] } else { [0, 0] });
        let name = format!("lora_unet_{}_attn2_to_v", module.replace('.', "_"));
        factors.push((format!("{name}.lora_up.weight"), [outputs, inputs], negated.collect()));
        factors.push((format!("{name}.lora_down.weight"), [inputs, inputs], identity.collect()));
    }
    ensure!(factors.len() > 8, "the tiny model has no cross attentions");
    let views = factors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F16, shape.to_vec(), bytes)?;
        Ok((name, view))
    });
    let views: Vec<_> = views.collect::<anyhow::Result<_>>()?;
    Ok(safetensors::serialize(views, None)?)
}

/// An inversion that means what the word `red` means: its place in the tiny model's table, a row of f16.
fn red(tiny: &SafeTensors<'_>) -> anyhow::Result<Vec<u8>> {
    const RED: usize = 736;
    let tensors = tiny.tensors();
    let (_, table) = tensors
        .iter()
        .find(|(key, _)| key.ends_with("token_embedding.weight"))
        .context("the tiny model has no table of tokens")?;
    let [_, width] = matrix(table)?;
    let mut rows = table.data().chunks_exact(2 * width);
    let row = rows.nth(RED).context("the table is too short")?;
    let row = TensorView::new(Dtype::F16, vec![1, width], row)?;
    Ok(safetensors::serialize([("emb_params", row)], None)?)
}

/// Serves the LoRA's record and file, and the inversion's, for as long as the program runs; gives the address of the API.
pub async fn serve() -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors");
    let file = std::fs::read(&path).with_context(|| format!("`{}` cannot be read", path.display()))?;
    let tiny = SafeTensors::deserialize(&file)?;
    let (file, inversion) = (forgetful(&tiny)?, red(&tiny)?);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let host = listener.local_addr()?.to_string();
    let record = json!({
        "id": VERSION, "modelId": 9000, "name": "v1.0", "baseModel": "SD 1.5", "trainedWords": [],
        "model": { "name": "Forgetful", "type": "LORA", "nsfw": false, "poi": false },
        "files": [{
            "id": 2, "sizeKB": file.len() as f64 / 1024.0, "name": "forgetful.safetensors", "type": "Model", "primary": true,
            "metadata": { "format": "SafeTensor" },
            "hashes": { "SHA256": Sha256::digest(&file).encode_hex_upper::<String>() },
            "downloadUrl": format!("http://{host}/api/download/models/{VERSION}"),
        }],
    });
    let mut other = record.clone();
    other["id"] = json!(OTHER_FAMILY);
    other["baseModel"] = json!("SDXL 1.0");
    let (record, other) = (record.to_string().into_bytes(), other.to_string().into_bytes());
    let converted = json!({
        "url": format!("http://{host}/inversion.safetensors"),
        "sha256": Sha256::digest(&inversion).encode_hex::<String>(),
    });
    let converted = converted.to_string().into_bytes();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (record, other, file) = (record.clone(), other.clone(), file.clone());
            let (converted, inversion) = (converted.clone(), inversion.clone());
            tokio::spawn(async move {
                let mut asked = Vec::new();
                while asked.len() < MAX_REQUEST && !asked.windows(4).any(|end| end == b"\r\n\r\n") {
                    let mut part = [0; 1024];
                    match stream.read(&mut part).await {
                        Ok(n) if n > 0 => asked.extend(&part[..n]),
                        _ => return,
                    }
                }
                let text = String::from_utf8_lossy(&asked).into_owned();
                let (status, kind, bytes) = if text.contains(&format!("/api/download/models/{VERSION}")) {
                    ("200 OK", "application/octet-stream", file)
                } else if text.contains("/inversion.safetensors") {
                    ("200 OK", "application/octet-stream", inversion)
                } else if text.contains(&format!("/api/v1/embedding/{INVERSION}")) {
                    ("200 OK", "application/json", converted)
                } else if text.contains(&format!("/api/v1/model-versions/{VERSION}")) {
                    ("200 OK", "application/json", record)
                } else if text.contains(&format!("/api/v1/model-versions/{OTHER_FAMILY}")) {
                    ("200 OK", "application/json", other)
                } else {
                    ("404 Not Found", "application/json", b"{}".to_vec())
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    bytes.len()
                );
                // A client that has gone is its own affair.
                let _ = stream.write_all(&[head.as_bytes(), &bytes].concat()).await;
            });
        }
    });
    Ok(format!("http://{host}/api/v1/"))
}
