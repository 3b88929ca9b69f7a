//! A LoRA through the whole protocol: looked up and fetched from a copy of CivitAI's API on loopback, put on, taken off.

use std::path::Path;
use std::time::Duration;

use e2e::demo::dreamer::{Ask, Done, body, read, stage_with};
use e2e::demo::shapes::difference;
use hex::ToHex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Loading and drawing on two busy cores, with room.
const PATIENCE: Duration = Duration::from_secs(240);
const VERSION: u64 = 41;

/// A LoRA that takes away all that the tiny model's picture gets from its prompt: minus the values of every cross
/// attention, written as a product with the identity. All numbers are f16, as in the checkpoint.
fn forgetful() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors");
    let file = std::fs::read(path).expect("the tiny model is part of the repository");
    let length = usize::try_from(u64::from_le_bytes(file[..8].try_into().expect("8 bytes"))).expect("a length");
    let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("a header");
    let mut tensors = serde_json::Map::new();
    let mut data: Vec<u8> = Vec::new();
    let mut add = |name: String, shape: [usize; 2], bytes: Vec<u8>| {
        let start = data.len();
        data.extend(bytes);
        let place = json!({ "dtype": "F16", "shape": shape, "data_offsets": [start, data.len()] });
        tensors.insert(name, place);
    };
    for (key, tensor) in header.as_object().expect("an object") {
        let Some(module) = key
            .strip_prefix("model.diffusion_model.")
            .and_then(|key| key.strip_suffix(".attn2.to_v.weight"))
        else {
            continue;
        };
        let number = |pointer: &str| tensor.pointer(pointer).and_then(Value::as_u64).expect("a number") as usize;
        assert_eq!(tensor["dtype"], "F16");
        let (outputs, inputs) = (number("/shape/0"), number("/shape/1"));
        let at = 8 + length + number("/data_offsets/0");
        let negated = file[at..at + 2 * outputs * inputs]
            .chunks_exact(2)
            .flat_map(|b| [b[0], b[1] ^ 0x80]);
        let identity = (0..inputs * inputs).flat_map(|i| if i % (inputs + 1) == 0 { [0, 0x3c] } else { [0, 0] });
        let name = format!("lora_unet_{}_attn2_to_v", module.replace('.', "_"));
        add(format!("{name}.lora_up.weight"), [outputs, inputs], negated.collect());
        add(format!("{name}.lora_down.weight"), [inputs, inputs], identity.collect());
    }
    assert!(tensors.len() > 8, "the tiny model has cross attentions");
    let mut head = Value::Object(tensors).to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut out = (head.len() as u64).to_le_bytes().to_vec();
    out.extend(head);
    out.extend(data);
    out
}

/// An inversion that means what the word `red` means: its place in the tiny model's table, a row of f16.
fn red() -> Vec<u8> {
    const RED: usize = 736;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny-shapes-sd15/tiny-shapes-sd15.safetensors");
    let file = std::fs::read(path).expect("the tiny model is part of the repository");
    let length = usize::try_from(u64::from_le_bytes(file[..8].try_into().expect("8 bytes"))).expect("a length");
    let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("a header");
    let mut tensors = header.as_object().expect("an object").iter();
    let (_, table) = tensors
        .find(|(key, _)| key.ends_with("token_embedding.weight"))
        .expect("a table of tokens");
    let number = |pointer: &str| table.pointer(pointer).and_then(Value::as_u64).expect("a number") as usize;
    assert_eq!(table["dtype"], "F16");
    let width = number("/shape/1");
    let at = 8 + length + number("/data_offsets/0") + RED * width * 2;
    let head = json!({ "emb_params": { "dtype": "F16", "shape": [1, width], "data_offsets": [0, 2 * width] } });
    let head = head.to_string().into_bytes();
    [&(head.len() as u64).to_le_bytes()[..], &head, &file[at..at + 2 * width]].concat()
}

