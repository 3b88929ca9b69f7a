//! A copy of CivitAI's API on loopback with a LoRA and a textual inversion for the tiny model, made of its own weights, so that
//! what they must do to a picture is known exactly, and with some that are none for it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use hex::ToHex;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Number of the version of the LoRA: with it the prompt does not matter.
pub const VERSION: u64 = 41;
/// Number of a version whose record says that it is of another family.
pub const OTHER_FAMILY: u64 = 42;
/// Number of a version whose record says the tiny model's family and whose file fits none of its layers.
pub const MISFIT: u64 = 43;
/// Number of a version whose file breaks off in the middle; its sum is right.
pub const TORN: u64 = 44;
/// Number of a version with the same file, whose record says what no prompt need say.
pub const TELLING: u64 = 45;
/// Name of the inversion: it means what the word `red` means.
pub const INVERSION: &str = "77";
/// Name of an inversion for text encoders of another width.
pub const WIDE_INVERSION: &str = "79";
/// Name of an inversion whose file breaks off; its sum is right.
pub const TORN_INVERSION: &str = "80";

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

/// A LoRA for layers of the tiny model's names and of twice their width.
fn misfit(tiny: &SafeTensors<'_>) -> anyhow::Result<Vec<u8>> {
    let tensors = tiny.tensors();
    let (key, tensor) = tensors
        .iter()
        .find(|(key, _)| key.starts_with("model.diffusion_model.") && key.ends_with(".attn2.to_v.weight"))
        .context("the tiny model has no cross attention")?;
    let [outputs, inputs] = matrix(tensor)?;
    let module = key
        .trim_start_matches("model.diffusion_model.")
        .trim_end_matches(".weight")
        .replace('.', "_");
    let zeros = vec![0; 4 * outputs.max(inputs)];
    let part = |name: &str, shape: Vec<usize>| {
        let bytes = &zeros[..2 * shape.iter().product::<usize>()];
        Ok((
            format!("lora_unet_{module}.{name}.weight"),
            TensorView::new(Dtype::F16, shape, bytes)?,
        ))
    };
    let parts: [anyhow::Result<_>; 2] = [
        part("lora_up", vec![2 * outputs, 1]),
        part("lora_down", vec![1, 2 * inputs]),
    ];
    let parts: Vec<_> = parts.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(safetensors::serialize(parts, None)?)
}

/// An inversion for text encoders of another width.
fn wide() -> anyhow::Result<Vec<u8>> {
    let row = vec![0; 2 * 1000];
    let row = TensorView::new(Dtype::F16, vec![1, 1000], &row)?;
    Ok(safetensors::serialize([("emb_params", row)], None)?)
}

/// What is answered to a request whose address holds the text.
struct Answer {
    asked: String,
    kind: &'static str,
    bytes: Vec<u8>,
}

/// A file and the record that tells where it is, each at what is asked for it.
fn answers(of_file: String, file: &[u8], of_record: String, record: &serde_json::Value) -> [Answer; 2] {
    [
        Answer {
            asked: of_file,
            kind: "application/octet-stream",
            bytes: file.to_vec(),
        },
        Answer {
            asked: of_record,
            kind: "application/json",
            bytes: record.to_string().into_bytes(),
        },
    ]
}

/// A version's record and its file.
fn lora(host: &str, version: u64, family: &str, file: &[u8]) -> [Answer; 2] {
    let title = if version == TELLING {
        "a small child"
    } else {
        "Forgetful"
    };
    let record = json!({
        "id": version, "modelId": 9000, "name": "v1.0", "baseModel": family, "trainedWords": [],
        "model": { "name": title, "type": "LORA", "nsfw": false, "poi": false },
        "files": [{
            "id": 2, "sizeKB": file.len() as f64 / 1024.0, "name": "forgetful.safetensors", "type": "Model", "primary": true,
            "metadata": { "format": "SafeTensor" },
            "hashes": { "SHA256": Sha256::digest(file).encode_hex_upper::<String>() },
            "downloadUrl": format!("http://{host}/api/download/models/{version}"),
        }],
    });
    let of_record = format!("/api/v1/model-versions/{version} ");
    answers(format!("/api/download/models/{version} "), file, of_record, &record)
}

/// An inversion's record and its file.
fn inversion(host: &str, name: &str, file: &[u8]) -> [Answer; 2] {
    let converted = json!({
        "url": format!("http://{host}/{name}.safetensors"),
        "sha256": Sha256::digest(file).encode_hex::<String>(),
    });
    let of_record = format!("/api/v1/embedding/{name} ");
    answers(format!("/{name}.safetensors "), file, of_record, &converted)
}

/// Serves the records and files for as long as the program runs; gives the address of the API.
pub async fn serve() -> anyhow::Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors");
    let file = std::fs::read(&path).with_context(|| format!("`{}` cannot be read", path.display()))?;
    let tiny = SafeTensors::deserialize(&file)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let host = listener.local_addr()?.to_string();
    let whole = forgetful(&tiny)?;
    let answers: Vec<Answer> = [
        lora(&host, VERSION, "SD 1.5", &whole),
        lora(&host, OTHER_FAMILY, "SDXL 1.0", &whole),
        lora(&host, MISFIT, "SD 1.5", &misfit(&tiny)?),
        lora(&host, TORN, "SD 1.5", &whole[..whole.len() / 2]),
        lora(&host, TELLING, "SD 1.5", &whole),
        inversion(&host, INVERSION, &red(&tiny)?),
        inversion(&host, WIDE_INVERSION, &wide()?),
        inversion(&host, TORN_INVERSION, &whole[..100]),
    ]
    .into_iter()
    .flatten()
    .collect();
    let answers = Arc::new(answers);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, Arc::clone(&answers)));
        }
    });
    Ok(format!("http://{host}/api/v1/"))
}

async fn answer(mut stream: TcpStream, answers: Arc<Vec<Answer>>) {
    let mut asked = Vec::new();
    while asked.len() < MAX_REQUEST && !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut part = [0; 1024];
        match stream.read(&mut part).await {
            Ok(n) if n > 0 => asked.extend(&part[..n]),
            _ => return,
        }
    }
    let text = String::from_utf8_lossy(&asked);
    let line = text.lines().next().unwrap_or_default();
    let (status, kind, bytes) = match answers.iter().find(|answer| line.contains(&answer.asked)) {
        Some(answer) => ("200 OK", answer.kind, answer.bytes.as_slice()),
        None => ("404 Not Found", "application/json", &b"{}"[..]),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        bytes.len()
    );
    // A client that has gone is its own affair.
    let _ = stream.write_all(&[head.as_bytes(), bytes].concat()).await;
}
