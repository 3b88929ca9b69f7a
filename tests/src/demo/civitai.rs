//! A copy of CivitAI's API on loopback with one LoRA and one textual inversion for the tiny model, made of its own weights:
//! what they must do to a picture is known exactly.

use std::path::Path;

use anyhow::{Context, ensure};
use hex::ToHex;
use serde_json::{Value, json};
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

/// The tiny model taken apart.
struct Tiny {
    header: Value,
    data: Vec<u8>,
}

impl Tiny {
    fn open() -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors");
        let file = std::fs::read(&path).with_context(|| format!("`{}` cannot be read", path.display()))?;
        let (length, rest) = file.split_first_chunk::<8>().context("the tiny model is cut short")?;
        let length = usize::try_from(u64::from_le_bytes(*length))?;
        let (header, data) = rest.split_at_checked(length).context("the tiny model is cut short")?;
        Ok(Self {
            header: serde_json::from_slice(header)?,
            data: data.to_vec(),
        })
    }

    /// Rows, columns and the f16 numbers of a matrix.
    fn matrix(&self, tensor: &Value) -> anyhow::Result<([usize; 2], &[u8])> {
        ensure!(tensor["dtype"] == "F16", "the tiny model is not of f16");
        let shape: [usize; 2] = serde_json::from_value(tensor["shape"].clone())?;
        let [from, to]: [usize; 2] = serde_json::from_value(tensor["data_offsets"].clone())?;
        let bytes = self.data.get(from..to).context("the tiny model is cut short")?;
        Ok((shape, bytes))
    }

    fn tensors(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.header.as_object().into_iter().flatten()
    }
}

/// A LoRA that takes away all that the tiny model's picture gets from its prompt: minus the values of every cross
/// attention, written as a product with the identity. All numbers are f16, as in the checkpoint.
fn forgetful(tiny: &Tiny) -> anyhow::Result<Vec<u8>> {
    let mut tensors = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    let mut add = |name: String, shape: [usize; 2], bytes: Vec<u8>| {
        let start = data.len();
        data.extend(bytes);
        let place = json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, data.len()] });
        tensors.insert(name, place);
    };
    for (key, tensor) in tiny.tensors() {
        let Some(module) = key
            .strip_prefix("model.diffusion_model.")
            .and_then(|key| key.strip_suffix(".attn2.to_v.weight"))
        else {
            continue;
        };
        let ([outputs, inputs], values) = tiny.matrix(tensor)?;
        let negated = values
            .as_chunks::<2>()
            .0
            .iter()
            .flat_map(|[low, high]| [*low, high ^ 0x80]);
        let identity = (0..inputs * inputs).flat_map(|i| if i % (inputs + 1) == 0 { [0, 0x3c] } else { [0, 0] });
        let name = format!("lora_unet_{}_attn2_to_v", module.replace('.', "_"));
        add(format!("{name}.lora_up.weight"), [outputs, inputs], negated.collect());
        add(format!("{name}.lora_down.weight"), [inputs, inputs], identity.collect());
    }
    ensure!(tensors.len() > 8, "the tiny model has no cross attentions");
    Ok(packed(Value::Object(tensors), &data))
}

/// An inversion that means what the word `red` means: its place in the tiny model's table, a row of f16.
fn red(tiny: &Tiny) -> anyhow::Result<Vec<u8>> {
    const RED: usize = 736;
    let mut tensors = tiny.tensors();
    let (_, table) = tensors
        .find(|(key, _)| key.ends_with("token_embedding.weight"))
        .context("the tiny model has no table of tokens")?;
    let ([_, width], rows) = tiny.matrix(table)?;
    let row = rows
        .chunks_exact(2 * width)
        .nth(RED)
        .context("the table is too short")?;
    let place = json!({ "emb_params": { "dtype": "F16", "shape": [1, width], "data_offsets": [0, 2 * width] } });
    Ok(packed(place, row))
}

fn packed(header: Value, data: &[u8]) -> Vec<u8> {
    let mut head = header.to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    [&(head.len() as u64).to_le_bytes()[..], &head, data].concat()
}

/// Serves the LoRA's record and file, and the inversion's, for as long as the program runs; gives the address of the API.
pub async fn serve() -> anyhow::Result<String> {
    let tiny = Tiny::open()?;
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