/// Serves the LoRA's record and file, and the inversion's, for as long as the test runs; gives the address of the API.
async fn civitai(file: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = listener.local_addr().expect("an address").to_string();
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
    let record = record.to_string().into_bytes();
    let inversion = red();
    let converted = json!({
        "url": format!("http://{host}/inversion.safetensors"),
        "sha256": Sha256::digest(&inversion).encode_hex::<String>(),
    });
    let converted = converted.to_string().into_bytes();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (record, file) = (record.clone(), file.clone());
            let (converted, inversion) = (converted.clone(), inversion.clone());
            tokio::spawn(async move {
                let mut asked = Vec::new();
                while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
                    let mut part = [0; 1024];
                    match stream.read(&mut part).await {
                        Ok(n) if n > 0 => asked.extend(&part[..n]),
                        _ => return,
                    }
                }
                let text = String::from_utf8_lossy(&asked).into_owned();
                let (status, kind, bytes) = if text.contains("/api/download/models/41") {
                    ("200 OK", "application/octet-stream", file)
                } else if text.contains("/inversion.safetensors") {
                    ("200 OK", "application/octet-stream", inversion)
                } else if text.contains("/api/v1/embedding/77") {
                    ("200 OK", "application/json", converted)
                } else if text.contains("/api/v1/model-versions/41") {
                    ("200 OK", "application/json", record)
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
    format!("http://{host}/api/v1/")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lora_is_fetched_put_on_and_taken_off_without_a_trace() {
    let models = tempfile::tempdir().expect("a folder for models");
    let address = civitai(forgetful()).await;
    let extra = [
        ("DREAMER_UNCHECKED_ON_LOOPBACK", "true"),
        ("DREAMER_CIVITAI_URL", address.as_str()),
    ];
    let mut stage = stage_with(models.path(), &extra).await.expect("dreamer starts");
    let ask = |prompt: &'static str, strength: Option<f64>| Ask {
        title: prompt,
        prompt,
        params: match strength {
            Some(model) => json!({ "seed": "3", "loras": [
                { "name": VERSION.to_string(), "is_version": true, "model": model, "clip": 1.0 }
            ] }),
            None => json!({ "seed": "3" }),
        },
        body: json!({}),
    };
    let (red, yellow) = (
        "a large red circle on a blue background",
        "a large yellow square on a black background",
    );
    let asks = [
        ask(red, None),
        ask(red, Some(1.0)),
        ask(yellow, Some(1.0)),
        ask(red, Some(0.0)),
        ask(red, None),
        ask(yellow, None),
    ];
    let mut ids = Vec::new();
    for ask in &asks {
        ids.push(stage.requester.file("generate/async", &body(ask)).await.expect("filed"));
    }
    let results = stage
        .finished("generate/status", &ids, PATIENCE)
        .await
        .expect("answers");
    let mut done: Vec<Done> = Vec::new();
    for result in &results {
        done.push(read(&stage, result).await.expect("pictures"));
    }
    let books = stage.close().await.expect("dreamer drains and ends");
    assert_eq!(
        (&books.summary["accepted"], &books.summary["faulted"]),
        (&json!(6), &json!(0))
    );
    assert!(done.iter().all(|done| done.metadata.is_empty()), "nothing was left out");
    let apart =
        |a: usize, b: usize| difference(&done[a].pictures[0], &done[b].pictures[0], |_, _| true).expect("one size");
    assert!(apart(0, 5) > 20.0, "two prompts draw two pictures: {}", apart(0, 5));
    assert!(apart(0, 1) > 5.0, "the LoRA changes the picture: {}", apart(0, 1));
    assert!(apart(1, 2) < 1.0, "with it the prompt does not matter: {}", apart(1, 2));
    assert_eq!(apart(0, 3), 0.0, "at strength 0 it does nothing");
    assert_eq!(apart(0, 4), 0.0, "nothing of it is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inversion_is_fetched_and_means_what_its_vectors_mean() {
    let models = tempfile::tempdir().expect("a folder for models");
    let address = civitai(forgetful()).await;
    let extra = [
        ("DREAMER_UNCHECKED_ON_LOOPBACK", "true"),
        ("DREAMER_EMBEDDINGS_URL", address.as_str()),
    ];
    let mut stage = stage_with(models.path(), &extra).await.expect("dreamer starts");
    let ask = |prompt: &'static str, name: &str| Ask {
        title: prompt,
        prompt,
        params: match name {
            "" => json!({ "seed": "3" }),
            name => json!({ "seed": "3", "tis": [{ "name": name }] }),
        },
        body: json!({}),
    };
    let (word, inverted) = (
        "a large red circle on a blue background",
        "a large embedding:77 circle on a blue background",
    );
    let asks = [
        ask(word, ""),
        ask(inverted, "77"),
        ask(inverted, ""),
        ask(inverted, "78"),
    ];
    let mut ids = Vec::new();
    for ask in &asks {
        ids.push(stage.requester.file("generate/async", &body(ask)).await.expect("filed"));
    }
    let results = stage
        .finished("generate/status", &ids, PATIENCE)
        .await
        .expect("answers");
    let mut done: Vec<Done> = Vec::new();
    for result in &results {
        done.push(read(&stage, result).await.expect("pictures"));
    }
    let books = stage.close().await.expect("dreamer drains and ends");
    assert_eq!(books.summary["faulted"], json!(0));
    let apart =
        |a: usize, b: usize| difference(&done[a].pictures[0], &done[b].pictures[0], |_, _| true).expect("one size");
    assert_eq!(apart(0, 1), 0.0, "its vector is the word's");
    assert!(
        apart(1, 2) > 2.0,
        "nothing of it is left for the next job: {}",
        apart(1, 2)
    );
    assert_eq!(apart(2, 3), 0.0, "one that is not there means nothing");
    assert!(done[..3].iter().all(|done| done.metadata.is_empty()));
    let noted = ("ti".to_owned(), "download_failed".to_owned(), "78".to_owned());
    assert_eq!(done[3].metadata, [noted]);
}
